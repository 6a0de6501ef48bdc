// What fills a field of a template: docs/artifact-format.md, "Values".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "result.h"

namespace plc {

// A text or a number. It refers to its text. (A whole number beyond 64 bits is given as a text of
// its digits.)
class FieldValue {
 public:
  FieldValue(std::string_view text) : text_(text) {}
  static FieldValue of_whole(int64_t number);
  static FieldValue of_real(double number);

  // As it stands in the prompt. `doing` begins an error: a text that is not UTF-8, or a number that
  // is not finite.
  Result<std::string> text() const;

 private:
  enum class Kind { kText, kWhole, kReal };

  Kind kind_ = Kind::kText;
  std::string_view text_{};
  int64_t whole_ = 0;
  double real_ = 0;
};

struct FieldGiven {
  std::string_view name;
  FieldValue value;
};

using Fields = std::vector<FieldGiven>;

// The fewest digits that are read back as the same number, as Python's `repr` writes them; `inf`,
// `-inf` or `nan`.
std::string written(double number);

}  // namespace plc
