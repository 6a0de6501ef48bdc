// Next tokens that are looked up in what was read and written before.
//
// Prompt lookup decoding (A. Saxena, 2023; with a reference text, arXiv:2304.04487): where the last
// tokens stood before, those that followed there are the draft. It costs no model. Answers that
// repeat their prompt (summaries, edits, quotes) take fewer steps. (runtime/lookup_rows.py does the
// same.)
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <unordered_map>
#include <vector>

namespace plc {

// Sequences of two and three tokens, and where each of them stood last.
class Lookup {
 public:
  // A sequence is known once something follows it.
  void push(int32_t token) {
    for (const size_t length : {size_t{3}, size_t{2}})
      if (tokens_.size() >= length) places_[last(length)] = tokens_.size();
    tokens_.push_back(token);
  }

  // How many tokens it has taken.
  size_t size() const { return tokens_.size(); }

  // What followed the last tokens where they stood before, at most so many; the longest sequence
  // counts.
  std::vector<int32_t> following(size_t most) const {
    for (const size_t length : {size_t{3}, size_t{2}}) {
      if (tokens_.size() < length) continue;
      const auto found = places_.find(last(length));
      if (found == places_.end()) continue;
      const auto start = tokens_.begin() + static_cast<std::ptrdiff_t>(found->second);
      const size_t count = std::min(most, tokens_.size() - found->second);
      return std::vector<int32_t>(start, start + static_cast<std::ptrdiff_t>(count));
    }
    return {};
  }

 private:
  using Sequence = std::array<int32_t, 3>;  // of two tokens, the first one is -1

  struct Hash {
    size_t operator()(const Sequence& sequence) const {
      uint64_t hash = 0;
      for (const int32_t token : sequence) hash = (hash + static_cast<uint32_t>(token)) * 0x9E3779B97F4A7C15;
      return static_cast<size_t>(hash ^ hash >> 32);
    }
  };

  Sequence last(size_t length) const {
    const size_t end = tokens_.size();
    return {length == 3 ? tokens_[end - 3] : -1, tokens_[end - 2], tokens_[end - 1]};
  }

  std::vector<int32_t> tokens_{};
  std::unordered_map<Sequence, size_t, Hash> places_{};
};

// Drafts as many tokens as seem to save time: by how many guesses of this row were right, and by
// what steps cost. Guesses that are not fed count, too: they are compared with what comes.
class LookupDrafts {
 public:
  // The draft after all tokens of a row, `seen`: real ones of prompt and answer. `most`: how many
  // are of use, at least 1. `cost`: of one more token, as `StepCosts` says.
  std::vector<int32_t> propose(const std::vector<int32_t>& seen, size_t most, double cost) {
    while (lookup_.size() < seen.size()) lookup_.push(seen[lookup_.size()]);
    std::vector<int32_t> found = lookup_.following(std::min(most, kMost));
    guess_ = found.empty() ? std::nullopt : std::optional<int32_t>(found[0]);
    found.resize(std::min(found.size(), worthwhile(cost)));
    return found;
  }

  // Compares the guess with the latest token of the answer; none: the answer has no token.
  void chosen(std::optional<int32_t> token) {
    if (guess_ && token) {
      ++guessed_;
      right_ += *token == *guess_ ? 1 : 0;
    }
    guess_.reset();
  }

  // Counts the guesses after the first, which `chosen` counts: so many of a draft were taken.
  void note(size_t drafted, size_t taken) {
    right_ += taken > 1 ? taken - 1 : 0;
    const size_t seen = std::min(taken + 1, drafted);
    guessed_ += seen > 1 ? seen - 1 : 0;
  }

  // The draft with the most tokens for a step's cost; 0 where it would lose.
  size_t worthwhile(double cost) const {
    const double chance = static_cast<double>(right_) / static_cast<double>(guessed_);
    size_t best = 0;
    double most = 1.0, expected = 1.0, probability = 1.0;
    for (size_t count = 1; count <= kMost; ++count) {
      probability *= chance;
      expected += probability;
      const double gain = expected / (1 + static_cast<double>(count) * cost);
      if (gain > most) {
        best = count;
        most = gain;
      }
    }
    return best;
  }

 private:
  static constexpr size_t kMost = 12;

  Lookup lookup_{};
  std::optional<int32_t> guess_{};  // the next token, if it was guessed
  size_t right_ = 1, guessed_ = 2;
};

}  // namespace plc
