// A bundle, whose files were checked: docs/artifact-format.md, "Bundle".
// (pl_compile/artifact/bundle.py reads the same.)
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine.h"
#include "manifest.h"
#include "result.h"
#include "safetensors.h"
#include "task_files.h"
#include "task_record.h"

namespace plc {

struct BundleTask {
  TaskRecord record;
  Template parsed;
  int64_t number = 0;  // in a graph with baked prompts
  Floats learned;      // rows [virtual, hidden]; or, of prefix tuning, a prefix like a folded one
  bool has_prefix = false;
  std::optional<FoldedPrefix> folded;
  std::optional<LabelTrie> labels;  // where it has choices

  // Rows, or the learned prefix. `Bundle::prompt` gives the folded prefix instead.
  EnginePrompt learned_prompt() const;

  // What `learned` and `folded` lie in.
  std::vector<TensorFile> files;
};

struct BundleOptions {
  bool allow_failed_parity = false;
  // Of which files the sums are compared. Names and sizes always are. The weights
  // (base/model.onnx.data) may be a hundred times the rest: a caller that has compared their sum
  // since the bundle was copied may leave it out.
  enum class Sums { kAll, kAllButWeights } sums = Sums::kAll;
};

// Immutable, and shared by all threads.
class Bundle {
 public:
  static Result<std::shared_ptr<const Bundle>> open(const std::string& folder,
                                                    const BundleOptions& options = {});

  const std::string& folder() const { return folder_; }
  const Manifest& manifest() const { return manifest_; }
  const std::vector<BundleTask>& tasks() const { return tasks_; }
  Result<const BundleTask*> task(std::string_view name) const;

  bool has(std::string_view path) const { return manifest_.file(path) != nullptr; }
  // Of a file in the bundle, for whoever opens it.
  std::string path_of(std::string_view path) const;
  // Bundles of earlier releases have none: then this library makes no tokens of texts.
  bool has_tokenizer_tables() const { return has("tokenizer.tables"); }

  // The sum over the names and sums of the files in base/.
  const std::string& base_sum() const { return base_sum_; }

  // What an engine is given for a task: with the folded prefix where there is one. Its identity is
  // compared: it is an error if it was computed from something else. `layout` is the sum of the
  // task's opening (of `layout_of`, renderer.h), and `opening` its length.
  Result<EnginePrompt> prompt(const BundleTask& task, const std::string& layout, size_t opening) const;

  // Nothing where the export made none.
  Result<std::optional<SelfTest>> selftest(const BundleTask& task) const;

 private:
  Bundle() = default;

  std::string folder_;
  Manifest manifest_;
  std::string base_sum_;
  std::vector<BundleTask> tasks_;
};

}  // namespace plc
