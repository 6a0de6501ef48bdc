// UTF-8: what is valid, and what stands for what is not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace plc {

// U+FFFD, which stands for what is not UTF-8.
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// What a text begins with.
struct Utf8Step {
  size_t bytes;  // of the character; where there is none, of the maximal subpart (Unicode 3.9)
  bool valid;    // whether it is a character
  bool cut_off;  // not valid, but the text ends before a character that has begun well
};

// The text is not empty.
Utf8Step utf8_step(std::string_view text);

// Bytes before the first one that is not UTF-8.
size_t utf8_valid_prefix(std::string_view text);

inline bool is_utf8(std::string_view text) { return utf8_valid_prefix(text) == text.size(); }

// Appends the text with one U+FFFD for each maximal subpart that is not UTF-8, as Python does with
// errors="replace".
void append_replaced(std::string_view text, std::string& out);

// The character at `*at`, which moves behind it. Only for valid UTF-8 that has not ended.
inline uint32_t next_code_point(const char*& at) {
  const auto byte = [&at]() { return static_cast<uint32_t>(static_cast<unsigned char>(*at++)); };
  const uint32_t first = byte();
  if (first < 0x80) return first;
  uint32_t point = first < 0xE0 ? first & 31 : first < 0xF0 ? first & 15 : first & 7;
  const int more = first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
  for (int k = 0; k < more; ++k) point = point << 6 | (byte() & 63);
  return point;
}

// A code point that UTF-8 can write: no half of a surrogate pair.
inline bool is_scalar(uint32_t point) { return point < 0x110000 && !(point >= 0xD800 && point < 0xE000); }

void append_code_point(uint32_t point, std::string& out);

// The first characters of valid UTF-8, of at most so many bytes: messages quote files.
std::string_view shortened(std::string_view text, size_t most);

}  // namespace plc
