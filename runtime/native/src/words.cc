#include "words.h"

namespace plc {

// A text without bytes may have a null pointer, which here means a number.
Word::Word(std::string_view text)
    : text_(text.empty() ? "" : text.data()), size_or_number_(text.size()), is_below_0_(false) {}
Word::Word(const char* text) : Word(std::string_view(text)) {}
Word::Word(const std::string& text) : Word(std::string_view(text)) {}
Word::Word(uint64_t number, bool is_below_0)
    : text_(nullptr), size_or_number_(number), is_below_0_(is_below_0) {}

void Word::append_to(std::string& out) const {
  if (text_ != nullptr) {
    out.append(text_, static_cast<size_t>(size_or_number_));
    return;
  }
  if (is_below_0_) out += '-';
  out.append(std::to_string(is_below_0_ ? 0 - size_or_number_ : size_or_number_));
}

void append(Words words, std::string& out) {
  for (const Word& word : words) word.append_to(out);
}

std::string joined(Words words) {
  std::string text;
  append(words, text);
  return text;
}

}  // namespace plc
