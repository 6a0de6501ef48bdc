// Tokens that may not come next: those that repeat a sequence, or make a text that must not be.
// (runtime/blocking.py does the same.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "text_stream.h"
#include "tokenizer.h"

namespace plc {

// The sequences of `size` tokens so far; each may stand once. A token costs no more in a long answer
// than in a short one.
class Ngrams {
 public:
  // `size`: at least 1. `tokens`: of the prompt, virtual ones included.
  Ngrams(size_t size, const std::vector<int64_t>& tokens);

  void push(int64_t token);

  // The tokens below `vocab` that would repeat a sequence, in ascending order.
  std::vector<int32_t> blocked(size_t vocab) const;

 private:
  // A sequence of `size - 1` tokens, the first of which stands at `place`, and what followed it.
  struct Followed {
    size_t place;
    std::unordered_set<int64_t> by;
  };
  static constexpr size_t kNone = static_cast<size_t>(-1);

  size_t latest() const;

  size_t before_;  // tokens before the last one of a sequence
  std::vector<int64_t> tokens_{};
  uint64_t hash_ = 0;    // of the latest `before_` tokens
  uint64_t oldest_ = 1;  // what the hash multiplies the oldest of them by
  std::vector<Followed> followed_{};
  std::unordered_map<uint64_t, std::vector<size_t>> places_{};  // in `followed_`, by hash
};

// Texts that must not appear in an answer, over whatever tokens they come. It reads the decoded
// text, so it holds for every way in which tokens can write a text. After each token that it lets
// pass, the text would not contain a bad word if the answer ended there.
class BadWords {
 public:
  // `words`: UTF-8, at least one, none empty.
  BadWords(std::shared_ptr<const Tokenizer> tokenizer, std::vector<std::string> words);

  // Whether a token may come next.
  bool allows(int32_t token) const;

  void push(int32_t token);

 private:
  std::vector<std::string> words_;
  TextStream stream_;
  size_t longest_ = 1;     // bytes of a word
  std::string certain_{};  // the end of the text that no later token changes
};

}  // namespace plc
