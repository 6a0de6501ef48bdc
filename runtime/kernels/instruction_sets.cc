// The functions of kernels.h, once for each instruction set.
#include "chosen_sets.h"
#include "kernels.h"

// Headers stand above all sets: what they define inline must run on every machine.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#define PLC_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define PLC_UNROLL _Pragma("clang loop unroll(full)")
#else
#define PLC_UNROLL _Pragma("GCC unroll 16")
#endif

#define PLC_SET portable
#include "instruction_set.inc"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(PLC_AMX_EMULATION)  // tests: the matrix unit in plain C++
#include PLC_AMX_EMULATION
#endif

#if defined(PLC_HAS_AVX2_WITHOUT_F16C)
#define PLC_SET avx2_without_f16c
#define PLC_TARGET "avx2,fma"
#define PLC_AVX2
#include "instruction_set.inc"
#endif

#if defined(PLC_HAS_AVX2)
#define PLC_SET avx2
#define PLC_TARGET "avx2,fma,f16c"
#define PLC_AVX2
#define PLC_F16C
#include "instruction_set.inc"
#endif

#if defined(PLC_HAS_AVXVNNI)
#define PLC_SET avxvnni
#define PLC_TARGET "avx2,fma,f16c,avxvnni"
#define PLC_AVX2
#define PLC_F16C
#define PLC_VNNI
#include "instruction_set.inc"
#endif

#if defined(PLC_HAS_AVX512)
#define PLC_SET avx512
#define PLC_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"
#define PLC_AVX512
#include "instruction_set.inc"
#endif

#if defined(PLC_HAS_AVX512VNNI)
#define PLC_SET avx512vnni
#define PLC_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#define PLC_AVX512
#define PLC_VNNI
#include "instruction_set.inc"
#endif

#if defined(PLC_HAS_AMX)
#define PLC_SET amx
#define PLC_TARGET "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8"
#define PLC_AVX512
#define PLC_VNNI
#define PLC_AMX
#include "instruction_set.inc"
#endif
#endif

#if defined(__aarch64__)
#include <arm_neon.h>

#if defined(PLC_HAS_NEON)
#define PLC_SET neon
#define PLC_NEON
#include "instruction_set.inc"
#endif

#if defined(PLC_HAS_DOTPROD)
#define PLC_SET dotprod
#if !defined(__clang__)
#define PLC_TARGET "arch=armv8.2-a+dotprod"
#elif !defined(__ARM_FEATURE_DOTPROD)
#define PLC_TARGET "dotprod"
#endif
#define PLC_NEON
#define PLC_DOTPROD
#include "instruction_set.inc"
#endif

#if defined(PLC_HAS_I8MM)
#define PLC_SET i8mm
#if !defined(__clang__)
#define PLC_TARGET "arch=armv8.2-a+dotprod+i8mm"
#elif !defined(__ARM_FEATURE_MATMUL_INT8)
#define PLC_TARGET "dotprod,i8mm"
#endif
#define PLC_NEON
#define PLC_DOTPROD
#define PLC_I8MM
#include "instruction_set.inc"
#endif
#endif
