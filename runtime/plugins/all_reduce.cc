// The sum of a tensor over ranks, for TensorRT before 10.16, which has no layer for it.
//
//   plc_all_reduce(x) -> y          attribute nb_rank (int32): how many ranks, at least 2
//
// x and y have one shape and one type: float32, float16 or bfloat16, in linear order. Who runs an
// engine makes the communicator and sets it with plc_all_reduce_set_communicator, one per process;
// every rank must run its engine, or NCCL waits for the missing one.
//
// Not run by this project: it had no GPU.
#include <NvInfer.h>
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>
#include <optional>
#include <string>

namespace plc {
namespace {

using namespace nvinfer1;

constexpr char kName[] = "plc_all_reduce";
constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "";
constexpr char kRanks[] = "nb_rank";
constexpr int32_t kFailed = -1;

std::atomic<ncclComm_t> communicator{nullptr};
std::atomic<ILoggerFinder*> loggers{nullptr};

int32_t failed(const std::string& what) {
  const std::string message = std::string(kName) + ": " + what;
  ILoggerFinder* finder = loggers;
  ILogger* logger = finder ? finder->findLogger() : nullptr;
  if (logger) {
    logger->log(ILogger::Severity::kERROR, message.c_str());
  } else {
    std::fprintf(stderr, "%s\n", message.c_str());
  }
  return kFailed;
}

std::optional<ncclDataType_t> nccl_type(DataType type) {
  switch (type) {
    case DataType::kFLOAT: return ncclFloat32;
    case DataType::kHALF: return ncclFloat16;
    case DataType::kBF16: return ncclBfloat16;
    default: return std::nullopt;
  }
}

class AllReduce final : public IPluginV3,
                        public IPluginV3OneCore,
                        public IPluginV3OneBuild,
                        public IPluginV3OneRuntime {
 public:
  explicit AllReduce(int32_t ranks) : ranks_(ranks) {}
  AllReduce(const AllReduce&) = delete;  // fields_ points into this very object
  AllReduce& operator=(const AllReduce&) = delete;

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return new (std::nothrow) AllReduce(ranks_); }

  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t configurePlugin(const DynamicPluginTensorDesc*, int32_t inputs,
                          const DynamicPluginTensorDesc*, int32_t outputs) noexcept override {
    return inputs == 1 && outputs == 1 ? 0 : failed("one tensor goes in and one comes out");
  }
  int32_t getOutputDataTypes(DataType* outputs, int32_t, const DataType* inputs,
                             int32_t) const noexcept override {
    outputs[0] = inputs[0];
    return 0;
  }
  int32_t getOutputShapes(const DimsExprs* inputs, int32_t, const DimsExprs*, int32_t,
                          DimsExprs* outputs, int32_t, IExprBuilder&) noexcept override {
    outputs[0] = inputs[0];
    return 0;
  }
  bool supportsFormatCombination(int32_t position, const DynamicPluginTensorDesc* tensors, int32_t,
                                 int32_t) noexcept override {
    const PluginTensorDesc& tensor = tensors[position].desc;
    return tensor.format == TensorFormat::kLINEAR && nccl_type(tensor.type).has_value() &&
           tensor.type == tensors[0].desc.type;
  }

  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
  int32_t onShapeChange(const PluginTensorDesc*, int32_t, const PluginTensorDesc*,
                        int32_t) noexcept override {
    return 0;
  }
  int32_t enqueue(const PluginTensorDesc* x, const PluginTensorDesc*, const void* const* inputs,
                  void* const* outputs, void*, cudaStream_t stream) noexcept override {
    const ncclComm_t comm = communicator;
    if (!comm) return failed("no communicator: call plc_all_reduce_set_communicator first");
    int found = 0;
    if (const ncclResult_t result = ncclCommCount(comm, &found); result != ncclSuccess) {
      return failed(std::string("ncclCommCount: ") + ncclGetErrorString(result));
    }
    if (found != ranks_) {
      return failed("a communicator of " + std::to_string(found) + " ranks, where the engine is for " +
                    std::to_string(ranks_));
    }
    const std::optional<ncclDataType_t> type = nccl_type(x[0].type);
    if (!type) return failed("a type other than float32, float16 and bfloat16");
    size_t count = 1;
    for (int32_t axis = 0; axis < x[0].dims.nbDims; ++axis) count *= size_t(x[0].dims.d[axis]);
    const ncclResult_t result =
        ncclAllReduce(inputs[0], outputs[0], count, *type, ncclSum, comm, stream);
    if (result != ncclSuccess) {
      return failed(std::string("ncclAllReduce: ") + ncclGetErrorString(result));
    }
    return 0;
  }
  const PluginFieldCollection* getFieldsToSerialize() noexcept override { return &fields_; }

 private:
  const int32_t ranks_;
  const PluginField field_{kRanks, &ranks_, PluginFieldType::kINT32, 1};
  const PluginFieldCollection fields_{1, &field_};
};

class Creator final : public IPluginCreatorV3One {
 public:
  const char* getPluginName() const noexcept override { return kName; }
  const char* getPluginVersion() const noexcept override { return kVersion; }
  const char* getPluginNamespace() const noexcept override { return kNamespace; }
  const PluginFieldCollection* getFieldNames() noexcept override { return &fields_; }

  IPluginV3* createPlugin(const char*, const PluginFieldCollection* given,
                          TensorRTPhase) noexcept override {
    std::optional<int32_t> ranks;
    for (int32_t index = 0; given && index < given->nbFields; ++index) {
      const PluginField& field = given->fields[index];
      if (std::strcmp(field.name, kRanks) != 0) continue;
      if (field.type != PluginFieldType::kINT32 || field.length != 1 || !field.data) {
        failed("nb_rank must be one int32");
        return nullptr;
      }
      ranks = *static_cast<const int32_t*>(field.data);
    }
    if (!ranks) {
      failed("nb_rank is missing");
      return nullptr;
    }
    if (*ranks < 2) {
      failed("nb_rank must be at least 2, not " + std::to_string(*ranks));
      return nullptr;
    }
    return new (std::nothrow) AllReduce(*ranks);
  }

 private:
  const PluginField field_{kRanks, nullptr, PluginFieldType::kINT32, 1};
  const PluginFieldCollection fields_{1, &field_};
};

}  // namespace
}  // namespace plc

#define PLC_EXPORT extern "C" __attribute__((visibility("default")))

// Takes an ncclComm_t, which stays the caller's; null takes it away again. An engine that runs
// meanwhile uses the old or the new one.
PLC_EXPORT void plc_all_reduce_set_communicator(void* comm) {
  plc::communicator = static_cast<ncclComm_t>(comm);
}

// TensorRT's registry looks for these two when it loads a library.
PLC_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { plc::loggers = finder; }

PLC_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static plc::Creator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}
