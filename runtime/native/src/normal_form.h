// Unicode's normalization form C (NFC): https://unicode.org/reports/tr15
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "numbers.h"

namespace plc {

// What the standard lists for each code point. Hangul syllables are not listed: arithmetic makes
// them (Unicode 3.12). All lists are sorted by their first columns; code points are scalars.
struct NormalFormTables {
  Numbers<uint32_t> decomposed;  // [rows][2]: code point, place in `pool` << 8 | count
  Numbers<uint32_t> pool;        // code points
  Numbers<uint32_t> marks;       // [rows][2]: code point, combining class
  Numbers<uint32_t> pairs;       // [rows][3]: first, second, what they compose to
};

// Canonical decompositions have at most so many code points.
constexpr uint32_t kLongestDecomposition = 4;

class NormalForm {
 public:
  explicit NormalForm(const NormalFormTables& tables) : tables_(tables) {}

  // Appends the text's NFC. `text` is valid UTF-8 and not a part of `out`. For each character of it
  // that is written, `changes` gets how many come of the same one as the character before: 1; or 0
  // less those that it took in besides the one it stands for. Empty: as many as were read.
  void append(std::string_view text, std::string& out, std::vector<int32_t>* changes = nullptr);

 private:
  struct Character {
    uint32_t point, combining_class;
    int32_t change;
  };

  void decompose(std::string_view text);
  void decompose_listed(uint32_t point);
  void decompose_syllable(uint32_t point);
  void order();
  void compose();
  uint32_t class_of(uint32_t point) const;
  uint32_t composed(uint32_t first, uint32_t second) const;

  const NormalFormTables& tables_;
  std::vector<Character> characters_;  // kept for its memory
};

}  // namespace plc
