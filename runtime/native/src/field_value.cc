#include "field_value.h"

#include <charconv>
#include <cmath>

#include "utf8.h"

namespace plc {

FieldValue FieldValue::of_whole(int64_t number) {
  FieldValue value{std::string_view()};
  value.kind_ = Kind::kWhole;
  value.whole_ = number;
  return value;
}

FieldValue FieldValue::of_real(double number) {
  FieldValue value{std::string_view()};
  value.kind_ = Kind::kReal;
  value.real_ = number;
  return value;
}

Result<std::string> FieldValue::text() const {
  if (kind_ == Kind::kWhole) return std::to_string(whole_);
  if (kind_ == Kind::kReal) {
    if (!std::isfinite(real_))
      return Error{ErrorCode::kArgument, "no finite number, expected a finite number: give it as text"};
    return written(real_);
  }
  if (!is_utf8(text_)) return Error{ErrorCode::kArgument, "not UTF-8, expected text as UTF-8"};
  return std::string(text_);
}

std::string written(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  // The fewest digits, as d.ddde+xx: the exponent then decides the form.
  char digits[40];
  const auto done = std::to_chars(digits, digits + sizeof digits, number, std::chars_format::scientific);
  std::string_view text(digits, static_cast<size_t>(done.ptr - digits));
  const size_t at = text.find('e');
  int exponent = 0;
  const char* const first = text.data() + at + (text[at + 1] == '+' ? 2 : 1);
  std::from_chars(first, text.data() + text.size(), exponent);
  // Python: with an exponent below 1e-4 and from 1e16 on, at least two digits of it and its sign.
  if (exponent < -4 || exponent >= 16) return std::string(text);
  std::string mantissa;
  for (const char each : text.substr(0, at))
    if (each != '.' && each != '-') mantissa += each;
  std::string plain = text[0] == '-' ? "-" : "";
  if (exponent < 0) {
    plain += "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + mantissa;
    return plain;
  }
  const auto whole = static_cast<size_t>(exponent) + 1;
  if (mantissa.size() <= whole) {
    plain += mantissa + std::string(whole - mantissa.size(), '0') + ".0";
    return plain;
  }
  plain += mantissa.substr(0, whole) + "." + mantissa.substr(whole);
  return plain;
}

}  // namespace plc
