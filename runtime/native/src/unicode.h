// What words are made of, and what white space is.
#pragma once

#include <cstdint>
#include <string_view>

namespace plc {

enum class CharacterKind { kOther, kLetter, kMark, kWideWhiteSpace };

// docs/artifact-format.md, "Copied answers". A letter of a script without blanks between words is
// "other": each is a word of its own.
CharacterKind kind_of(uint32_t point);

// Unicode's white space, and U+001C to U+001F: what Python strips.
inline bool is_wide_white_space(uint32_t point) { return kind_of(point) == CharacterKind::kWideWhiteSpace; }

// Unicode's white space.
inline bool is_white_space(uint32_t point) {
  return is_wide_white_space(point) && (point < 0x1C || point > 0x1F);
}

// Valid UTF-8 without wide white space at its start, at its end, or at both.
std::string_view without_space_at_start(std::string_view text);
std::string_view without_space_at_end(std::string_view text);
inline std::string_view without_space(std::string_view text) {
  return without_space_at_end(without_space_at_start(text));
}

}  // namespace plc
