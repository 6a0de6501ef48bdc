// The functions of kernels.h for AVX512. Headers stand above the pragma: what they define inline must run
// on every machine.
#if defined(__x86_64__)
#include "kernels.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#define PLC_AVX512

namespace plc {
namespace avx512 {
#include "kernels.inc"
}
const Functions kAvx512 = {"avx512", avx512::round_rows, avx512::multiply, avx512::look_up, avx512::write_cache, avx512::attend};
}  // namespace plc
#endif
