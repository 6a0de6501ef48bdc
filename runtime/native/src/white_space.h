// The white space of docs/artifact-format.md, "Conventions".
#pragma once

#include <cstdint>
#include <string_view>

namespace plc {

// Wide white space: Unicode's, and U+001C to U+001F. (Python's `str.isspace`.)
inline bool is_wide_space(uint32_t point) {
  return (point >= 9 && point <= 13) || (point >= 0x1C && point <= 0x20) || point == 0x85 ||
         point == 0xA0 || point == 0x1680 || (point >= 0x2000 && point <= 0x200A) ||
         point == 0x2028 || point == 0x2029 || point == 0x202F || point == 0x205F ||
         point == 0x3000;
}

// Valid UTF-8 without wide white space at its ends. (Python's `str.strip`.)
std::string_view without_wide_space(std::string_view text);

}  // namespace plc
