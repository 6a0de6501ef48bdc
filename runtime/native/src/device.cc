#include "device.h"

#include "words.h"

namespace plc {
namespace {

constexpr int kTypeByte = 2, kDefaultMemory = 0, kGpu = 1;
// Of NVIDIA and AMD, whose providers give out the pointers of CUDA and HIP.
constexpr uint32_t kVendors[] = {0x10de, 0x1002};

Error failure(const char* doing, const std::string& said) {
  return {ErrorCode::kRuntime, joined({doing, " the memory of the provider's device: ", said,
                                       ". Ask for fewer requests at once, or for another provider."})};
}

// Frees what `copy` makes.
struct Values {
  const OnnxRuntime& runtime;
  std::vector<ort::Value*> held{};

  ~Values() {
    for (ort::Value* value : held) runtime.call(ort::kFreeValue, value);
  }
};

}  // namespace

Result<std::unique_ptr<Device>> Device::of(const OnnxRuntime& runtime, const ort::ProviderDevice* device,
                                           const ort::MemoryInfo* host) {
  std::unique_ptr<Device> none;
  const ort::MemoryInfo* place = runtime.call(ort::kDeviceMemory, device, kDefaultMemory);
  if (place == nullptr) return none;
  int type = 0;
  runtime.call(ort::kMemoryType, place, &type);
  const uint32_t vendor = runtime.call(ort::kMemoryVendor, place);
  if (type != kGpu || (vendor != kVendors[0] && vendor != kVendors[1])) return none;
  std::string said;
  ort::Allocator* allocator = nullptr;
  if (runtime.failed(runtime.call(ort::kSharedAllocator, runtime.env(), place, &allocator), said))
    return failure("reaching", said);
  if (allocator == nullptr) return failure("reaching", "ONNX Runtime gives no allocator for it");
  return std::unique_ptr<Device>(new Device(runtime, place, host, allocator));
}

Result<char*> Device::take(size_t bytes) {
  std::string said;
  void* memory = nullptr;
  if (runtime_.failed(runtime_.call(ort::kTake, allocator_, bytes, &memory), said))
    return failure("taking", said);
  if (memory == nullptr) return failure("taking", joined({bytes, " bytes are not free"}));
  return static_cast<char*>(memory);
}

void Device::free(char* memory) {
  std::string said;
  static_cast<void>(runtime_.failed(runtime_.call(ort::kFree, allocator_, memory), said));
}

Status Device::copy(From from, const std::vector<Piece>& pieces) {
  std::string said;
  Values sources{runtime_}, targets{runtime_};
  const auto add = [&](Values& values, const ort::MemoryInfo* place, void* memory, size_t bytes) {
    const auto size = static_cast<int64_t>(bytes);
    ort::Value* value = nullptr;
    if (runtime_.failed(
            runtime_.call(ort::kCreateTensor, place, memory, bytes, &size, size_t{1}, kTypeByte, &value),
            said))
      return false;
    values.held.push_back(value);
    return true;
  };
  for (const Piece& piece : pieces)
    if (!add(sources, from == From::kHost ? host_ : place_, const_cast<void*>(piece.from), piece.bytes) ||
        !add(targets, place_, piece.to, piece.bytes))
      return failure("copying to", said);
  if (pieces.empty()) return {};
  if (runtime_.failed(runtime_.call(ort::kCopy, runtime_.env(), sources.held.data(), targets.held.data(),
                                    nullptr, pieces.size()),
                      said))
    return failure("copying to", said);
  return {};
}

}  // namespace plc
