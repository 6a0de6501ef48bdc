// Prefixes that are in memory once for all rows that begin with them: see prefixes.cc.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels.h"

namespace plc {

// The keys (as attention multiplies them: rotated where the base rotates) and values of a prefix.
struct HeldPrefix {
  const float* numbers;  // [layers][2][kv_heads][length][dim]; the memory is the caller's
  size_t layers, kv_heads, length, dim;

  // Those of a layer; an error where the base has other sizes.
  Prefix of_layer(size_t layer, size_t kv_heads, size_t dim) const;
};

// Null where the number stands for none.
std::shared_ptr<const HeldPrefix> held_prefix(int64_t id);

}  // namespace plc
