#include "cache_numbers.h"

#include <cstring>

namespace plc {
namespace {

uint32_t bits_of(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}

// `bits` without the last `drop`, rounded to the nearest, ties to even.
uint32_t rounded(uint32_t bits, uint32_t drop) {
  const uint32_t half = uint32_t{1} << (drop - 1), odd = (bits >> drop) & 1;
  return (bits + half - 1 + odd) >> drop;
}

uint16_t float16_of(float number) {
  const uint32_t bits = bits_of(number), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  uint32_t found;
  if (size > 0x7f800000) {
    found = 0x7e00 | (size >> 13 & 0x3ff);  // not a number
  } else if (size >= 0x47800000) {
    found = 0x7c00;  // 65536 and above
  } else if (size >= 0x38800000) {
    // The exponent begins at another number. Rounding up may carry into it, up to infinity.
    found = rounded(size - (uint32_t{112} << 23), 13);
  } else if (size >= 0x33000000) {
    // Below 2^-14: a whole number of 2^-24.
    found = rounded((size & 0x7fffff) | 0x800000, 126 - (size >> 23));
  } else {
    found = 0;
  }
  return static_cast<uint16_t>(sign | found);
}

uint16_t bfloat16_of(float number) {
  const uint32_t bits = bits_of(number);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>(rounded(bits, 16));
}

}  // namespace

void write_numbers(const float* from, size_t count, Dtype dtype, void* to) {
  if (dtype == Dtype::kFloat32) {
    std::memcpy(to, from, count * sizeof(float));
    return;
  }
  auto* out = static_cast<uint16_t*>(to);
  for (size_t k = 0; k < count; ++k)
    out[k] = dtype == Dtype::kFloat16 ? float16_of(from[k]) : bfloat16_of(from[k]);
}

}  // namespace plc
