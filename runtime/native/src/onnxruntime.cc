#include "onnxruntime.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>
#include <vector>

#include "words.h"

namespace plc {
namespace {

constexpr const char* kDoing = "opening ONNX Runtime: ";
constexpr const char* kInstall =
    " Install it (pip install onnxruntime), and give the path of its capi/libonnxruntime.so.* as the "
    "option onnxruntime, or in the environment variable PLC_ONNXRUNTIME.";

// `found` may be long: each library that was tried, and why it did not open.
Error refused(Words found) {
  return {ErrorCode::kRuntime, joined({kDoing, joined(found), "; expected version 1.",
                                       ort::kSessionApiVersion, " or a later one.", kInstall})};
}

std::vector<std::string> places(const std::string& path) {
  if (!path.empty()) return {path};
  for (const char* name : {"PLC_ONNXRUNTIME", "ORT_LIB_PATH"}) {
    const char* said = std::getenv(name);
    if (said != nullptr && *said != '\0') return {said};
  }
  return {"libonnxruntime.so.1", "libonnxruntime.so"};
}

// The release within version 1; a later version counts as the newest release.
uint32_t minor_of(const char* version) {
  char* end = nullptr;
  const unsigned long major = std::strtoul(version, &end, 10);
  if (end == version || *end != '.') return 0;
  if (major != 1) return major > 1 ? ort::kSessionApiVersion : 0;
  const unsigned long minor = std::strtoul(end + 1, nullptr, 10);
  return minor < ort::kSessionApiVersion ? static_cast<uint32_t>(minor) : ort::kSessionApiVersion;
}

}  // namespace

bool OnnxRuntime::failed(ort::Status* status, std::string& said) const {
  if (status == nullptr) return false;
  said = call(ort::kErrorMessage, status);
  call(ort::kFreeStatus, status);
  const size_t begin = said.find_first_not_of(" \n");
  said.erase(0, begin == std::string::npos ? said.size() : begin);
  said.resize(std::min(said.find('\n'), said.size()));
  if (said.empty()) said = "an error without a message";
  return true;
}

std::string OnnxRuntime::folder() const {
  Dl_info found{};
  const auto* inside = reinterpret_cast<const void*>(base_->get_api);
  if (::dladdr(inside, &found) == 0 || found.dli_fname == nullptr) return {};
  const std::string path = found.dli_fname;
  return path.substr(0, path.rfind('/') + 1);
}

Result<const OnnxRuntime*> OnnxRuntime::open(const std::string& path) {
  static std::mutex mutex;
  static const OnnxRuntime* opened = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (opened != nullptr && path.empty()) return opened;

  // ONNX Runtime decides when it is loaded whether it reports its use. It reads both names.
  ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  ::setenv("ORT_TELEMETRY_DISABLED", "1", 0);
  std::string tried;
  OnnxRuntime found;
  for (const std::string& place : places(path)) {
    found.library_ = ::dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    found.path_ = place;
    if (found.library_ != nullptr) break;
    const char* why = ::dlerror();
    append({tried.empty() ? "" : ", and ", why == nullptr ? place.c_str() : why}, tried);
  }
  if (found.library_ == nullptr) return refused({"no library opens (", tried, ")"});
  if (opened != nullptr) {
    // It is counted once for each time that it is opened.
    const bool same = found.library_ == opened->library_;
    ::dlclose(found.library_);
    if (same) return opened;
    return Error{ErrorCode::kArgument,
                 joined({kDoing, found.path_, ", and ", opened->path_,
                         " is open; expected one library in a process. Name the same one everywhere."})};
  }

  // A library that is refused is closed again; the path in the message stays.
  const auto close_with = [&found](Words why) {
    Error error = refused(why);
    ::dlclose(found.library_);
    return error;
  };
  using GetBase = const ort::ApiBase* (*)();
  const auto get_base = reinterpret_cast<GetBase>(::dlsym(found.library_, "OrtGetApiBase"));
  if (get_base == nullptr) return close_with({found.path_, " is another library: it has no OrtGetApiBase"});
  found.base_ = get_base();
  const char* version = found.base_ == nullptr ? nullptr : found.base_->version();
  if (version == nullptr) return close_with({found.path_, " does not say its version"});
  // Its version is read first: it would print a complaint if more than that were asked for.
  if (minor_of(version) < ort::kSessionApiVersion) return close_with({found.path_, " is version ", version});
  found.api_ = found.base_->get_api(ort::kSessionApiVersion);
  if (found.api_ == nullptr)
    return close_with({found.path_, ", version ", version, ", lacks interface ", ort::kSessionApiVersion});

  constexpr int kErrorsOnly = 3;
  std::string said;
  if (found.failed(found.call(ort::kCreateEnv, kErrorsOnly, "plc", &found.env_), said) ||
      found.failed(found.call(ort::kDisableTelemetry, found.env_), said))
    return Error{ErrorCode::kRuntime,
                 joined({kDoing, found.path_, " does not start: ", said, ".", kInstall})};
  opened = new OnnxRuntime(found);  // never freed: see `env`
  return opened;
}

}  // namespace plc
