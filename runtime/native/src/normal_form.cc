#include "normal_form.h"

#include <algorithm>

#include "utf8.h"

namespace plc {
namespace {

// Hangul: Unicode 3.12, by the names that the standard gives.
constexpr uint32_t kSBase = 0xAC00, kLBase = 0x1100, kVBase = 0x1161, kTBase = 0x11A7;
constexpr uint32_t kLCount = 19, kVCount = 21, kTCount = 28, kSCount = kLCount * kVCount * kTCount;

// Characters before these do not decompose, and are no marks.
constexpr uint32_t kFirstDecomposed = 0xC0, kFirstMark = 0x300;

constexpr size_t kNowhere = static_cast<size_t>(-1);

bool is_among(uint32_t point, uint32_t base, uint32_t count) { return point >= base && point - base < count; }

// The row whose first number is `wanted`, of a sorted table; `kNowhere` if there is none.
size_t row_of(const Numbers<uint32_t>& table, uint32_t wanted) {
  size_t low = 0, high = table.size() / 2;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (table[2 * middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low < table.size() / 2 && table[2 * low] == wanted ? low : kNowhere;
}

// The syllable of two Jamo, or of a syllable without a final consonant and one; 0 if none.
uint32_t composed_syllable(uint32_t first, uint32_t second) {
  if (is_among(first, kLBase, kLCount) && is_among(second, kVBase, kVCount))
    return kSBase + ((first - kLBase) * kVCount + (second - kVBase)) * kTCount;
  if (is_among(first, kSBase, kSCount) && (first - kSBase) % kTCount == 0 &&
      is_among(second, kTBase + 1, kTCount - 1))
    return first + (second - kTBase);
  return 0;
}

}  // namespace

void NormalForm::append(std::string_view text, std::string& out, std::vector<int32_t>* changes) {
  // U+0300 and what comes after it begins with 0xCC or more. All before that is as it should be.
  const auto is_low = [](char byte) { return static_cast<unsigned char>(byte) < 0xCC; };
  if (std::all_of(text.begin(), text.end(), is_low)) {
    out.append(text);
    return;
  }
  decompose(text);
  order();
  compose();
  for (const Character& each : characters_) {
    append_code_point(each.point, out);
    if (changes != nullptr) changes->push_back(each.change);
  }
}

void NormalForm::decompose(std::string_view text) {
  characters_.clear();
  for (const char* at = text.data(); at < text.data() + text.size();) {
    const uint32_t point = next_code_point(at);
    if (is_among(point, kSBase, kSCount)) decompose_syllable(point);
    else decompose_listed(point);
  }
}

void NormalForm::decompose_listed(uint32_t point) {
  const size_t row = point < kFirstDecomposed ? kNowhere : row_of(tables_.decomposed, point);
  if (row == kNowhere) {
    characters_.push_back({point, class_of(point), 0});
    return;
  }
  const uint32_t place = tables_.decomposed[2 * row + 1];
  for (uint32_t k = 0; k < (place & 255); ++k) {
    const uint32_t part = tables_.pool[(place >> 8) + k];
    characters_.push_back({part, class_of(part), k == 0 ? 0 : 1});
  }
}

void NormalForm::decompose_syllable(uint32_t point) {
  const uint32_t index = point - kSBase, final_consonant = index % kTCount;
  characters_.push_back({kLBase + index / (kVCount * kTCount), 0, 0});
  characters_.push_back({kVBase + index / kTCount % kVCount, 0, 1});
  if (final_consonant != 0) characters_.push_back({kTBase + final_consonant, 0, 1});
}

// The canonical ordering algorithm (Unicode 3.11): marks between two starters by their classes.
void NormalForm::order() {
  const auto is_starter = [](const Character& each) { return each.combining_class == 0; };
  const auto is_less = [](const Character& a, const Character& b) {
    return a.combining_class < b.combining_class;
  };
  for (auto at = characters_.begin(); at != characters_.end();) {
    const auto first = std::find_if_not(at, characters_.end(), is_starter);
    at = std::find_if(first, characters_.end(), is_starter);
    if (at - first > 1) std::stable_sort(first, at, is_less);
  }
}

// The canonical composition algorithm (Unicode 3.11), in place: what is kept moves to the front.
void NormalForm::compose() {
  size_t kept = 0, starter = kNowhere;
  uint32_t last_class = 0;  // of the last that was kept: that of the starter is 0
  for (const Character each : characters_) {
    const bool is_unblocked = kept == starter + 1 || last_class < each.combining_class;
    if (starter != kNowhere && is_unblocked) {
      const uint32_t one = composed(characters_[starter].point, each.point);
      if (one != 0) {
        characters_[starter].point = one;
        characters_[starter].change += each.change - 1;
        continue;
      }
    }
    if (each.combining_class == 0) starter = kept;
    last_class = each.combining_class;
    characters_[kept++] = each;
  }
  characters_.resize(kept);
}

uint32_t NormalForm::class_of(uint32_t point) const {
  const size_t row = point < kFirstMark ? kNowhere : row_of(tables_.marks, point);
  return row == kNowhere ? 0 : tables_.marks[2 * row + 1];
}

// What two characters compose to; 0 if nothing.
uint32_t NormalForm::composed(uint32_t first, uint32_t second) const {
  if (const uint32_t syllable = composed_syllable(first, second)) return syllable;
  const Numbers<uint32_t>& pairs = tables_.pairs;
  size_t low = 0, high = pairs.size() / 3;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    const uint32_t a = pairs[3 * middle], b = pairs[3 * middle + 1];
    if (a < first || (a == first && b < second)) low = middle + 1;
    else high = middle;
  }
  if (low == pairs.size() / 3) return 0;
  return pairs[3 * low] == first && pairs[3 * low + 1] == second ? pairs[3 * low + 2] : 0;
}

}  // namespace plc
