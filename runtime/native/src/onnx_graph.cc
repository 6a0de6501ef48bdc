#include "onnx_graph.h"

#include <cstring>
#include <map>

#include "cache_numbers.h"
#include "linked_kernels.h"
#include "words.h"

namespace plc {
namespace {

constexpr const char* kExportAgain = "Export the bundle again for this version of onnxruntime.";

int element_of(Dtype dtype) {
  if (dtype == Dtype::kFloat32) return ort::kTypeFloat;
  return dtype == Dtype::kFloat16 ? ort::kTypeFloat16 : ort::kTypeBfloat16;
}

std::string name_of_element(int type) {
  constexpr const char* kNames[] = {"undefined", "float",  "uint8",     "int8",       "uint16",  "int16",
                                    "int32",     "int64",  "string",    "bool",       "float16", "double",
                                    "uint32",    "uint64", "complex64", "complex128", "bfloat16"};
  if (type >= 0 && static_cast<size_t>(type) < std::size(kNames)) return kNames[type];
  return joined({"type ", type});
}

// A size that a step may choose has a name.
struct Size {
  Size(const char* called) : name(called) {}
  Size(int64_t count) : number(count) {}

  const char* name = nullptr;
  int64_t number = 0;
};

std::string described(int type, const std::vector<Size>& shape) {
  std::string text = joined({"tensor(", name_of_element(type), ") ["});
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (axis > 0) text += ", ";
    if (shape[axis].name == nullptr) append({shape[axis].number}, text);
    else if (*shape[axis].name == '\0') text += "any";
    else append({"'", shape[axis].name, "'"}, text);
  }
  return text + "]";
}

// By name, what inputs and outputs are.
using Tensors = std::map<std::string, std::string>;

// pl_compile/config/contract.py, `GraphContract.tensors`.
Tensors expected_of(const GraphContract& c, Dtype dtype) {
  Tensors found;
  const auto add = [&found](const char* name, int type, const std::vector<Size>& shape) {
    found[name] = described(type, shape);
  };
  const auto ints = [&add](const char* name, const std::vector<Size>& shape) {
    add(name, ort::kTypeInt64, shape);
  };
  const bool ragged = c.rows == RowsMode::kRagged;
  const char* results = ragged ? "outputs" : "batch";
  if (ragged) {
    ints("input_ids", {int64_t{1}, "tokens"});
    ints("positions", {int64_t{1}, "tokens"});
    ints("token_rows", {"tokens"});
    ints("block_tables", {"rows", "width"});
    ints("prefixes", {"rows"});
    ints("parents", {"branching"});
    ints("logit_tokens", {"outputs"});
    if (c.logit_tiles) ints("logit_tiles", {"tiles"});
    if (c.prompts == PromptsMode::kBaked) ints("task_id", {int64_t{1}, "tokens"});
    else add("prompt_table", ort::kTypeFloat, {int64_t{1}, "prompt_rows", c.hidden});
  } else {
    ints("input_ids", {"batch", "seq"});
    ints("past_lengths", {"batch"});
    ints("last_index", {"batch"});
    if (c.prompts == PromptsMode::kBaked) ints("task_id", {"batch"});
    else add("prompt_table", ort::kTypeFloat, {"batch", "rows", c.hidden});
  }
  add("logits", ort::kTypeFloat, {results, c.vocab});
  if (c.candidates > 0) {
    add("noise", ort::kTypeFloat, {results, c.candidates});
    for (const std::string& name : c.sampling_inputs)
      add(name.c_str(), name == "top_k" ? ort::kTypeInt64 : ort::kTypeFloat, {results});
    ints("next_token", {results});
  }
  for (size_t cache = 0; cache < cache_count(c); ++cache) {
    for (const bool is_input : {true, false}) {
      const std::vector<Size> shape = ragged
                                          ? std::vector<Size>{"blocks", c.kv_heads, int64_t{16}, c.head_dim}
                                          : std::vector<Size>{"batch", c.kv_heads, c.capacity, c.head_dim};
      add(cache_name(cache, is_input).c_str(), element_of(dtype), shape);
    }
  }
  return found;
}

// Adds an input or output of a session to `found`.
bool read_tensor(const OnnxRuntime& runtime, const ort::Session* session, bool is_input, size_t index,
                 Tensors& found, std::string& said) {
  ort::Allocator* allocator = nullptr;
  char* name = nullptr;
  if (runtime.failed(runtime.call(ort::kDefaultAllocator, &allocator), said) ||
      runtime.failed(runtime.call(is_input ? ort::kGraphInputName : ort::kGraphOutputName, session, index,
                                  allocator, &name),
                     said))
    return false;
  std::string& text = found[name];
  text = "no tensor";
  if (runtime.failed(runtime.call(ort::kFree, allocator, name), said)) return false;

  ort::TypeInfo* type = nullptr;
  const ort::ShapeInfo* tensor = nullptr;
  if (runtime.failed(
          runtime.call(is_input ? ort::kGraphInputType : ort::kGraphOutputType, session, index, &type), said))
    return false;
  int element = 0;
  size_t axes = 0;
  bool fine = !runtime.failed(runtime.call(ort::kTensorOfType, type, &tensor), said);
  if (fine && tensor != nullptr) {
    fine = !runtime.failed(runtime.call(ort::kElementType, tensor, &element), said) &&
           !runtime.failed(runtime.call(ort::kAxes, tensor, &axes), said);
    std::vector<int64_t> sizes(axes);
    std::vector<const char*> names(axes);
    fine = fine && !runtime.failed(runtime.call(ort::kSizes, tensor, sizes.data(), axes), said) &&
           !runtime.failed(runtime.call(ort::kSizeNames, tensor, names.data(), axes), said);
    std::vector<Size> shape;
    for (size_t axis = 0; axis < axes; ++axis)
      shape.push_back(sizes[axis] >= 0 ? Size(sizes[axis]) : Size(names[axis] == nullptr ? "" : names[axis]));
    if (fine) text = described(element, shape);
  }
  runtime.call(ort::kFreeType, type);
  return fine;
}

std::string in_lower_case(std::string name) {
  for (char& c : name)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return name;
}

constexpr const char kCpu[] = "CPUExecutionProvider", kCuda[] = "CUDAExecutionProvider",
                     kTensorRt[] = "TensorrtExecutionProvider",
                     kTensorRtRtx[] = "NvTensorRTRTXExecutionProvider";

// ONNX Runtime's name for a provider; one that is not known is the name itself.
std::string full_name_of(const Provider& provider) {
  constexpr const char* kNames[][2] = {
      {"cpu", kCpu}, {"cuda", kCuda}, {"tensorrt", kTensorRt}, {"nv-tensorrt-rtx", kTensorRtRtx}};
  const std::string given = in_lower_case(provider.name);
  for (const auto& [name, full_name] : kNames)
    if (given == name || given == in_lower_case(full_name)) return full_name;
  return provider.name;
}

// Names and values, as ONNX Runtime takes them.
struct Pairs {
  std::vector<const char*> names{}, values{};

  void add(const char* name, const char* value) {
    names.push_back(name);
    values.push_back(value);
  }
};

std::string value_of(const Provider& provider, const char* name, const char* otherwise) {
  for (const auto& [key, value] : provider.options)
    if (key == name) return value;
  return otherwise;
}

// No machine of this project has run it on a GPU.
bool append_cuda(const OnnxRuntime& runtime, const Provider& provider, ort::SessionOptions* options,
                 std::string& said) {
  Pairs pairs;
  // By itself ONNX Runtime would multiply float32 in TF32, which has 10 bits of fraction.
  const std::string tf32 = value_of(provider, "use_tf32", "0");
  pairs.add("use_tf32", tf32.c_str());
  for (const auto& [key, value] : provider.options)
    if (key != "use_tf32") pairs.add(key.c_str(), value.c_str());
  ort::CudaOptions* cuda = nullptr;
  if (runtime.failed(runtime.call(ort::kCreateCuda, &cuda), said)) return false;
  const bool fine = !runtime.failed(runtime.call(ort::kUpdateCuda, cuda, pairs.names.data(),
                                                 pairs.values.data(), pairs.names.size()),
                                    said) &&
                    !runtime.failed(runtime.call(ort::kAppendCuda, options, cuda), said);
  runtime.call(ort::kFreeCuda, cuda);
  return fine;
}

// The device that a plug-in's provider computes on; its library is registered before.
bool find_device(const OnnxRuntime& runtime, const Provider& provider, const std::string& library,
                 const ort::ProviderDevice*& found, std::string& said) {
  const std::string name = full_name_of(provider);
  // One that is registered already is what was asked for.
  if (runtime.failed(runtime.call(ort::kRegisterPlugIn, runtime.env(), name.c_str(), library.c_str()),
                     said) &&
      said.find("already") == std::string::npos) {
    said = joined({library, " does not load: ", said});
    return false;
  }
  const ort::ProviderDevice* const* devices = nullptr;
  size_t count = 0;
  if (runtime.failed(runtime.call(ort::kDevices, runtime.env(), &devices, &count), said)) return false;
  std::vector<const ort::ProviderDevice*> its_own;
  for (size_t k = 0; k < count; ++k)
    if (name == runtime.call(ort::kDeviceProvider, devices[k])) its_own.push_back(devices[k]);
  const std::string number = value_of(provider, "device_id", "0");
  size_t chosen = 0;
  for (const char digit : number) {
    if (digit < '0' || digit > '9' || number.size() > 6) {
      said = joined({"device_id ", number, " is no number of a device"});
      return false;
    }
    chosen = 10 * chosen + static_cast<size_t>(digit - '0');
  }
  // Python counts a plug-in's devices for those of GPUs only; others have one that is taken.
  if (!is_on_gpu(provider)) chosen = 0;
  if (chosen >= its_own.size()) {
    said = joined(
        {"its library offers ", its_own.size(), " devices here, and device ", chosen, " is asked for"});
    return false;
  }
  found = its_own[chosen];
  return true;
}

bool append_plug_in(const OnnxRuntime& runtime, const Provider& provider, ort::SessionOptions* options,
                    const ort::ProviderDevice*& device, std::string& said) {
  if (!find_device(runtime, provider, provider.library, device, said)) return false;
  Pairs pairs;
  for (const auto& [key, value] : provider.options) pairs.add(key.c_str(), value.c_str());
  return !runtime.failed(runtime.call(ort::kAppendDevices, options, runtime.env(), &device, size_t{1},
                                      pairs.names.data(), pairs.values.data(), pairs.names.size()),
                         said);
}

// ONNX Runtime's own provider for CUDA is in a library beside it. Registered as a plug-in, too, it says where
// its device's memory is.
bool find_cuda(const OnnxRuntime& runtime, const Provider& provider, const ort::ProviderDevice*& device,
               std::string& said) {
  return find_device(runtime, provider, runtime.folder() + "libonnxruntime_providers_cuda.so", device, said);
}

// Chooses what computes; `device` stays null where that is the CPU.
Status choose_provider(const OnnxRuntime& runtime, const Provider& provider, ort::SessionOptions* options,
                       const ort::ProviderDevice*& device) {
  std::string said;
  const std::string name = full_name_of(provider);
  if (!provider.library.empty()) {
    if (append_plug_in(runtime, provider, options, device, said)) return {};
  } else if (name == kCpu) {
    if (provider.options.empty()) return {};
    said = "options, and this provider takes none";
  } else if (name == kCuda) {
    if (append_cuda(runtime, provider, options, said) && find_cuda(runtime, provider, device, said))
      return {};
  } else {
    said = "no such provider";
  }
  return Error{ErrorCode::kArgument,
               joined({"choosing the execution provider ", provider.name, ": ", said,
                       "; expected cpu without options, cuda of an ONNX Runtime for GPUs, or the name and "
                       "library of a plug-in that runs here."})};
}

Status add_kernels(const OnnxRuntime& runtime, ort::SessionOptions* options) {
#ifdef PLC_WITHOUT_KERNELS
  static_cast<void>(runtime), static_cast<void>(options);
#else
  std::string said;
  if (*plc_kernels_name() == '\0') said = joined({"PLC_KERNELS names none of ", plc_kernels_available()});
  else if (!runtime.failed(RegisterCustomOps(options, runtime.base()), said)) return {};
  return Error{ErrorCode::kArgument,
               joined({"choosing kernels for this processor: ", said,
                       "; expected a set that this processor has. Unset PLC_KERNELS to get the first."})};
#endif
  return {};
}

}  // namespace

std::string cache_name(size_t cache, bool is_input) {
  return joined({is_input ? "past_" : "present_", cache % 2 == 0 ? "key." : "value.", cache / 2});
}

bool is_on_gpu(const Provider& provider) {
  const std::string name = full_name_of(provider);
  return name == kCuda || name == kTensorRt || name == kTensorRtRtx;
}

OnnxGraph::OnnxGraph(const OnnxRuntime& runtime, std::string model, Dtype dtype)
    : runtime_(runtime), model_(std::move(model)), dtype_(dtype) {}

OnnxGraph::~OnnxGraph() {
  if (binding_ != nullptr) runtime_.call(ort::kFreeBinding, binding_);
  if (session_ != nullptr) runtime_.call(ort::kFreeSession, session_);
  if (place_ != nullptr) runtime_.call(ort::kFreeMemory, place_);
}

Result<std::unique_ptr<OnnxGraph>> OnnxGraph::open(const std::string& model, const GraphContract& contract,
                                                   Dtype dtype, const EngineOptions& options) {
  auto runtime = OnnxRuntime::open(options.onnxruntime);
  if (!runtime.ok()) return runtime.error();
  std::unique_ptr<OnnxGraph> graph(new OnnxGraph(*runtime.value(), model, dtype));
  if (auto done = graph->load(options); !done.ok()) return done.error();
  if (auto done = graph->check(contract); !done.ok()) return done.error();
  return graph;
}

Error OnnxGraph::failure(const char* doing, const std::string& said) const {
  return {ErrorCode::kFormat, joined({doing, model_, ": ", said, ". ", kExportAgain})};
}

Status OnnxGraph::load(const EngineOptions& options) {
  std::string said;
  struct Options {
    const OnnxRuntime& runtime;
    ort::SessionOptions* held = nullptr;
    ~Options() {
      if (held != nullptr) runtime.call(ort::kFreeOptions, held);
    }
  } session{runtime_};
  constexpr int kErrorsOnly = 3;
  if (options.threads > 4096)
    return Error{ErrorCode::kArgument,
                 joined({"loading ", model_, ": ", options.threads, " threads; expected at most 4096"})};
  if (runtime_.failed(runtime_.call(ort::kCreateOptions, &session.held), said) ||
      runtime_.failed(runtime_.call(ort::kSetLogSeverity, session.held, kErrorsOnly), said) ||
      runtime_.failed(runtime_.call(ort::kSetThreads, session.held, static_cast<int>(options.threads)),
                      said) ||
      (!options.spin &&
       runtime_.failed(runtime_.call(ort::kAddEntry, session.held, "session.intra_op.allow_spinning", "0"),
                       said)))
    return failure("loading ", said);
  // For every graph: its operators say what it needs. Where it has none of ours, this changes nothing.
  if (auto done = add_kernels(runtime_, session.held); !done.ok()) return done;
  const ort::ProviderDevice* device = nullptr;
  if (auto done = choose_provider(runtime_, options.provider, session.held, device); !done.ok()) return done;
  on_cpu_ = device == nullptr;
  constexpr int kDeviceAllocator = 0, kDefaultMemory = 0;
  if (runtime_.failed(
          runtime_.call(ort::kCreateSession, runtime_.env(), model_.c_str(), session.held, &session_),
          said) ||
      runtime_.failed(runtime_.call(ort::kCreateBinding, session_, &binding_), said) ||
      runtime_.failed(runtime_.call(ort::kCreateCpuMemory, kDeviceAllocator, kDefaultMemory, &place_), said))
    return failure("loading ", said);
  if (on_cpu_) return {};
  auto found = Device::of(runtime_, device, place_);
  if (!found.ok()) return found.error();
  device_ = std::move(found.value());
  return {};
}

Status OnnxGraph::check(const GraphContract& contract) {
  Tensors found;
  std::string said;
  for (const bool is_input : {true, false}) {
    size_t count = 0;
    if (runtime_.failed(
            runtime_.call(is_input ? ort::kGraphInputCount : ort::kGraphOutputCount, session_, &count), said))
      return failure("reading the inputs of ", said);
    for (size_t k = 0; k < count; ++k)
      if (!read_tensor(runtime_, session_, is_input, k, found, said))
        return failure("reading the inputs of ", said);
  }
  const Tensors expected = expected_of(contract, dtype_);
  if (found == expected) return {};
  // The first name that differs.
  auto here = found.begin();
  auto there = expected.begin();
  while (here != found.end() && there != expected.end() && *here == *there) ++here, ++there;
  std::string name;
  if (here == found.end()) name = there->first;
  else if (there == expected.end()) name = here->first;
  else name = std::min(here->first, there->first);
  const auto text = [&name](const Tensors& tensors, const char* otherwise) {
    const auto at = tensors.find(name);
    return at == tensors.end() ? std::string(otherwise) : at->second;
  };
  return Error{ErrorCode::kFormat,
               joined({"matching ", model_, " with the manifest: '", name, "' ", text(found, "is not there"),
                       "; expected ", text(expected, "no such name"),
                       ". The manifest was altered: export the bundle again."})};
}

Status OnnxGraph::bind(const Bound& bound) {
  std::string said;
  ort::Value* value = nullptr;
  bool fine = !runtime_.failed(runtime_.call(ort::kCreateTensor, bound.where, bound.memory, bound.size,
                                             bound.shape.data(), bound.shape.size(), bound.type, &value),
                               said);
  if (fine) {
    fine = !runtime_.failed(runtime_.call(bound.is_input ? ort::kBindInput : ort::kBindOutput, binding_,
                                          bound.name.c_str(), value),
                            said);
    runtime_.call(ort::kFreeValue, value);  // the binding keeps what it needs
  }
  if (fine) return {};
  return failure("running ", joined({"'", bound.name, "': ", said}));
}

Status OnnxGraph::keep_bound(Bound bound) {
  if (auto done = bind(bound); !done.ok()) return done;
  // Where the node that reads it computes elsewhere, it is copied there when it is bound, not when the
  // graph runs: without another binding that node would go on with old numbers.
  if (on_cpu_ || !bound.is_input) return {};
  for (Bound& each : inputs_) {
    if (each.name != bound.name) continue;
    each = std::move(bound);
    return {};
  }
  inputs_.push_back(std::move(bound));
  return {};
}

Status OnnxGraph::give(const char* name, int type, const std::vector<int64_t>& shape, const void* numbers,
                       size_t size) {
  Given* held = nullptr;
  for (Given& each : given_)
    if (each.name == name) held = &each;
  if (held == nullptr) held = &given_.emplace_back(Given{name, {-1}, nullptr});
  if (held->shape == shape) {
    if (size > 0) std::memcpy(held->memory.get(), numbers, size);
    return {};
  }
  // One without elements needs an address, too.
  std::unique_ptr<char[]> memory(new char[size > 0 ? size : 1]);
  if (size > 0) std::memcpy(memory.get(), numbers, size);
  if (auto done = keep_bound({true, name, place_, type, shape, memory.get(), size}); !done.ok()) return done;
  held->memory = std::move(memory);
  held->shape = shape;
  return {};
}

namespace {

size_t elements_of(const std::vector<int64_t>& shape) {
  size_t count = 1;
  for (const int64_t size : shape) count *= static_cast<size_t>(size);
  return count;
}

}  // namespace

Status OnnxGraph::give(const char* name, const std::vector<int64_t>& shape, const int64_t* numbers) {
  return give(name, ort::kTypeInt64, shape, numbers, elements_of(shape) * sizeof(int64_t));
}

Status OnnxGraph::give(const char* name, const std::vector<int64_t>& shape, const float* numbers) {
  return give(name, ort::kTypeFloat, shape, numbers, elements_of(shape) * sizeof(float));
}

Status OnnxGraph::bind_cache(size_t cache, const std::vector<int64_t>& shape, void* memory,
                             const Device* device) {
  const size_t size = elements_of(shape) * bytes_of(dtype_);
  for (const bool is_input : {true, false}) {
    const ort::MemoryInfo* where = device == nullptr ? place_ : device->place();
    if (auto done = keep_bound(
            {is_input, cache_name(cache, is_input), where, element_of(dtype_), shape, memory, size});
        !done.ok())
      return done;
  }
  return {};
}

Status OnnxGraph::bind_logits(const std::vector<int64_t>& shape, float* memory) {
  return keep_bound(
      {false, "logits", place_, ort::kTypeFloat, shape, memory, elements_of(shape) * sizeof(float)});
}

Status OnnxGraph::bind_tokens(int64_t count, int64_t* memory) {
  const size_t size = static_cast<size_t>(count) * sizeof(int64_t);
  return keep_bound({false, "next_token", place_, ort::kTypeInt64, {count}, memory, size});
}

Status OnnxGraph::run() {
  for (const Bound& bound : inputs_)
    if (auto done = bind(bound); !done.ok()) return done;
  std::string said;
  if (runtime_.failed(runtime_.call(ort::kRunBound, session_, nullptr, binding_), said))
    return failure("running ", said);
  return {};
}

}  // namespace plc
