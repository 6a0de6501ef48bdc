// Prefixes that are in memory once for all rows that begin with them: see prefixes.cc.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels.h"

namespace plc::kernels {

// Memory that begins at a line of the processor's caches, as codes are read.
struct AlignedBytes {
  std::unique_ptr<uint8_t[]> memory;
  uint8_t* begin = nullptr;

  AlignedBytes() = default;
  explicit AlignedBytes(size_t count) : memory(new uint8_t[count + kLine]) {
    begin = memory.get() + (kLine - reinterpret_cast<uintptr_t>(memory.get()) % kLine) % kLine;
  }

 private:
  static constexpr size_t kLine = 64;
};

// The keys (as attention multiplies them: rotated where the base rotates) and values of a prefix.
struct HeldPrefix {
  const float* numbers;  // [layers][2][kv_heads][length - coded * kChunk][dim]
  size_t layers, kv_heads, length, dim;
  size_t coded = 0;          // chunks that are held as codes: see Prefix
  std::vector<float> own{};  // `numbers` of a prefix with codes; without, the memory is the caller's
  AlignedBytes codes{};      // [layers][kv_heads][coded][CodedChunk::bytes(dim)]

  // Those of a layer; an error where the base has other sizes.
  Prefix of_layer(size_t layer, size_t kv_heads, size_t dim) const;
};

// Null where the number stands for none.
std::shared_ptr<const HeldPrefix> held_prefix(int64_t id);

}  // namespace plc::kernels
