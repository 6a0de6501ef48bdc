// The functions of kernels.h for AVX2. Headers stand above the pragma: what they define inline must run
// on every machine.
#if defined(__x86_64__)
#include "kernels.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#pragma GCC target("avx2,fma")
#define PLC_AVX2

namespace plc {
namespace avx2 {
#include "kernels.inc"
}
const Functions kAvx2 = {"avx2", avx2::round_rows, avx2::multiply, avx2::look_up, avx2::write_cache, avx2::attend};
}  // namespace plc
#endif
