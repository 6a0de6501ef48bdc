#include "answer_text.h"

#include <algorithm>
#include <limits>

#include "text_stream.h"

namespace plc {
namespace {

class TokenizerSource final : public TextSource {
 public:
  explicit TokenizerSource(std::shared_ptr<const Tokenizer> tokenizer)
      : stream_(std::move(tokenizer), true) {}

  void push(int32_t token, std::string& text) override { stream_.push(token, text); }
  void pending(std::string& text, size_t last) const override { stream_.pending(text, last); }
  void finish(std::string& text) override { stream_.finish(text); }

 private:
  TextStream stream_;
};

size_t characters(const std::string& text) {
  const auto begins = [](char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; };
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), begins));
}

size_t without_last_blanks(const std::string& text, size_t length) {
  while (length > 0 && text[length - 1] == ' ') --length;
  return length;
}

}  // namespace

std::unique_ptr<TextSource> source_of(std::shared_ptr<const Tokenizer> tokenizer) {
  return std::make_unique<TokenizerSource>(std::move(tokenizer));
}

AnswerText::AnswerText(std::unique_ptr<TextSource> source, std::vector<std::string> stops)
    : source_(std::move(source)), stops_(std::move(stops)), recent_(0) {
  for (const std::string& stop : stops_) recent_ = std::max(recent_, characters(stop));
  recent_ = 4 * recent_ + 8;  // four for a character, and some on both sides
}

std::string AnswerText::push(int32_t token) {
  source_->push(token, held_);
  // A later token may change the pending text, but a stop text in it ends the answer here. The
  // pending text may be the whole answer, so it is searched only where a stop text is possible.
  if (!stops_.empty()) {
    std::string recent = held_;
    source_->pending(recent, recent_);
    if (has_stop(recent)) {
      std::string all = held_;
      source_->pending(all, std::numeric_limits<size_t>::max());
      if (cut_at_stop(all)) return finish();
    }
  }
  return give(held_.size() - uncertain());
}

std::string AnswerText::finish() {
  if (!stopped_) {
    source_->finish(held_);
    cut_at_stop(std::string(held_));
  }
  return give(without_last_blanks(held_, held_.size()));
}

bool AnswerText::has_stop(const std::string& text) const {
  return std::any_of(stops_.begin(), stops_.end(),
                     [&](const std::string& stop) { return text.find(stop) != std::string::npos; });
}

// Holds the part of a text before its first stop text, and notes that the answer stopped.
bool AnswerText::cut_at_stop(const std::string& text) {
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) first = std::min(first, text.find(stop));
  if (first != std::string::npos) {
    held_ = text.substr(0, first);
    stopped_ = true;
  }
  return stopped_;
}

std::string AnswerText::give(size_t length) {
  std::string piece = held_.substr(0, length);
  held_.erase(0, length);
  if (given_.empty()) piece.erase(0, std::min(piece.find_first_not_of(' '), piece.size()));
  given_ += piece;
  return piece;
}

// Bytes of the held text's longest end that may begin a stop text or be outer blanks.
size_t AnswerText::uncertain() const {
  size_t longest = 0;
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > longest; --length) {
      if (held_.compare(held_.size() - length, length, stop, 0, length) != 0) continue;
      longest = length;
      break;
    }
  }
  return held_.size() - without_last_blanks(held_, held_.size() - longest);
}

}  // namespace plc
