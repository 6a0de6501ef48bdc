#include "bundle.h"

#include <sys/stat.h>

#include <algorithm>

#include "file_sums.h"
#include "json.h"
#include "problems.h"
#include "sha256.h"
#include "template.h"
#include "utf8.h"

namespace plc {
namespace {

constexpr std::string_view kWeights = "base/model.onnx.data";
// Virtual and real tokens alike take positions 0, 1, 2 … from the row's start.
constexpr std::string_view kPositions = "from 0, virtual tokens included";

std::string_view name_of(Dtype dtype) {
  return dtype == Dtype::kFloat16 ? "float16" : dtype == Dtype::kBfloat16 ? "bfloat16" : "float32";
}

std::string_view name_of(Quantization kind) {
  return kind == Quantization::kInt8 ? "int8" : kind == Quantization::kInt4 ? "int4" : "none";
}

// What this library runs, and what other parts of it need of the files.
Status check_manifest(const Manifest& manifest, const std::string& doing) {
  const std::string& target = manifest.target;
  if ((target != "onnx-cpu" && target != "native-cpu" && target != "onnx-cuda") || manifest.graph.ranks != 1)
    return Error{ErrorCode::kArgument,
                 joined({doing, ": target ", shortened(target, 100), ", ranks ", manifest.graph.ranks,
                         "; expected one of onnx-cpu, native-cpu and "
                         "onnx-cuda, with one rank: this library runs no others. Export the bundle "
                         "for one of them, or serve it with the Python runtime."})};
  if (manifest.file("tokenizer.json") == nullptr)
    return wrong_file(doing, {"tokenizer.json is not in the manifest"}, {"it"});
  if (manifest.file("base/model.onnx") == nullptr)
    return wrong_file(doing, {"damaged manifest.json: 'base/model.onnx' is missing"}, {"it"}, kCopyOrExport);
  constexpr std::string_view base = "base/", model = "/model.onnx";
  for (const FileRecord& file : manifest.files) {
    const std::string_view path = file.path;
    if (path != "base/model.onnx" && path.substr(0, base.size()) == base && path.size() >= model.size() &&
        path.substr(path.size() - model.size()) == model)
      return wrong_file(doing, {"damaged manifest.json: '", shortened(path, 200), "' is one too many"},
                        {"base/model.onnx alone"});
  }
  return {};
}

class TaskReader {
 public:
  TaskReader(const std::string& folder, const Manifest& manifest, const std::string& name)
      : folder_(folder), manifest_(manifest), name_(name), inside_("tasks/" + name + "/") {
    doing_ = joined({"reading task '", shortened(name, 100), "' of the bundle ", folder});
  }

  Result<BundleTask> read(int64_t number) {
    made_.number = number;
    using Part = Status (TaskReader::*)();
    for (const Part part : {&TaskReader::read_record, &TaskReader::read_learned,
                            &TaskReader::read_folded_prefix, &TaskReader::read_tree}) {
      const Status done = (this->*part)();
      if (!done.ok()) return done.error();
    }
    return std::move(made_);
  }

 private:
  Error wrong(Words found, Words expected) const { return wrong_file(doing_, found, expected); }

  bool has(std::string_view file) const { return manifest_.file(joined({inside_, file})) != nullptr; }
  std::string path_of(std::string_view file) const { return joined({folder_, "/", inside_, file}); }

  Status read_record() {
    if (!has("task.json")) return wrong({"task.json is not in the manifest"}, {"it"});
    const std::string path = path_of("task.json");
    const auto file = MappedFile::open(path);
    if (!file.ok()) return file.error();
    auto record = read_task_record(file.value().bytes(), name_, manifest_.base.vocab, "reading " + path);
    if (!record.ok()) return record.error();
    made_.record = std::move(record.value());
    auto parsed = parse_template(made_.record);
    if (!parsed.ok()) return Error{ErrorCode::kFormat, joined({doing_, ": ", parsed.error().message})};
    made_.parsed = std::move(parsed.value());
    const auto virtual_tokens = static_cast<int64_t>(made_.record.total_virtual_tokens);
    if (virtual_tokens + 2 > manifest_.graph.capacity)
      return wrong({virtual_tokens, " virtual tokens, and a capacity of ", manifest_.graph.capacity},
                   {"room for a token and an answer after them"});
    return {};
  }

  Status read_learned() {
    const bool has_rows = has("prompt.safetensors");
    made_.has_prefix = has("prefix_kv.safetensors");
    if (has_rows == made_.has_prefix)
      return wrong({has_rows ? "prompt.safetensors and prefix_kv.safetensors"
                             : "no prompt.safetensors and no prefix_kv.safetensors",
                    " in the manifest"},
                   {"one of them"});
    const std::string name = made_.has_prefix ? "prefix_kv" : "prompt";
    auto file = TensorFile::open(path_of(name + ".safetensors"));
    if (!file.ok()) return file.error();
    const Tensor* const tensor = file.value().find(name);
    const GraphContract& graph = manifest_.graph;
    const auto virtual_tokens = static_cast<int64_t>(made_.record.total_virtual_tokens);
    const bool is_alone = tensor != nullptr && file.value().tensors().size() == 1;
    if (!made_.has_prefix && !(is_alone && tensor->is("F32", {virtual_tokens, graph.hidden})))
      return wrong({file.value().described(), " in prompt.safetensors"},
                   {"'prompt' alone, F32 [", virtual_tokens, ", ", graph.hidden, "]"});
    if (made_.has_prefix &&
        !(is_alone && tensor->is("F32", {graph.layers, 2, graph.kv_heads, virtual_tokens, graph.head_dim})))
      return wrong({file.value().described(), " in prefix_kv.safetensors"},
                   {"'prefix_kv' alone, F32 [", graph.layers, ", 2, ", graph.kv_heads, ", ", virtual_tokens,
                    ", ", graph.head_dim, "]"});
    made_.learned = Floats(*tensor);
    made_.files.push_back(std::move(file.value()));
    if (!made_.learned.are_finite())
      return wrong_file(doing_, {"numbers in ", name, ".safetensors that are not finite"}, {"finite ones"},
                        "The run that made them diverged: lower its learning rate.");
    return made_.has_prefix ? check_prefix() : Status();
  }

  // Nothing stands before a prefix, so all virtual tokens are at the very start.
  Status check_prefix() const {
    if (made_.record.rules.bos_id)
      return wrong({"a prefix, and bos_id ", *made_.record.rules.bos_id},
                   {"no BOS: a prefix stands before everything"});
    const Segment& first = made_.parsed.segments[0];  // a template has a marker at least
    if (first.kind == Segment::Kind::kVirtual && first.count == made_.record.total_virtual_tokens) return {};
    return wrong_file(doing_, {"a prefix, and a template with virtual tokens after its start"},
                      {"one marker, at the very start: a prefix stands before everything"},
                      "Move the marker to the start and train the task again.");
  }

  Status read_folded_prefix() {
    if (!has("folded_kv.safetensors")) return {};
    const std::string path = path_of("folded_kv.safetensors");
    auto file = TensorFile::open(path);
    if (!file.ok()) return file.error();
    auto folded = read_folded(file.value(), manifest_.graph, "reading " + path);
    if (!folded.ok()) return folded.error();
    made_.folded = std::move(folded.value());
    made_.files.push_back(std::move(file.value()));
    return {};
  }

  Status read_tree() {
    const std::string path = path_of("labels.json");
    const std::string doing = "reading " + path;
    if (!has("labels.json")) {
      if (made_.record.choices.empty()) return {};
      return wrong_file(doing, {"no such file"}, {"the choices of the task as a tree"},
                        "Export the bundle again.");
    }
    const auto file = MappedFile::open(path);
    if (!file.ok()) return file.error();
    auto labels = read_labels(file.value().bytes(), made_.record.choices, manifest_.base.vocab, doing);
    if (!labels.ok()) return labels.error();
    made_.labels = std::move(labels.value());
    return {};
  }

  const std::string& folder_;
  const Manifest& manifest_;
  const std::string& name_;
  const std::string inside_;
  std::string doing_;
  BundleTask made_{};
};

void append_shape(std::initializer_list<int64_t> sizes, std::string& out) {
  for (const int64_t size : sizes) append({out.back() == '[' ? "" : ", ", size}, out);
}

// The sum of the type, the shape and the bytes of what a task learned.
std::string sum_of_learned(const BundleTask& task, const GraphContract& graph) {
  const auto virtual_tokens = static_cast<int64_t>(task.record.total_virtual_tokens);
  std::string text = "[\"float32\", [";
  if (task.has_prefix) {
    append_shape({graph.layers, 2, graph.kv_heads, virtual_tokens, graph.head_dim}, text);
  } else {
    append_shape({virtual_tokens, graph.hidden}, text);
  }
  Sha256 sum;
  sum.add(text + "]]");
  sum.add({reinterpret_cast<const char*>(task.learned.data()), task.learned.size() * sizeof(float)});
  return sum.digits();
}

}  // namespace

EnginePrompt BundleTask::learned_prompt() const {
  EnginePrompt prompt;
  prompt.task_id = number;
  if (has_prefix) {
    prompt.prefix = learned.data();
    prompt.prefix_length = record.total_virtual_tokens;
  } else {
    prompt.rows = learned.data();
    prompt.virtual_rows = record.total_virtual_tokens;
  }
  return prompt;
}

Result<std::shared_ptr<const Bundle>> Bundle::open(const std::string& folder, const BundleOptions& options) {
  const std::string doing = "opening the bundle " + folder;
  const std::shared_ptr<Bundle> made(new Bundle());
  made->folder_ = folder;
  {
    struct stat about {};
    const bool is_there = ::stat(folder.c_str(), &about) == 0;
    const bool has_manifest = ::stat((folder + "/manifest.json").c_str(), &about) == 0;
    if (!has_manifest)
      return Error{ErrorCode::kFile,
                   joined({doing, is_there ? ": no manifest.json" : ": there is no such folder",
                           "; expected a folder that 'plc export' wrote. Check the path."})};
    const auto file = MappedFile::open(folder + "/manifest.json");
    if (!file.ok()) return file.error();
    auto manifest = read_manifest(file.value().bytes(), doing);
    if (!manifest.ok()) return manifest.error();
    made->manifest_ = std::move(manifest.value());
  }
  const Manifest& manifest = made->manifest_;
  if (const Status done = check_manifest(manifest, doing); !done.ok()) return done.error();
  if (manifest.parity == Parity::kFailed && !options.allow_failed_parity)
    return wrong_file(doing, {"its numbers differ from the reference (parity failed)"},
                      {"a bundle that passed, or was not measured"},
                      "See plc verify and the bundle's report.json; export it again.");
  const bool all = options.sums == BundleOptions::Sums::kAll;
  const Status checked = check_files(folder, manifest.files, all ? "" : kWeights, doing);
  if (!checked.ok()) return checked.error();
  made->base_sum_ = sum_of_base(manifest.files);
  for (size_t k = 0; k < manifest.tasks.size(); ++k) {
    auto task = TaskReader(folder, manifest, manifest.tasks[k]).read(static_cast<int64_t>(k));
    if (!task.ok()) return task.error();
    made->tasks_.push_back(std::move(task.value()));
  }
  return std::shared_ptr<const Bundle>(made);
}

Result<const BundleTask*> Bundle::task(std::string_view name) const {
  std::string known;
  for (const BundleTask& task : tasks_) {
    if (task.record.taskname == name) return &task;
    if (known.size() < 2000) append({known.empty() ? "" : ", ", task.record.taskname}, known);
  }
  return Error{ErrorCode::kArgument,
               joined({"looking into the bundle ", folder_, ": task '", shortened(name, 100),
                       "' does not exist. Known tasks: ", known, "."})};
}

std::string Bundle::path_of(std::string_view path) const { return joined({folder_, "/", path}); }

Result<EnginePrompt> Bundle::prompt(const BundleTask& task, const std::string& layout, size_t opening) const {
  EnginePrompt prompt = task.learned_prompt();
  if (!task.folded) return prompt;
  const PrefixIdentity& found = task.folded->identity;
  const std::string doing =
      joined({"reading the folded prefix of task '", task.record.taskname, "' in ", folder_});
  Problems problems;
  const auto compare = [&problems](std::string_view part, const std::string& text,
                                   std::string_view expected) {
    if (text != expected) problems.add({part, " ", shortened(text, 100), ", not ", expected});
  };
  compare("base", found.base, manifest_.base.fingerprint);
  compare("graph", found.graph, base_sum_);
  compare("prompt", found.prompt, sum_of_learned(task, manifest_.graph));
  compare("layout", found.layout, layout);
  compare("positions", found.positions, kPositions);
  compare("dtype", found.dtype, name_of(manifest_.precision.dtype));
  compare("quantization", found.quantization, name_of(manifest_.precision.quantization));
  if (!problems.none())
    return Error{ErrorCode::kFormat, joined({doing, ": keys and values computed from ", problems.listed(),
                                             ". Export the bundle again: they would give wrong answers."})};
  if (task.folded->length != opening)
    return wrong_file(doing, {task.folded->length, " positions"}, {opening}, "Export the bundle again.");
  prompt.prefix = task.folded->numbers.data();
  prompt.prefix_length = task.folded->length;
  return prompt;
}

Result<std::optional<SelfTest>> Bundle::selftest(const BundleTask& task) const {
  const std::string inside = "tasks/" + task.record.taskname + "/selftest.safetensors";
  if (!has(inside)) return std::optional<SelfTest>();
  const auto file = TensorFile::open(path_of(inside));
  if (!file.ok()) return file.error();
  const EnginePrompt learned = task.learned_prompt();
  auto read = read_selftest(file.value(), manifest_.graph, learned.virtual_rows, learned.prefix_length,
                            "reading " + path_of(inside));
  if (!read.ok()) return read.error();
  return std::optional<SelfTest>(std::move(read.value()));
}

}  // namespace plc
