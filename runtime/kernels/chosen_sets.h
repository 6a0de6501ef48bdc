// Which sets are built: all that the compiler can make for this processor, or with PLC_CHOSEN_SETS those named
// beside it (-DPLC_CHOSEN_SETS -DPLC_HAS_AVX2 ...). The portable one is always there.
#pragma once

#if !defined(PLC_CHOSEN_SETS)
#if defined(__x86_64__)
#define PLC_HAS_AVX2_WITHOUT_F16C
#define PLC_HAS_AVX2
#define PLC_HAS_AVXVNNI
#define PLC_HAS_AVX512
#define PLC_HAS_AVX512VNNI
#define PLC_HAS_AMX
#elif defined(__aarch64__)
#define PLC_HAS_NEON
#if !defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD)
#define PLC_HAS_DOTPROD
#endif
#if !defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_MATMUL_INT8)
#define PLC_HAS_I8MM
#endif
#endif
#endif
