// Which functions this processor runs, and sizes of what they share.
#include "kernels.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace plc {

void Activations::resize(size_t rows, const Weight& w) {
  const size_t up = (rows + kTile - 1) / kTile * kTile;
  codes.resize(up * w.inputs + 64);
  scales.resize(up * w.blocks());
  sums.resize(up * w.blocks());
  shifts.resize(up * w.blocks());
}

size_t Attention::query_blocks() const { return (seq + kQueries - 1) / kQueries; }

namespace {

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

// Linux lends the tile registers to a process that asks for them.
bool has_amx() {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tile = d & (1u << 24), int8 = d & (1u << 25);
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return tile && int8 && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

const Functions* choose() {
  const char* wanted = std::getenv("PLC_KERNELS");
  const auto allowed = [&](const char* name) { return !wanted || !std::strcmp(wanted, name); };
#if defined(__x86_64__)
  if (allowed(kAmx.name) && has_avx512() && has_amx()) return &kAmx;
  if (allowed(kAvx512.name) && has_avx512()) return &kAvx512;
  if (allowed(kAvx2.name) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return &kAvx2;
#endif
  return allowed(kPortable.name) ? &kPortable : nullptr;
}

}  // namespace

const Functions* functions() {
  static const Functions* const chosen = choose();
  return chosen;
}

}  // namespace plc
