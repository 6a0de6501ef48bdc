// A compiled graph in ONNX Runtime: loaded, checked, and its inputs and outputs bound to memory.
// (runtime/engines/onnxruntime/graph.py is the same in Python.)
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "contract.h"
#include "device.h"
#include "onnxruntime.h"
#include "open_engine.h"

namespace plc {

// (input, output) of a cache, in the graph's order: each layer's keys, then its values.
std::string cache_name(size_t cache, bool is_input);
inline size_t cache_count(const GraphContract& contract) { return 2 * static_cast<size_t>(contract.layers); }

// Whether a provider's tensors lie in a GPU's memory.
bool is_on_gpu(const Provider& provider);

class OnnxGraph {
 public:
  // `dtype`: of its caches.
  static Result<std::unique_ptr<OnnxGraph>> open(const std::string& model, const GraphContract& contract,
                                                 Dtype dtype, const EngineOptions& options);
  OnnxGraph(const OnnxGraph&) = delete;
  OnnxGraph& operator=(const OnnxGraph&) = delete;
  ~OnnxGraph();

  // Copies numbers to an input, whose memory is bound again only where its size changes.
  Status give(const char* name, const std::vector<int64_t>& shape, const int64_t* numbers);
  Status give(const char* name, const std::vector<int64_t>& shape, const float* numbers);
  Status give(const char* name, const std::vector<int64_t>& numbers) {
    return give(name, {static_cast<int64_t>(numbers.size())}, numbers.data());
  }
  // Where a provider's tensors lie; null where that is the process's own memory.
  Device* device() const { return device_.get(); }
  // Binds a cache, whose input and output are the same memory: of the device, or of the process where
  // `device` is null. The caller holds it.
  Status bind_cache(size_t cache, const std::vector<int64_t>& shape, void* memory, const Device* device);
  // Binds outputs to memory that the caller holds.
  Status bind_logits(const std::vector<int64_t>& shape, float* memory);
  Status bind_tokens(int64_t count, int64_t* memory);
  Status run();

 private:
  struct Given {
    std::string name;
    std::vector<int64_t> shape;
    std::unique_ptr<char[]> memory;
  };
  // An input or output, and its memory.
  struct Bound {
    bool is_input;
    std::string name;
    const ort::MemoryInfo* where;
    int type;
    std::vector<int64_t> shape;
    void* memory;
    size_t size;
  };

  OnnxGraph(const OnnxRuntime& runtime, std::string model, Dtype dtype);
  Status load(const EngineOptions& options);
  Status check(const GraphContract& contract);
  Status give(const char* name, int type, const std::vector<int64_t>& shape, const void* numbers,
              size_t size);
  Status bind(const Bound& bound);
  Status keep_bound(Bound bound);
  Error failure(const char* doing, const std::string& said) const;

  const OnnxRuntime& runtime_;
  std::string model_;
  Dtype dtype_;
  ort::MemoryInfo* place_ = nullptr;  // the process's own memory
  ort::Session* session_ = nullptr;
  ort::IoBinding* binding_ = nullptr;
  std::unique_ptr<Device> device_{};
  bool on_cpu_ = true;  // whether the provider is ONNX Runtime's for the CPU
  std::vector<Given> given_{};
  std::vector<Bound> inputs_{};  // that are bound again for each run
};

}  // namespace plc
