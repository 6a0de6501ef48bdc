#include "unicode.h"

#include <algorithm>
#include <iterator>

#include "utf8.h"

namespace plc {
namespace {

constexpr uint32_t kStarts[] = {
#include "character_kinds.inc"
};

}  // namespace

CharacterKind kind_of(uint32_t point) {
  // The last run that begins at the point or before it. The first one begins at 0.
  const auto after = std::upper_bound(std::begin(kStarts), std::end(kStarts), point << 2 | 3);
  return static_cast<CharacterKind>(*std::prev(after) & 3);
}

std::string_view without_space_at_start(std::string_view text) {
  const char *at = text.data(), *const end = at + text.size();
  while (at < end) {
    const char* next = at;
    if (!is_wide_white_space(next_code_point(next))) break;
    at = next;
  }
  return text.substr(static_cast<size_t>(at - text.data()));
}

std::string_view without_space_at_end(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t start = end - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    const char* at = text.data() + start;
    if (!is_wide_white_space(next_code_point(at))) break;
    end = start;
  }
  return text.substr(0, end);
}

}  // namespace plc
