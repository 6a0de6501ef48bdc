// An operator for ONNX Runtime: what its kernel asks for, and the table of callbacks around it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "onnxruntime_abi.h"

#define PLC_EXPORT extern "C" __attribute__((visibility("default")))

namespace plc::kernels {

// The table that ONNX Runtime gave.
inline ort::Api api = nullptr;

template <class F>
F slot(ort::Slot index) {
  return reinterpret_cast<F>(const_cast<void*>(api[index]));
}

inline ort::Status* failed(const char* message) {
  constexpr int kInvalidArgument = 2;
  return slot<ort::Status* (*)(int, const char*)>(ort::kCreateStatus)(kInvalidArgument, message);
}

// Whether a call succeeded.
inline bool succeeded(ort::Status* status) {
  if (status) slot<void (*)(ort::Status*)>(ort::kReleaseStatus)(status);
  return !status;
}

inline void check(ort::Status* status) {
  if (!succeeded(status)) throw std::runtime_error("ONNX Runtime refused a call of its C interface");
}

inline void expect(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

// False where the operator has no attribute of this name and type.
inline bool read_attribute(const ort::KernelInfo* info, const char* name, int64_t& value) {
  using Get = ort::Status* (*)(const ort::KernelInfo*, const char*, int64_t*);
  return succeeded(slot<Get>(ort::kAttributeInt)(info, name, &value));
}
inline bool read_attribute(const ort::KernelInfo* info, const char* name, float& value) {
  using Get = ort::Status* (*)(const ort::KernelInfo*, const char*, float*);
  return succeeded(slot<Get>(ort::kAttributeFloat)(info, name, &value));
}

// An attribute that may be left out. One of the other type is a mistake, not one left out.
inline std::optional<size_t> optional_int(const ort::KernelInfo* info, const char* name) {
  int64_t value = 0;
  if (!read_attribute(info, name, value)) {
    float other;
    expect(!read_attribute(info, name, other), (std::string(name) + " must be an integer").c_str());
    return std::nullopt;
  }
  expect(value >= 0, (std::string(name) + " must not be negative").c_str());
  return size_t(value);
}
inline std::optional<float> optional_float(const ort::KernelInfo* info, const char* name) {
  float value = 0;
  if (read_attribute(info, name, value)) return value;
  int64_t other;
  expect(!read_attribute(info, name, other), (std::string(name) + " must be a float").c_str());
  return std::nullopt;
}

inline size_t attribute(const ort::KernelInfo* info, const char* name) {
  const std::optional<size_t> value = optional_int(info, name);
  expect(value.has_value(), (std::string(name) + " is missing").c_str());
  return *value;
}

inline std::string text_attribute(const ort::KernelInfo* info, const char* name) {
  char text[64] = {};
  size_t size = sizeof(text);
  using Get = ort::Status* (*)(const ort::KernelInfo*, const char*, char*, size_t*);
  check(slot<Get>(ort::kAttributeText)(info, name, text, &size));
  return text;
}

struct Tensor {
  void* data = nullptr;
  std::vector<int64_t> shape;

  // Whether the operator has this input. One without elements may have no data.
  bool given() const { return data || !shape.empty(); }
  template <class T>
  T* as() const { return static_cast<T*>(data); }
  size_t size() const {
    size_t count = 1;
    for (const int64_t d : shape) count *= size_t(d);
    return count;
  }
};

inline void* data_of(const ort::Value* value) {
  void* data = nullptr;
  check(slot<ort::Status* (*)(const ort::Value*, void**)>(ort::kTensorData)(value, &data));
  return data;
}

// An input; an optional one may be left out.
inline Tensor input(ort::KernelContext* context, size_t index) {
  size_t count = 0;
  check(slot<ort::Status* (*)(const ort::KernelContext*, size_t*)>(ort::kInputCount)(context, &count));
  if (index >= count) return {};
  const ort::Value* value = nullptr;
  check(slot<ort::Status* (*)(const ort::KernelContext*, size_t, const ort::Value**)>(ort::kGetInput)(
      context, index, &value));
  if (!value) return {};
  ort::ShapeInfo* info = nullptr;
  check(slot<ort::Status* (*)(const ort::Value*, ort::ShapeInfo**)>(ort::kTensorShape)(value, &info));
  size_t axes = 0;
  check(slot<ort::Status* (*)(const ort::ShapeInfo*, size_t*)>(ort::kDimensionsCount)(info, &axes));
  Tensor tensor;
  tensor.shape.resize(axes);
  check(slot<ort::Status* (*)(const ort::ShapeInfo*, int64_t*, size_t)>(ort::kDimensions)(
      info, tensor.shape.data(), axes));
  slot<void (*)(ort::ShapeInfo*)>(ort::kReleaseShape)(info);
  tensor.data = data_of(value);
  return tensor;
}

inline void* output(ort::KernelContext* context, size_t index, const std::vector<int64_t>& shape) {
  ort::Value* value = nullptr;
  check(slot<ort::Status* (*)(ort::KernelContext*, size_t, const int64_t*, size_t, ort::Value**)>(
      ort::kGetOutput)(context, index, shape.data(), shape.size(), &value));
  return data_of(value);
}

// Calls body(0) to body(count - 1) on ONNX Runtime's own threads.
template <class Body>
void parallel(ort::KernelContext* context, size_t count, const Body& body) {
  if (count == 1) return body(size_t{0});
  // Nothing may be thrown through ONNX Runtime's threads. All inputs are checked before, so a body can only
  // fail where it takes memory: the matrix unit's codes and attention's blocks are vectors of each thread.
  struct Work {
    const Body& body;
    std::atomic<bool> failed{false};
  } work{body};
  const auto call = [](void* data, size_t index) {
    auto& shared = *static_cast<Work*>(data);
    try {
      shared.body(index);
    } catch (...) {
      shared.failed = true;
    }
  };
  using Call = void (*)(void*, size_t);
  check(slot<ort::Status* (*)(const ort::KernelContext*, Call, size_t, size_t, void*)>(
      ort::kParallelFor)(context, call, count, 0, &work));
  expect(!work.failed, "a part of it failed: out of memory");
}

// ONNX Runtime's table of callbacks for an operator.
template <class Op>
struct Definition : ort::CustomOp {
  Definition() : ort::CustomOp{} {
    version = ort::kApiVersion;
    name = [](const CustomOp*) { return Op::kName; };
    provider = [](const CustomOp*) { return Op::kProvider; };
    input_count = [](const CustomOp*) { return std::size(Op::kInputs); };
    input_type = [](const CustomOp*, size_t i) { return Op::kInputs[i]; };
    output_count = [](const CustomOp*) { return std::size(Op::kOutputs); };
    output_type = [](const CustomOp*, size_t i) { return Op::kOutputs[i]; };
    input_characteristic = [](const CustomOp*, size_t i) {
      return i < Op::kNeeded ? ort::kRequired : ort::kOptional;
    };
    output_characteristic = [](const CustomOp*, size_t) { return ort::kRequired; };
    input_memory = [](const CustomOp*, size_t) { return 0; };
    variadic_input_min = variadic_input_same = [](const CustomOp*) { return 0; };
    variadic_output_min = variadic_output_same = [](const CustomOp*) { return 0; };
    start_version = [](const CustomOp*) { return 1; };
    end_version = [](const CustomOp*) { return 1; };
    destroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
    create_kernel_v2 = [](const CustomOp*, ort::Api, const ort::KernelInfo* info,
                          void** kernel) -> ort::Status* {
      try {
        *kernel = new Op(info);
        return nullptr;
      } catch (const std::exception& error) {
        return failed((std::string(Op::kName) + ": " + error.what()).c_str());
      }
    };
    compute_v2 = [](void* kernel, ort::KernelContext* context) -> ort::Status* {
      try {
        static_cast<const Op*>(kernel)->compute(context);
        return nullptr;
      } catch (const std::exception& error) {
        return failed((std::string(Op::kName) + ": " + error.what()).c_str());
      }
    };
  }
};

}  // namespace plc::kernels
