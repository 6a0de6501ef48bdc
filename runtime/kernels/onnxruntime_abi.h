// The part of ONNX Runtime's C interface that custom operators need.
//
// ONNX Runtime's wheels carry no headers, and a build should ask for nothing but a compiler. The
// interface is a binary one: tables of function pointers that only grow at their end, so a slot
// keeps its number in every later version. The numbers are those of onnxruntime_c_api.h;
// tests/runtime/test_kernels.py compares them with that header where it is found.
#pragma once

#include <cstddef>
#include <cstdint>

namespace plc::ort {

struct Status;
struct Value;
struct ShapeInfo;
struct KernelInfo;
struct KernelContext;
struct SessionOptions;
struct Domain;

// OrtApi: an array of function pointers.
using Api = void* const*;

// OrtApiBase.
struct ApiBase {
  Api (*get_api)(uint32_t version);
  const char* (*version)();
};

// The version that is asked for: the first that has all of these slots and fields of operators.
constexpr uint32_t kApiVersion = 18;

enum Slot : size_t {
  kCreateStatus = 0,
  kCreateDomain = 26,
  kDomainAdd = 27,
  kAddDomain = 28,
  kTensorData = 51,
  kDimensionsCount = 61,
  kDimensions = 62,
  kTensorShape = 65,
  kAttributeFloat = 85,
  kAttributeInt = 86,
  kAttributeText = 87,
  kInputCount = 88,
  kGetInput = 90,
  kGetOutput = 91,
  kReleaseStatus = 93,
  kReleaseShape = 99,
  kStream = 193,
  kParallelFor = 274,
};

enum ElementType : int { kAny = 0, kFloat = 1, kUint8 = 2, kInt64 = 7, kFloat16 = 10 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };

// OrtCustomOp, with the fields of version 18. Those left null are never called or may be null.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, Api, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy)(void*);
  Characteristic (*input_characteristic)(const CustomOp*, size_t);
  Characteristic (*output_characteristic)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_min)(const CustomOp*);
  int (*variadic_input_same)(const CustomOp*);
  int (*variadic_output_min)(const CustomOp*);
  int (*variadic_output_same)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, Api, const KernelInfo*, void**);
  Status* (*compute_v2)(void*, KernelContext*);
  Status* (*infer_shapes)(const CustomOp*, void*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  size_t (*may_inplace)(int**, int**);
  void (*release_inplace)(int*, int*);
  size_t (*alias_map)(int**, int**);
  void (*release_alias)(int*, int*);
};

}  // namespace plc::ort
