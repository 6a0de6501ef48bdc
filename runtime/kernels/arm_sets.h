// Which sets for ARM the compiler can make: all of them, or those that the whole build is for.
#pragma once

#if defined(__aarch64__)
#if !defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD)
#define PLC_HAS_DOTPROD
#endif
#if !defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_MATMUL_INT8)
#define PLC_HAS_I8MM
#endif
#endif
