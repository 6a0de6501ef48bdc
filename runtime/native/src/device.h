// Memory of a device that providers of ONNX Runtime compute on, reached through its interface alone: no
// library of the device's maker is needed. With ONNX Runtime's own provider for CUDA it was never run.
#pragma once

#include <memory>
#include <vector>

#include "onnxruntime.h"
#include "result.h"

namespace plc {

class Device {
 public:
  // The device that a provider was given; null where its tensors lie in the process's own memory, and
  // where an address is not known to be a number that counts bytes.
  // `host`: the process's own memory; it must live as long as copies are made.
  static Result<std::unique_ptr<Device>> of(const OnnxRuntime& runtime, const ort::ProviderDevice* device,
                                            const ort::MemoryInfo* host);

  const ort::MemoryInfo* place() const { return place_; }

  // Memory that is in use until it is freed; what it holds is not known.
  Result<char*> take(size_t bytes);
  void free(char* memory);

  struct Piece {
    const void* from;
    void* to;
    size_t bytes;
  };
  // Copies to the device: from the process's own memory, or from the device's, where no piece may
  // overlap its target. All is done when it returns.
  enum class From { kHost, kDevice };
  Status copy(From from, const std::vector<Piece>& pieces);

 private:
  Device(const OnnxRuntime& runtime, const ort::MemoryInfo* place, const ort::MemoryInfo* host,
         ort::Allocator* allocator)
      : runtime_(runtime), place_(place), host_(host), allocator_(allocator) {}

  const OnnxRuntime& runtime_;
  const ort::MemoryInfo *place_, *host_;
  ort::Allocator* allocator_;
};

}  // namespace plc
