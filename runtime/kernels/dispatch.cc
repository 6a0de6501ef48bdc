// Which instruction sets this processor has, and which one runs.
#include "chosen_sets.h"
#include "kernels.h"

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace plc::kernels {

extern const KernelSet of_portable;

#if defined(__x86_64__)

extern const KernelSet of_avx2_without_f16c, of_avx2, of_avxvnni, of_avx512, of_avx512vnni, of_amx;

namespace {

// Bits of the processor's answers (Intel's and AMD's manuals, CPUID): leaf 7, part `sub`.
bool has(unsigned sub, unsigned eax, unsigned ecx, unsigned edx) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, sub, &a, &b, &c, &d)) return false;
  return (a & eax) == eax && (c & ecx) == ecx && (d & edx) == edx;
}

[[maybe_unused]] bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

[[maybe_unused]] bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid(1, &a, &b, &c, &d) && c & 1u << 29;
}

[[maybe_unused]] bool has_avxvnni() { return has_f16c() && has(1, 1u << 4, 0, 0); }

[[maybe_unused]] bool has_avx512() {
  return has_f16c() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

[[maybe_unused]] bool has_avx512vnni() { return has_avx512() && has(0, 0, 1u << 11, 0); }

// Linux lends the tile registers to a process that asks for them.
[[maybe_unused]] bool has_amx() {
#if defined(PLC_AMX_EMULATION)
  return has_avx512vnni();
#elif defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return has_avx512vnni() && has(0, 0, 0, 1u << 24 | 1u << 25) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

#elif defined(__aarch64__)

extern const KernelSet of_neon, of_dotprod, of_i8mm;

namespace {

#if defined(__linux__)
// Bits of arch/arm64/include/uapi/asm/hwcap.h.
[[maybe_unused]] bool has_dotprod() { return getauxval(AT_HWCAP) & 1ul << 20; }
[[maybe_unused]] bool has_i8mm() { return getauxval(AT_HWCAP2) & 1ul << 13; }
#elif defined(__APPLE__)
bool has(const char* name) {
  int found = 0;
  size_t size = sizeof found;
  return sysctlbyname(name, &found, &size, nullptr, 0) == 0 && found;
}
[[maybe_unused]] bool has_dotprod() { return has("hw.optional.arm.FEAT_DotProd"); }
[[maybe_unused]] bool has_i8mm() { return has("hw.optional.arm.FEAT_I8MM"); }
#else
[[maybe_unused]] bool has_dotprod() { return false; }
[[maybe_unused]] bool has_i8mm() { return false; }
#endif

}  // namespace

#endif

namespace {

// The sets of this library that the processor has, in their order, and then null.
struct FoundSets {
  std::vector<const KernelSet*> found;

  FoundSets() {
    const auto add = [&](const KernelSet& set, bool there) {
      if (there) found.push_back(&set);
    };
#if defined(PLC_HAS_AMX)
    add(of_amx, has_amx());
#endif
#if defined(PLC_HAS_AVX512VNNI)
    add(of_avx512vnni, has_avx512vnni());
#endif
#if defined(PLC_HAS_AVXVNNI)
    add(of_avxvnni, has_avxvnni());
#endif
#if defined(PLC_HAS_AVX512)
    add(of_avx512, has_avx512());
#endif
#if defined(PLC_HAS_AVX2)
    add(of_avx2, has_f16c());
#endif
#if defined(PLC_HAS_AVX2_WITHOUT_F16C)
    add(of_avx2_without_f16c, has_avx2());
#endif
#if defined(PLC_HAS_I8MM)
    add(of_i8mm, has_i8mm() && has_dotprod());
#endif
#if defined(PLC_HAS_DOTPROD)
    add(of_dotprod, has_dotprod());
#endif
#if defined(PLC_HAS_NEON)
    add(of_neon, true);
#endif
    add(of_portable, true);
    found.push_back(nullptr);
  }
};

const KernelSet* wanted_or_best() {
  const char* wanted = std::getenv("PLC_KERNELS");
  for (const KernelSet* const* set = available_sets(); *set; ++set)
    if (!wanted || !*wanted || !std::strcmp(wanted, (*set)->name)) return *set;
  return nullptr;
}

}  // namespace

const KernelSet* const* available_sets() {
  static const FoundSets sets;
  return sets.found.data();
}

const KernelSet* chosen_set() {
  static const KernelSet* const chosen = wanted_or_best();
  return chosen;
}

}  // namespace plc::kernels
