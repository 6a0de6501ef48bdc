// The functions of kernels.h for AMX. Headers stand above the pragma: what they define inline must run
// on every machine.
#if defined(__x86_64__)
#include "kernels.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8")
#define PLC_AVX512
#define PLC_AMX

namespace plc {
namespace amx {
#include "kernels.inc"
}
const Functions kAmx = {"amx", amx::round_rows, amx::multiply, amx::look_up, amx::write_cache, amx::attend};
}  // namespace plc
#endif
