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
  Word(const char* text);
  Word(const std::string& text);
  Word(std::string_view text);

  template <typename Number, typename = std::enable_if_t<std::is_integral_v<Number>>>
  Word(Number number) : Word(static_cast<uint64_t>(number), number < Number{0}) {}

  void append_to(std::string& out) const;

 private:
  // Messages are made in hundreds of places: none of this is inlined there.
  Word(uint64_t number, bool is_below_0);

  const char* text_;         // null for a number
  uint64_t size_or_number_;  // bytes of the text; or the number, modulo 2^64
  bool is_below_0_;
};

using Words = std::initializer_list<Word>;

void append(Words words, std::string& out);

std::string joined(Words words);

}  // namespace plc
