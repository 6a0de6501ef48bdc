// The part of ONNX Runtime's C interface that sessions need: runtime/kernels/onnxruntime_abi.h says
// why it is declared here. tests/native/test_engine_in_cpp.py compares the numbers with ONNX
// Runtime's header where that is found.
#pragma once

#include "../../kernels/onnxruntime_abi.h"

namespace plc::ort {

struct Env;
struct Session;
struct RunOptions;
struct IoBinding;
struct MemoryInfo;
struct Allocator;
struct TypeInfo;
struct CudaOptions;
struct ProviderDevice;

// The version that is asked for: opset 24 needs its release, 1.23, and so do copies to a device.
constexpr uint32_t kSessionApiVersion = 23;

// A function of the table: its number, and its type.
template <typename Function>
struct Entry {
  size_t number;
};

template <typename... Given>
using Fallible = Entry<Status*(Given...)>;

inline constexpr Entry<const char*(const Status*)> kErrorMessage{2};
inline constexpr Fallible<int, const char*, Env**> kCreateEnv{3};
inline constexpr Fallible<const Env*> kDisableTelemetry{6};
inline constexpr Fallible<const Env*, const char*, const SessionOptions*, Session**> kCreateSession{7};
inline constexpr Fallible<SessionOptions**> kCreateOptions{10};
inline constexpr Fallible<SessionOptions*, int> kSetLogSeverity{22};
inline constexpr Fallible<SessionOptions*, int> kSetThreads{24};
inline constexpr Fallible<const Session*, size_t*> kGraphInputCount{30}, kGraphOutputCount{31};
inline constexpr Fallible<const Session*, size_t, TypeInfo**> kGraphInputType{33}, kGraphOutputType{34};
inline constexpr Fallible<const Session*, size_t, Allocator*, char**> kGraphInputName{36},
    kGraphOutputName{37};
inline constexpr Fallible<const MemoryInfo*, void*, size_t, const int64_t*, size_t, int, Value**>
    kCreateTensor{49};
inline constexpr Fallible<const TypeInfo*, const ShapeInfo**> kTensorOfType{55};
inline constexpr Fallible<const ShapeInfo*, int*> kElementType{60};
inline constexpr Fallible<const ShapeInfo*, size_t*> kAxes{61};
inline constexpr Fallible<const ShapeInfo*, int64_t*, size_t> kSizes{62};
inline constexpr Fallible<const ShapeInfo*, const char**, size_t> kSizeNames{63};
inline constexpr Fallible<int, int, MemoryInfo**> kCreateCpuMemory{69};
inline constexpr Fallible<Allocator*, size_t, void**> kTake{75};
inline constexpr Fallible<Allocator*, void*> kFree{76};
inline constexpr Fallible<Allocator**> kDefaultAllocator{78};
inline constexpr Entry<void(Status*)> kFreeStatus{93};
inline constexpr Entry<void(MemoryInfo*)> kFreeMemory{94};
inline constexpr Entry<void(Session*)> kFreeSession{95};
inline constexpr Entry<void(Value*)> kFreeValue{96};
inline constexpr Entry<void(TypeInfo*)> kFreeType{98};
inline constexpr Entry<void(SessionOptions*)> kFreeOptions{100};
inline constexpr Fallible<SessionOptions*, const char*, const char*> kAddEntry{130};
inline constexpr Fallible<Session*, const RunOptions*, const IoBinding*> kRunBound{133};
inline constexpr Fallible<Session*, IoBinding**> kCreateBinding{134};
inline constexpr Entry<void(IoBinding*)> kFreeBinding{135};
inline constexpr Fallible<IoBinding*, const char*, const Value*> kBindInput{136}, kBindOutput{137};
inline constexpr Fallible<SessionOptions*, const CudaOptions*> kAppendCuda{204};
inline constexpr Fallible<CudaOptions**> kCreateCuda{205};
inline constexpr Fallible<CudaOptions*, const char* const*, const char* const*, size_t> kUpdateCuda{206};
inline constexpr Entry<void(CudaOptions*)> kFreeCuda{208};
inline constexpr Entry<void(const MemoryInfo*, int*)> kMemoryType{225};
inline constexpr Fallible<Env*, const char*, const char*> kRegisterPlugIn{301};
inline constexpr Fallible<const Env*, const ProviderDevice* const**, size_t*> kDevices{303};
inline constexpr Fallible<SessionOptions*, Env*, const ProviderDevice* const*, size_t, const char* const*,
                          const char* const*, size_t>
    kAppendDevices{304};
inline constexpr Entry<const char*(const ProviderDevice*)> kDeviceProvider{312};
inline constexpr Entry<uint32_t(const MemoryInfo*)> kMemoryVendor{322};
inline constexpr Entry<const MemoryInfo*(const ProviderDevice*, int)> kDeviceMemory{374};
inline constexpr Fallible<Env*, const MemoryInfo*, Allocator**> kSharedAllocator{376};
inline constexpr Fallible<const Env*, const Value* const*, Value* const*, void*, size_t> kCopy{386};

// ONNX's numbers for types of elements.
constexpr int kTypeFloat = 1, kTypeInt64 = 7, kTypeFloat16 = 10, kTypeBfloat16 = 16;

}  // namespace plc::ort
