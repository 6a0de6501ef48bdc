#include "blocking.h"

#include <algorithm>

namespace plc {
namespace {

constexpr uint64_t kFactor = 0x9E3779B97F4A7C15;

uint64_t hash_of(int64_t token) {
  const uint64_t mixed = (static_cast<uint64_t>(token) + 1) * 0xBF58476D1CE4E5B9;
  return mixed ^ mixed >> 29;
}

}  // namespace

Ngrams::Ngrams(size_t size, const std::vector<int64_t>& tokens) : before_(size - 1) {
  tokens_.reserve(tokens.size());
  for (const int64_t token : tokens) push(token);
}

void Ngrams::push(int64_t token) {
  if (tokens_.size() >= before_) {
    size_t sequence = latest();
    if (sequence == kNone) {
      sequence = followed_.size();
      followed_.push_back({tokens_.size() - before_, {}});
      places_[hash_].push_back(sequence);
    }
    followed_[sequence].by.insert(token);
  }
  tokens_.push_back(token);
  if (before_ == 0) return;
  if (tokens_.size() > before_) hash_ -= hash_of(tokens_[tokens_.size() - 1 - before_]) * oldest_;
  else if (tokens_.size() > 1) oldest_ *= kFactor;
  hash_ = hash_ * kFactor + hash_of(token);
}

std::vector<int32_t> Ngrams::blocked(size_t vocab) const {
  std::vector<int32_t> tokens;
  const size_t sequence = tokens_.size() >= before_ ? latest() : kNone;
  if (sequence == kNone) return tokens;
  for (const int64_t token : followed_[sequence].by)
    if (token >= 0 && static_cast<uint64_t>(token) < vocab) tokens.push_back(static_cast<int32_t>(token));
  std::sort(tokens.begin(), tokens.end());
  return tokens;
}

// The place in `followed_` of the latest tokens. Different sequences may have one hash.
size_t Ngrams::latest() const {
  const auto alike = places_.find(hash_);
  if (alike == places_.end()) return kNone;
  for (const size_t sequence : alike->second) {
    const auto start = tokens_.begin() + static_cast<std::ptrdiff_t>(followed_[sequence].place);
    const auto last = tokens_.end() - static_cast<std::ptrdiff_t>(before_);
    if (std::equal(last, tokens_.end(), start)) return sequence;
  }
  return kNone;
}

BadWords::BadWords(std::shared_ptr<const Tokenizer> tokenizer, std::vector<std::string> words)
    : words_(std::move(words)), stream_(std::move(tokenizer), true) {
  for (const std::string& word : words_) longest_ = std::max(longest_, word.size());
}

bool BadWords::allows(int32_t token) const {
  std::string text = certain_;
  stream_.peek(token, text);
  return std::none_of(words_.begin(), words_.end(),
                      [&](const std::string& word) { return text.find(word) != std::string::npos; });
}

void BadWords::push(int32_t token) {
  stream_.push(token, certain_);
  if (certain_.size() >= longest_) certain_.erase(0, certain_.size() - longest_ + 1);
}

}  // namespace plc
