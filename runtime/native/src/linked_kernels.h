// What this library calls of the kernels (runtime/kernels), which are linked into it. Built with
// PLC_WITHOUT_KERNELS it has none: then ONNX Runtime runs the bodies of their calls.
#pragma once

#include "../../kernels/onnxruntime_abi.h"

#ifndef PLC_WITHOUT_KERNELS
extern "C" {
plc::ort::Status* RegisterCustomOps(plc::ort::SessionOptions* options, const plc::ort::ApiBase* base);
const char* plc_kernels_available();
const char* plc_kernels_name();
int64_t plc_prefix_hold(const float* numbers, size_t layers, size_t kv_heads, size_t length, size_t dim,
                        size_t bits);
void plc_prefix_drop(int64_t id);
}
#endif

namespace plc {

#ifdef PLC_WITHOUT_KERNELS
constexpr bool kHasKernels = false;
#else
constexpr bool kHasKernels = true;
#endif

// Graphs that need a later interface of the kernels are not run: they would be computed wrong.
constexpr int kKernelsInterface = 5;

}  // namespace plc
