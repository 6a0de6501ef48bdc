// Structs of plc_runtime.h that may grow: they begin with `struct_size`, a size_t.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

namespace plc {

// No struct is ever larger: such a size was not written by a caller who began with …_INIT.
constexpr size_t kMostStructBytes = 4096;

// Copies what the caller knows of a struct over `known`, which holds the defaults. False where the
// size cannot be: below that of the first release, or with bytes that are not 0 where this library
// knows no member.
template <typename Struct>
bool copy_known(const Struct& given, size_t first_size, Struct& known) {
  static_assert(std::is_trivially_copyable_v<Struct>);
  const size_t size = given.struct_size;
  if (size < first_size || size > kMostStructBytes) return false;
  const auto* bytes = reinterpret_cast<const unsigned char*>(&given);
  for (size_t place = sizeof(Struct); place < size; ++place) {
    if (bytes[place] != 0) return false;
  }
  std::memcpy(&known, bytes, std::min(size, sizeof(Struct)));
  known.struct_size = sizeof(Struct);
  return true;
}

}  // namespace plc
