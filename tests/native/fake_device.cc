// A plug-in provider for ONNX Runtime, for tests: a device of its own on any machine.
//
// The device's memory is memory of the process that is open within the device's own copies and
// computations only: whoever else reads or writes it is ended by a signal. Of a graph it takes the nodes
// `Abs` of whole numbers, so whatever these are given has to get there. It writes to the file that
// PLC_FAKE_LOG names what it is asked for. PLC_FAKE_VENDOR: whose device it says it is, else NVIDIA's.
//
// (The structures are those of ONNX Runtime's plug-in interface, version 23, as far as they are needed:
// runtime/kernels/onnxruntime_abi.h says why they are declared here.)
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "onnxruntime_slots.h"

namespace {

using plc::ort::Allocator;
using plc::ort::Api;
using plc::ort::ApiBase;
using plc::ort::Entry;
using plc::ort::Fallible;
using plc::ort::KernelContext;
using plc::ort::MemoryInfo;
using plc::ort::ProviderDevice;
using plc::ort::ShapeInfo;
using plc::ort::Status;
using plc::ort::Value;

struct Hardware;
struct Graph;
struct Node;
struct Support;
struct MemoryDevice;

constexpr uint32_t kVersion = plc::ort::kSessionApiVersion;
constexpr int kNvidia = 0x10de, kCpu = 0, kGpu = 1, kNotImplemented = 9;

constexpr Entry<Status*(int, const char*)> kCreateStatus{0};
constexpr Fallible<const Value*, void**> kData{51};
constexpr Fallible<const ShapeInfo*, size_t*> kElements{64};
constexpr Fallible<const Value*, ShapeInfo**> kShape{65};
constexpr Fallible<const KernelContext*, size_t, const Value**> kGetInput{90};
constexpr Fallible<KernelContext*, size_t, const int64_t*, size_t, Value**> kGetOutput{91};
constexpr Entry<void(ShapeInfo*)> kFreeShape{99};
constexpr Fallible<const void*, const char*, char*, size_t*> kOption{238};
constexpr Entry<int(const Hardware*)> kHardwareType{307};
constexpr Entry<Api()> kPlugInApi{317};
constexpr Fallible<const Value*, size_t*> kBytes{318};
constexpr Fallible<const char*, int, uint32_t, int32_t, int, size_t, int, MemoryInfo**> kCreateMemory{320};
constexpr Fallible<const Graph*, size_t*> kNodeCount{344};
constexpr Fallible<const Graph*, const Node**, size_t> kNodes{345};
constexpr Fallible<const Node*, const char**> kOperator{350};
// Of the plug-in interface.
constexpr Fallible<void*, const Hardware*, const void*, const void*, ProviderDevice**> kCreateDevice{0};
constexpr Fallible<Support*, const Node* const*, size_t, const void*> kTake{2};
constexpr Fallible<ProviderDevice*, const MemoryInfo*> kAddMemory{5};
constexpr Entry<int(const MemoryDevice*)> kMemoryType{9};
constexpr Entry<uint32_t(const MemoryDevice*)> kMemoryVendor{11};

Api api, plug_in;

template <typename Returned, typename... Given>
Returned call(Entry<Returned(Given...)> entry, std::common_type_t<Given>... given) {
  return reinterpret_cast<Returned (*)(Given...)>(api[entry.number])(given...);
}

template <typename Returned, typename... Given>
Returned call_plug_in(Entry<Returned(Given...)> entry, std::common_type_t<Given>... given) {
  return reinterpret_cast<Returned (*)(Given...)>(plug_in[entry.number])(given...);
}

#define PLC_UNLESS_FAILED(call_) \
  if (Status* status = (call_)) return status

void log(const char* what, size_t number) {
  const char* path = std::getenv("PLC_FAKE_LOG");
  std::FILE* file = path == nullptr ? nullptr : std::fopen(path, "a");
  if (file == nullptr) return;
  std::fprintf(file, "%s %zu\n", what, number);
  std::fclose(file);
}

uint32_t vendor() {
  const char* said = std::getenv("PLC_FAKE_VENDOR");
  return static_cast<uint32_t>(said == nullptr ? kNvidia : std::atoi(said));
}

std::mutex mutex;
std::map<const char*, size_t> blocks;

// Opens the block that an address lies in; other memory is left alone.
class Opened {
 public:
  explicit Opened(const void* address) {
    const auto* at = static_cast<const char*>(address);
    auto block = blocks.upper_bound(at);
    if (block == blocks.begin() || at >= (--block)->first + block->second) return;
    block_ = const_cast<char*>(block->first);
    size_ = block->second;
    ::mprotect(block_, size_, PROT_READ | PROT_WRITE);
  }
  ~Opened() {
    if (block_ != nullptr) ::mprotect(block_, size_, PROT_NONE);
  }

 private:
  char* block_ = nullptr;
  size_t size_ = 0;
};

// Within one block, both ends close it.
void copy(void* to, const void* from, size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  const Opened source(from), target(to);
  std::memmove(to, from, bytes);
}

struct Memory {  // OrtAllocator
  uint32_t version = kVersion;
  void* (*take)(Memory*, size_t) = [](Memory*, size_t bytes) -> void* {
    constexpr size_t kPage = 4096;
    const size_t size = (bytes + kPage - 1) / kPage * kPage;
    void* found = size == 0 ? MAP_FAILED : ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) return nullptr;
    const std::lock_guard<std::mutex> lock(mutex);
    blocks[static_cast<char*>(found)] = size;
    log("take", bytes);
    // What a device's memory holds at first is not zeros.
    const Opened opened(found);
    std::memset(found, 0xff, size);
    return found;
  };
  void (*free)(Memory*, void*) = [](Memory*, void* address) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto block = blocks.find(static_cast<char*>(address));
    if (block == blocks.end()) return;
    ::munmap(address, block->second);
    log("free", block->second);
    blocks.erase(block);
  };
  const MemoryInfo* (*about)(const Memory*) = [](const Memory* memory) { return memory->info; };
  void* (*reserve)(Memory*, size_t) = take;
  void* not_needed[2] = {};  // statistics, streams
  const MemoryInfo* info = nullptr;
};

struct Copies {  // OrtDataTransferImpl
  uint32_t version = kVersion;
  void (*release)(Copies*) = [](Copies* copies) { delete copies; };
  bool (*can)(const Copies*, const MemoryDevice*, const MemoryDevice*) = [](const Copies*, const MemoryDevice* from,
                                                                           const MemoryDevice* to) {
    const auto type = [](const MemoryDevice* device) { return call_plug_in(kMemoryType, device); };
    const auto ours = [&type](const MemoryDevice* device) {
      return type(device) == kGpu && call_plug_in(kMemoryVendor, device) == vendor();
    };
    return (ours(from) && (ours(to) || type(to) == kCpu)) || (type(from) == kCpu && ours(to));
  };
  Status* (*run)(Copies*, const Value**, Value**, void**, size_t) = [](Copies*, const Value** from, Value** to, void**,
                                                                      size_t count) -> Status* {
    for (size_t k = 0; k < count; ++k) {
      size_t bytes = 0, room = 0;
      void *source = nullptr, *target = nullptr;
      PLC_UNLESS_FAILED(call(kBytes, from[k], &bytes));
      PLC_UNLESS_FAILED(call(kBytes, to[k], &room));
      if (bytes != room) return call(kCreateStatus, kNotImplemented, "a copy to another size");
      PLC_UNLESS_FAILED(call(kData, from[k], &source));
      PLC_UNLESS_FAILED(call(kData, to[k], &target));
      if (bytes > 0) copy(target, source, bytes);
    }
    log("copy", count);
    return nullptr;
  };
};

struct Computing {  // OrtNodeComputeInfo
  uint32_t version = kVersion;
  Status* (*begin)(Computing*, void*, void**) = [](Computing*, void*, void** state) -> Status* {
    *state = nullptr;
    return nullptr;
  };
  Status* (*run)(Computing*, void*, KernelContext*) = [](Computing*, void*, KernelContext* context) -> Status* {
    const Value* given = nullptr;
    ShapeInfo* shape = nullptr;
    size_t axes = 0, count = 0;
    PLC_UNLESS_FAILED(call(kGetInput, context, size_t{0}, &given));
    PLC_UNLESS_FAILED(call(kShape, given, &shape));
    PLC_UNLESS_FAILED(call(plc::ort::kAxes, shape, &axes));
    std::vector<int64_t> sizes(axes);
    PLC_UNLESS_FAILED(call(plc::ort::kSizes, shape, sizes.data(), axes));
    PLC_UNLESS_FAILED(call(kElements, shape, &count));
    call(kFreeShape, shape);
    Value* result = nullptr;
    void *from = nullptr, *to = nullptr;
    PLC_UNLESS_FAILED(call(kGetOutput, context, size_t{0}, sizes.data(), axes, &result));
    PLC_UNLESS_FAILED(call(kData, given, &from));
    PLC_UNLESS_FAILED(call(kData, result, &to));
    const std::lock_guard<std::mutex> lock(mutex);
    const Opened source(from), target(to);
    for (size_t k = 0; k < count; ++k) static_cast<int64_t*>(to)[k] = std::llabs(static_cast<int64_t*>(from)[k]);
    return nullptr;
  };
  void (*end)(Computing*, void*) = [](Computing*, void*) {};
};

std::string name;

struct Provider {  // OrtEp
  uint32_t version = kVersion;
  const char* (*called)(const Provider*) = [](const Provider*) { return name.c_str(); };
  Status* (*choose)(Provider*, const Graph*, Support*) = [](Provider*, const Graph* graph, Support* support) -> Status* {
    size_t count = 0, taken = 0;
    PLC_UNLESS_FAILED(call(kNodeCount, graph, &count));
    std::vector<const Node*> nodes(count);
    PLC_UNLESS_FAILED(call(kNodes, graph, nodes.data(), count));
    for (const Node* node : nodes) {
      const char* is = nullptr;
      PLC_UNLESS_FAILED(call(kOperator, node, &is));
      if (std::strcmp(is, "Abs") != 0) continue;
      PLC_UNLESS_FAILED(call_plug_in(kTake, support, &node, size_t{1}, nullptr));
      ++taken;
    }
    log("nodes", taken);
    return nullptr;
  };
  Status* (*compile)(Provider*, const Graph**, const Node**, size_t, Computing**, Node**) =
      [](Provider*, const Graph**, const Node**, size_t count, Computing** found, Node**) -> Status* {
    for (size_t k = 0; k < count; ++k) found[k] = new Computing;
    return nullptr;
  };
  void (*forget)(Provider*, Computing**, size_t) = [](Provider*, Computing** all, size_t count) {
    for (size_t k = 0; k < count; ++k) delete all[k];
  };
  void* not_needed[8] = {};
};

struct Factory {  // OrtEpFactory
  uint32_t version = kVersion;
  const char* (*called)(const Factory*) = [](const Factory*) { return name.c_str(); };
  const char* (*by)(const Factory*) = [](const Factory*) { return "tests"; };
  Status* (*devices)(Factory*, const Hardware* const*, size_t, ProviderDevice**, size_t, size_t*) =
      [](Factory* factory, const Hardware* const* all, size_t count, ProviderDevice** found, size_t most,
         size_t* number) -> Status* {
    *number = 0;
    for (size_t k = 0; k < count && most > 0 && *number == 0; ++k) {
      if (call(kHardwareType, all[k]) != kCpu) continue;
      PLC_UNLESS_FAILED(call_plug_in(kCreateDevice, factory, all[k], nullptr, nullptr, found));
      PLC_UNLESS_FAILED(call_plug_in(kAddMemory, *found, factory->info));
      *number = 1;
    }
    return nullptr;
  };
  Status* (*create)(Factory*, const Hardware* const*, const void* const*, size_t, const void*, const void*,
                    Provider**) = [](Factory*, const Hardware* const*, const void* const*, size_t, const void* options,
                                     const void*, Provider** made) -> Status* {
    // ONNX Runtime hands options on with the provider's name, in lower case, before theirs.
    std::string key = "ep." + name + ".number";
    for (char& c : key)
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    char text[16] = "0";
    size_t size = sizeof text;
    if (Status* status = call(kOption, options, key.c_str(), text, &size)) call(plc::ort::kFreeStatus, status);
    log("number", static_cast<size_t>(std::atoi(text)));
    *made = new Provider;
    return nullptr;
  };
  void (*release)(Factory*, Provider*) = [](Factory*, Provider* provider) { delete provider; };
  uint32_t (*whose)(const Factory*) = [](const Factory*) { return vendor(); };
  const char* (*release_name)(const Factory*) = [](const Factory*) { return "1.0.0"; };
  void* is_compatible = nullptr;
  Status* (*take)(Factory*, const MemoryInfo*, const void*, Memory**) = [](Factory*, const MemoryInfo* info, const void*,
                                                                          Memory** found) -> Status* {
    *found = new Memory;
    (*found)->info = info;
    return nullptr;
  };
  void (*give_back)(Factory*, Memory*) = [](Factory*, Memory* memory) { delete memory; };
  Status* (*copies)(Factory*, Copies**) = [](Factory*, Copies** found) -> Status* {
    *found = new Copies;
    return nullptr;
  };
  bool (*has_streams)(const Factory*) = [](const Factory*) { return false; };
  void* stream = nullptr;
  MemoryInfo* info = nullptr;
};

}  // namespace

extern "C" __attribute__((visibility("default"))) Status* CreateEpFactories(const char* registered,
                                                                           const ApiBase* base, const void*,
                                                                           Factory** made, size_t most,
                                                                           size_t* count) {
  *count = 0;
  api = base->get_api(kVersion);
  if (api == nullptr || most == 0) return nullptr;
  plug_in = call(kPlugInApi);
  name = registered;
  auto* factory = new Factory;
  constexpr int kDefaultMemory = 0, kDeviceAllocator = 0;
  PLC_UNLESS_FAILED(call(kCreateMemory, "FakeDevice", kGpu, vendor(), 0, kDefaultMemory, size_t{0}, kDeviceAllocator,
                         &factory->info));
  *made = factory;
  *count = 1;
  return nullptr;
}

extern "C" __attribute__((visibility("default"))) Status* ReleaseEpFactory(Factory* factory) {
  call(plc::ort::kFreeMemory, factory->info);
  delete factory;
  return nullptr;
}
