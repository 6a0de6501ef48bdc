// Makes the codes of a prefix: see CodedChunk in kernels.h. The same ones on every processor.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace plc::kernels {

// The float16 that is nearest to a float of 0 or more; where two are, the even one. Infinity from 65,520 on.
inline uint16_t half_of(float x) {
  if (!(x < 65520.0f)) return 0x7c00;
  uint32_t bits;
  if (x < 0x1p-14f) {  // multiples of 2^-24: adding 1/2 leaves them in the low bits
    x += 0.5f;
    std::memcpy(&bits, &x, sizeof bits);
    return uint16_t(bits - 0x3f000000);
  }
  std::memcpy(&bits, &x, sizeof bits);
  bits += 0xfff + (bits >> 13 & 1);
  return uint16_t((bits >> 13) - (112 << 10));
}

// The float that a finite float16 without a sign stands for.
inline float of_half(uint16_t half) {
  const int exponent = half >> 10;
  return exponent ? std::ldexp(float(1024 + (half & 1023)), exponent - 25) : std::ldexp(float(half), -24);
}

// 1.5 * 2^23: added and taken away again, it leaves the nearest whole number.
constexpr float kToWhole = 12582912.0f;

// Codes and steps of a weight whose input k of output n is `from[k * input + n * output]`: as Weight says, at
// `codes` and `steps`. False where a number is none, or too large for a step.
inline bool make_codes(const float* from, size_t input, size_t output, size_t inputs, size_t outputs, uint8_t* codes,
                       uint16_t* steps) {
  const size_t blocks = inputs / kPrefixBlock;
  for (size_t n = 0; n < outputs; ++n) {
    const size_t tile = n / kTile, lane = n % kTile;
    for (size_t b = 0; b < blocks; ++b) {
      const float* x = from + n * output + b * kPrefixBlock * input;
      float most = 0.0f;
      for (size_t k = 0; k < kPrefixBlock; ++k) {
        const float size = std::fabs(x[k * input]);
        if (size > most || std::isnan(size)) most = size;
      }
      const uint16_t half = half_of(most / 127.0f);
      if (half >= 0x7c00) return false;
      steps[(tile * blocks + b) * kTile + lane] = half;
      const float per_unit = half ? 1.0f / of_half(half) : 0.0f;
      uint8_t* to = codes + tile * inputs * kTile + b * kPrefixBlock * kTile + lane * 4;
      for (size_t k = 0; k < kPrefixBlock; ++k) {
        const float code = (x[k * input] * per_unit + kToWhole) - kToWhole;
        to[k / 4 * 64 + k % 4] = uint8_t(128 + int(std::min(127.0f, std::max(-127.0f, code))));
      }
    }
  }
  return true;
}

// A chunk of keys and of values [kChunk][dim], at `memory` of CodedChunk::bytes(dim). False as above.
inline bool make_codes(const float* keys, const float* values, size_t dim, uint8_t* memory) {
  const auto part = [&](const float* from, size_t input, size_t output, size_t inputs, size_t outputs, uint8_t* to) {
    auto* steps = reinterpret_cast<uint16_t*>(to + CodedChunk::codes(dim));
    return make_codes(from, input, output, inputs, outputs, to, steps);
  };
  return part(keys, 1, dim, dim, kChunk, memory) &&
         part(values, dim, 1, kChunk, dim, memory + CodedChunk::bytes(dim) / 2);
}

}  // namespace plc::kernels
