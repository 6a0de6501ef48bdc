// Which engine runs a graph. (runtime/engines/onnxruntime/opening.py is the same in Python.)
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "contract.h"
#include "engine.h"
#include "result.h"

namespace plc {

// What runs a graph in ONNX Runtime.
struct Provider {
  std::string name = "cpu";  // or "cuda", ONNX Runtime's names for them, or that of a plug-in
  std::vector<std::pair<std::string, std::string>> options{};  // its own
  std::string library{};  // of a plug-in, which is registered under `name`
};

struct EngineOptions {
  size_t max_batch = 16;  // most rows at once; memory is taken as they are used
  size_t threads = 0;     // that compute a step; all cores if 0
  bool spin = true;       // whether threads that wait for work keep their cores busy
  // Most MiB of entries that are kept for prompts that begin alike, while no row uses them. If 0,
  // rows share nothing. If absent, an eighth of the entries of all rows, at least those of one.
  std::optional<size_t> context_mib{};
  Provider provider{};
  std::string onnxruntime{};  // path of the library; see OnnxRuntime::open
};

// The engine on a `model.onnx`, whose data file lies beside it. An error names the file.
Result<std::unique_ptr<Engine>> open_engine(const std::string& model, const GraphContract& contract,
                                            const Precision& precision, const EngineOptions& options);

}  // namespace plc
