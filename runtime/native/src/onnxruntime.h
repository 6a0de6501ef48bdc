// ONNX Runtime, opened while the program runs: nothing of it is needed to build or link this one.
#pragma once

#include <string>
#include <type_traits>

#include "onnxruntime_slots.h"
#include "result.h"

namespace plc {

class OnnxRuntime {
 public:
  // Opens the library, once for the whole process. Where `path` is empty, the environment says it
  // (PLC_ONNXRUNTIME, or else ORT_LIB_PATH), or it is where the system looks for libraries. Its
  // telemetry is switched off before it loads.
  static Result<const OnnxRuntime*> open(const std::string& path);

  template <typename Returned, typename... Given>
  Returned call(ort::Entry<Returned(Given...)> entry, std::common_type_t<Given>... given) const {
    return reinterpret_cast<Returned (*)(Given...)>(api_[entry.number])(given...);
  }

  // Whether a call failed; `said` is then the first line of why.
  bool failed(ort::Status* status, std::string& said) const;

  const ort::ApiBase* base() const { return base_; }
  // Where the library lies, with a '/' at its end; empty where the system does not say.
  std::string folder() const;
  // One for the whole process. It is never torn down: threads may use it until the process ends.
  ort::Env* env() const { return env_; }

 private:
  OnnxRuntime() = default;

  void* library_ = nullptr;
  std::string path_{};
  const ort::ApiBase* base_ = nullptr;
  ort::Api api_ = nullptr;
  ort::Env* env_ = nullptr;
};

}  // namespace plc
