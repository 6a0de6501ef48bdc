// The text of an answer as its tokens arrive, without stop text and outer blanks.
//
// All pieces together are what decoding the tokens at once gives, up to the first stop text, without
// blanks (U+0020) at both ends. A piece that was handed out is never taken back. So text is held
// while a later token may change it, or while it may be the start of a stop text or blanks at the
// end. (runtime/answer_text.py does the same.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tokenizer.h"

namespace plc {

// What tokens become text by: a tokenizer, or the field that an answer is copied from. Each function
// appends, as those of TextStream do.
class TextSource {
 public:
  virtual ~TextSource() = default;
  virtual void push(int32_t token, std::string& text) = 0;
  virtual void pending(std::string& text, size_t last) const = 0;
  virtual void finish(std::string& text) = 0;
};

// The text of all tokens but the special ones.
std::unique_ptr<TextSource> source_of(std::shared_ptr<const Tokenizer> tokenizer);

class AnswerText {
 public:
  // `stops`: texts that end the answer, UTF-8, none empty.
  AnswerText(std::unique_ptr<TextSource> source, std::vector<std::string> stops);

  // The answer so far, without what is held.
  const std::string& text() const { return given_; }

  // Whether there was a stop text.
  bool stopped() const { return stopped_; }

  // The text that a token makes certain.
  std::string push(int32_t token);

  // The text that was held. Call it when no more tokens come.
  std::string finish();

 private:
  bool has_stop(const std::string& text) const;
  bool cut_at_stop(const std::string& text);
  std::string give(size_t length);
  size_t uncertain() const;

  std::unique_ptr<TextSource> source_;
  std::vector<std::string> stops_;
  size_t recent_;  // a stop text lies in at most so many tokens
  std::string given_{}, held_{};
  bool stopped_ = false;
};

}  // namespace plc
