#include "sha256.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <system_error>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace plc {
namespace {

constexpr size_t kBlock = 64;
constexpr size_t kChunk = size_t{1} << 18;  // bytes of a file that are read at once

alignas(16) constexpr uint32_t kRounds[64] = {
    0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
    0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
    0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
    0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
    0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
    0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
    0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
    0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2};

uint32_t rotated(uint32_t x, int bits) { return x >> bits | x << (32 - bits); }

void add_blocks_portably(uint32_t* state, const unsigned char* bytes, size_t blocks) {
  for (; blocks > 0; --blocks, bytes += kBlock) {
    uint32_t w[64];
    for (int t = 0; t < 16; ++t) {
      uint32_t word;
      std::memcpy(&word, bytes + 4 * t, sizeof word);
      w[t] = __builtin_bswap32(word);
    }
    for (int t = 16; t < 64; ++t) {
      const uint32_t x = w[t - 15], y = w[t - 2];
      w[t] = w[t - 16] + w[t - 7] + (rotated(x, 7) ^ rotated(x, 18) ^ x >> 3) +
             (rotated(y, 17) ^ rotated(y, 19) ^ y >> 10);
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int t = 0; t < 64; ++t) {
      const uint32_t first =
          h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + kRounds[t] + w[t];
      const uint32_t second =
          (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g;
      g = f;
      f = e;
      e = d + first;
      d = c;
      c = b;
      b = a;
      a = first + second;
    }
    const uint32_t sums[8] = {a, b, c, d, e, f, g, h};
    for (int k = 0; k < 8; ++k) state[k] += sums[k];
  }
}

#if defined(__x86_64__)
// With the processor's own instructions for sha256. They keep the state as {a, b, e, f} and
// {c, d, g, h}, the first one highest, and do two rounds each.
__attribute__((target("sha,sse4.1"))) void add_blocks_with_sha(uint32_t* state, const unsigned char* bytes,
                                                               size_t blocks) {
  const __m128i reversed = _mm_set_epi64x(0x0C0D0E0F08090A0B, 0x0405060700010203);
  const auto load = [](const void* from) { return _mm_loadu_si128(static_cast<const __m128i*>(from)); };
  const __m128i badc = _mm_shuffle_epi32(load(state), 0xB1);
  const __m128i efgh = _mm_shuffle_epi32(load(state + 4), 0x1B);
  __m128i abef = _mm_alignr_epi8(badc, efgh, 8);
  __m128i cdgh = _mm_blend_epi16(efgh, badc, 0xF0);
  for (; blocks > 0; --blocks, bytes += kBlock) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];      // the words of four rounds each, the last sixteen words in turn
#pragma GCC unroll 16  // so that the words stay in registers
    for (int four = 0; four < 16; ++four) {
      __m128i& now = w[four & 3];
      if (four < 4) {
        now = _mm_shuffle_epi8(load(bytes + 16 * four), reversed);
      } else {
        const __m128i last = w[(four + 3) & 3], third = w[(four + 2) & 3];
        now = _mm_sha256msg1_epu32(now, w[(four + 1) & 3]);
        now = _mm_sha256msg2_epu32(_mm_add_epi32(now, _mm_alignr_epi8(last, third, 4)), last);
      }
      const __m128i added = _mm_add_epi32(now, load(kRounds + 4 * four));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, added);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(added, 0x0E));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  const __m128i feba = _mm_shuffle_epi32(abef, 0x1B);
  const __m128i dchg = _mm_shuffle_epi32(cdgh, 0xB1);
  const auto store = [](uint32_t* to, __m128i words) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), words);
  };
  store(state, _mm_blend_epi16(feba, dchg, 0xF0));
  store(state + 4, _mm_alignr_epi8(dchg, feba, 8));
}

bool has_sha() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & bit_SSE4_1) == 0) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA) != 0;
}
#endif

void add_blocks(uint32_t* state, const unsigned char* bytes, size_t blocks, bool portably) {
#if defined(__x86_64__)
  static const bool with_sha = has_sha();
  if (with_sha && !portably) return add_blocks_with_sha(state, bytes, blocks);
#endif
  static_cast<void>(portably);
  add_blocks_portably(state, bytes, blocks);
}

}  // namespace

void Sha256::add(std::string_view bytes) {
  if (bytes.empty()) return;
  auto* from = reinterpret_cast<const unsigned char*>(bytes.data());
  size_t left = bytes.size();
  const size_t held = size_ % kBlock;
  size_ += left;
  if (held > 0) {
    const size_t taken = std::min(left, kBlock - held);
    std::memcpy(waiting_.data() + held, from, taken);
    if (held + taken < kBlock) return;
    add_blocks(state_.data(), waiting_.data(), 1, portably_);
    from += taken;
    left -= taken;
  }
  add_blocks(state_.data(), from, left / kBlock, portably_);
  if (left % kBlock > 0) std::memcpy(waiting_.data(), from + left / kBlock * kBlock, left % kBlock);
}

std::string Sha256::digits() {
  // The end: a bit 1, zeros up to the last 8 bytes of a block, and the size in bits, highest first.
  const uint64_t bits = __builtin_bswap64(size_ * 8);
  constexpr char zeros[kBlock] = {'\x80'};
  const size_t held = size_ % kBlock;
  add({zeros, held < 56 ? 56 - held : 120 - held});
  add({reinterpret_cast<const char*>(&bits), sizeof bits});
  std::string text;
  for (const uint32_t word : state_)
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
  return text;
}

std::string sha256_of(std::string_view bytes) {
  Sha256 sum;
  sum.add(bytes);
  return sum.digits();
}

Result<std::string> sha256_of_file(const std::string& path) {
  const auto refused = [&path]() {
    return Error{ErrorCode::kFile, "reading " + path + ": " + std::generic_category().message(errno) +
                                       "; expected a file that this process may read"};
  };
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
  if (file < 0) return refused();
  Sha256 sum;
  const std::unique_ptr<char[]> chunk(new char[kChunk]);
  for (;;) {
    const ssize_t got = ::read(file, chunk.get(), kChunk);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      const Error error = refused();
      ::close(file);
      return error;
    }
    if (got == 0) break;
    sum.add({chunk.get(), static_cast<size_t>(got)});
  }
  ::close(file);
  return sum.digits();
}

}  // namespace plc
