#include "random.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "words.h"

namespace plc {
namespace {

constexpr size_t kPool = 4;
constexpr uint64_t kMultiplierHigh = 0x2360ED051FC65DA4, kMultiplierLow = 0x4385DF649FCCF645;

// Turns words into others; each one depends on how many came before.
struct Hash {
  uint32_t state;
  uint32_t factor;

  uint32_t operator()(uint32_t word) {
    word ^= state;
    state *= factor;
    word *= state;
    return word ^ word >> 16;
  }
};

uint32_t mixed(uint32_t left, uint32_t right) {
  const uint32_t both = 0xCA01F9DDu * left - 0x4973F715u * right;
  return both ^ both >> 16;
}

}  // namespace

Seed::Seed(uint64_t number) : words_{static_cast<uint32_t>(number)} {
  if (number >> 32 != 0) words_.push_back(static_cast<uint32_t>(number >> 32));
}

Result<Seed> Seed::read(std::string_view digits) {
  const auto is_digit = [](char each) { return each >= '0' && each <= '9'; };
  if (digits.size() > kMostDigits)
    return Error{ErrorCode::kArgument,
                 joined({"reading the sampling options: a seed of ", digits.size(),
                         " characters; expected at most ", kMostDigits, " digits. Take a smaller one."})};
  if (digits.empty() || !std::all_of(digits.begin(), digits.end(), is_digit))
    return Error{ErrorCode::kArgument, joined({"reading the sampling options: seed ", digits.substr(0, 80),
                                               ", expected a whole number, 0 or more."})};
  Seed seed;
  for (const char digit : digits) {
    uint64_t carry = static_cast<uint64_t>(digit - '0');
    for (uint32_t& word : seed.words_) {
      carry += uint64_t{10} * word;
      word = static_cast<uint32_t>(carry);
      carry >>= 32;
    }
    if (carry != 0) seed.words_.push_back(static_cast<uint32_t>(carry));
  }
  return seed;
}

Random::Random(const Seed& seed) {
  const std::vector<uint32_t>& words = seed.words();
  Hash hash{0x43B0D7E5, 0x931E8875};
  uint32_t pool[kPool];
  for (size_t i = 0; i < kPool; ++i) pool[i] = hash(i < words.size() ? words[i] : 0);
  for (size_t i = 0; i < kPool; ++i)
    for (size_t j = 0; j < kPool; ++j)
      if (i != j) pool[j] = mixed(pool[j], hash(pool[i]));
  for (size_t i = kPool; i < words.size(); ++i)
    for (size_t j = 0; j < kPool; ++j) pool[j] = mixed(pool[j], hash(words[i]));

  Hash output{0x8B51F9DD, 0x58F38DED};
  uint64_t made[4];
  for (size_t i = 0; i < 4; ++i) {
    const uint64_t low = output(pool[2 * i % kPool]);
    made[i] = low | uint64_t{output(pool[(2 * i + 1) % kPool])} << 32;
  }
  increment_ = (Wide{made[2]} << 64 | made[3]) << 1 | 1;
  step();
  state_ += Wide{made[0]} << 64 | made[1];
  step();
}

void Random::step() { state_ = state_ * (Wide{kMultiplierHigh} << 64 | kMultiplierLow) + increment_; }

double Random::uniform() {
  step();
  const uint64_t folded = static_cast<uint64_t>(state_ >> 64) ^ static_cast<uint64_t>(state_);
  const unsigned turn = static_cast<unsigned>(state_ >> 122);
  const uint64_t bits = folded >> turn | folded << (-turn & 63);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

double Random::gumbel() {
  const double bounded = std::min(std::max(uniform(), 1e-12), 1 - 1e-12);
  return -std::log(-std::log(bounded));
}

}  // namespace plc
