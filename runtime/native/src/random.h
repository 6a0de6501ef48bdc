// Noise for draws: numpy's generator PCG64, begun with a seed of any size
// (docs/artifact-format.md, "Noise").
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "result.h"

namespace plc {

// A whole number, 0 or more.
class Seed {
 public:
  static constexpr size_t kMostDigits = 4096;

  Seed() = default;
  Seed(uint64_t number);

  // Decimal digits, at most `kMostDigits`.
  static Result<Seed> read(std::string_view digits);

  // Of 32 bits, the lowest first, without leading zeros; one word, 0, of 0.
  const std::vector<uint32_t>& words() const { return words_; }

 private:
  std::vector<uint32_t> words_{0};
};

// One request's own source of noise.
class Random {
 public:
  explicit Random(const Seed& seed);

  // From 0 to below 1.
  double uniform();

  // The largest of logits plus this noise is a draw from their softmax (arXiv:1611.00712).
  double gumbel();

 private:
  __extension__ typedef unsigned __int128 Wide;

  void step();

  Wide state_ = 0, increment_ = 0;
};

}  // namespace plc
