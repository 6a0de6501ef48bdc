// SipHash-2-4 with 128 bits (Aumasson and Bernstein, 2012): with a secret key nobody can find two
// texts with equal sums, so equal sums mean equal texts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace plc {

struct HashKey {
  uint64_t first = 0, second = 0;
};

struct Sum128 {
  uint64_t first = 0, second = 0;

  bool operator==(const Sum128& other) const { return first == other.first && second == other.second; }
  bool operator!=(const Sum128& other) const { return !(*this == other); }
};

class KeyedHash {
 public:
  explicit KeyedHash(const HashKey& key)
      : v_{key.first ^ 0x736f6d6570736575, key.second ^ 0x646f72616e646f6d ^ 0xee,
           key.first ^ 0x6c7967656e657261, key.second ^ 0x7465646279746573} {}

  void add(uint64_t word) {
    v_[3] ^= word;
    rounds(2);
    v_[0] ^= word;
    ++words_;
  }
  void add(const Sum128& sum) {
    add(sum.first);
    add(sum.second);
  }
  // The last word is filled with zeros, so add the size as well where it is not known.
  void add(const void* bytes, size_t size) {
    const auto* from = static_cast<const char*>(bytes);
    for (size_t at = 0; at < size; at += sizeof(uint64_t)) {
      uint64_t word = 0;
      std::memcpy(&word, from + at, size - at < sizeof word ? size - at : sizeof word);
      add(word);
    }
  }

  Sum128 sum() {
    add(words_ * sizeof(uint64_t) << 56);
    v_[2] ^= 0xee;
    rounds(4);
    const uint64_t first = v_[0] ^ v_[1] ^ v_[2] ^ v_[3];
    v_[1] ^= 0xdd;
    rounds(4);
    return {first, v_[0] ^ v_[1] ^ v_[2] ^ v_[3]};
  }

 private:
  static uint64_t turned(uint64_t word, int bits) { return word << bits | word >> (64 - bits); }

  void rounds(int count) {
    for (; count > 0; --count) {
      v_[0] += v_[1];
      v_[1] = turned(v_[1], 13) ^ v_[0];
      v_[0] = turned(v_[0], 32);
      v_[2] += v_[3];
      v_[3] = turned(v_[3], 16) ^ v_[2];
      v_[0] += v_[3];
      v_[3] = turned(v_[3], 21) ^ v_[0];
      v_[2] += v_[1];
      v_[1] = turned(v_[1], 17) ^ v_[2];
      v_[2] = turned(v_[2], 32);
    }
  }

  uint64_t v_[4];
  uint64_t words_ = 0;
};

}  // namespace plc
