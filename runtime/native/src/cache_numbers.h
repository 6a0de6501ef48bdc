// Numbers of a cache, which may have 16 bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "contract.h"

namespace plc {

inline size_t bytes_of(Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; }

// The type of a row's cache.
inline Dtype cache_dtype(const Precision& precision) {
  return precision.cache_bits == 16 ? Dtype::kFloat16 : precision.dtype;
}

// Writes float32 numbers as a cache has them: rounded to the nearest, ties to even.
void write_numbers(const float* from, size_t count, Dtype dtype, void* to);

}  // namespace plc
