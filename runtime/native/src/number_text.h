// Numbers as Python writes them (docs/artifact-format.md, "Values").
#pragma once

#include <charconv>
#include <cmath>
#include <string>

namespace plc {

// The fewest digits that are read back as the same double, with a point or an exponent; `inf`,
// `-inf` or `nan`.
inline std::string number_text(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  const double size = std::fabs(number);
  const bool is_short = size == 0 || (size >= 1e-4 && size < 1e16);
  char digits[400];
  const auto done = std::to_chars(digits, digits + sizeof digits, number,
                                  is_short ? std::chars_format::fixed : std::chars_format::scientific);
  std::string text(digits, done.ptr);
  if (is_short && text.find('.') == std::string::npos) text += ".0";
  return text;
}

}  // namespace plc
