// Turns ids into text as they arrive. The whole text is that of decoding all ids at once.
//
// Text that was handed out is never taken back, and never half a character. Byte-level tokenizers
// hold back an unfinished character. The others write each token by itself; only tokens of single
// bytes wait for each other: if a run of them is not UTF-8, each of its bytes becomes U+FFFD, so
// nothing of a run is certain before it has ended. (pl_compile/text/streaming.py does the same.)
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "tokenizer.h"

namespace plc {

class TextStream {
 public:
  // `skip_special`: whether control tokens are left out. Ids without a token always are.
  TextStream(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special)
      : tokenizer_(std::move(tokenizer)),
        skip_special_(skip_special),
        to_strip_(tokenizer_->tables().stripped_blanks) {}

  // Appends the text that a token makes certain; often none.
  void push(int32_t id, std::string& text);

  // Appends the text that was not handed out yet, if `id` were the last token. An unfinished
  // character may be left out.
  void peek(int32_t id, std::string& text) const;

  // Appends the text that would follow if no more tokens came, without an unfinished character at
  // its end. `last`: only of so many of the latest waiting tokens. A small number costs little, but
  // tokens before them might change how they are written.
  void pending(std::string& text, size_t last = std::numeric_limits<size_t>::max()) const;

  // Appends the rest, after the last token. An unfinished character becomes U+FFFD.
  void finish(std::string& text);

 private:
  bool is_text(int32_t id) const;
  void push_bytes(std::string_view bytes, std::string& text);
  void write(std::string_view bytes, std::string& text);
  void end_run(std::string& text);

  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_;
  uint32_t to_strip_;   // blanks that are still left out at the start of the text
  std::string held_{};  // an unfinished character, or the bytes of a run
};

// Decodes all ids at once. Bytes that are not UTF-8 become U+FFFD.
std::string decode(std::shared_ptr<const Tokenizer> tokenizer, const std::vector<int32_t>& ids,
                   bool skip_special);

}  // namespace plc
