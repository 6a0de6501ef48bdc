// Texts of messages, put together from words and numbers.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

namespace plc {

// A part of a message. It refers to its text, so it is an argument and never kept.
class Word {
 public:
  Word(const char* text) : text_(text) {}
  Word(const std::string& text) : text_(text) {}
  Word(std::string_view text) : text_(text) {}

  template <typename Number, typename = std::enable_if_t<std::is_integral_v<Number>>>
  Word(Number number)
      : is_number_(true), is_below_0_(number < Number{0}), number_(static_cast<uint64_t>(number)) {}

  void append_to(std::string& out) const;

 private:
  std::string_view text_{};
  bool is_number_ = false, is_below_0_ = false;
  uint64_t number_ = 0;  // modulo 2^64
};

using Words = std::initializer_list<Word>;

void append(Words words, std::string& out);

inline std::string joined(Words words) {
  std::string text;
  append(words, text);
  return text;
}

}  // namespace plc
