#include "white_space.h"

#include "utf8.h"

namespace plc {

std::string_view without_wide_space(std::string_view text) {
  const char* at = text.data();
  const char* const end = at + text.size();
  const char *first = end, *last = end;  // of what is left, and behind it
  while (at < end) {
    const char* const begin = at;
    if (is_wide_space(next_code_point(at))) continue;
    if (first == end) first = begin;
    last = at;
  }
  return {first, static_cast<size_t>(last - first)};
}

}  // namespace plc
