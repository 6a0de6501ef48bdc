#include "manifest.h"

#include <algorithm>
#include <limits>

#include "json.h"
#include "problems.h"
#include "sha256.h"
#include "utf8.h"

namespace plc {
namespace {

constexpr int64_t kMostHidden = 1 << 20, kMostVocab = 1 << 24, kMostLayers = 1 << 14;
constexpr int64_t kMostHeads = 1 << 16, kMostCapacity = 1 << 26, kMostRanks = 1 << 10;
constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

class Reader {
 public:
  Reader(const Json& content, const std::string& doing)
      : doing_(doing), record_(content, doing, "manifest.json") {}

  Result<Manifest> read() {
    // Other versions may have other keys, so they are refused by their number.
    if (record_.has("format") && record_.text("format") != "plc.bundle")
      return wrong({"manifest.json of another format"}, {"plc.bundle"});
    if (record_.has("version"))
      if (const int64_t version = record_.whole("version", 0, kMost); version != 1 && record_.ok())
        return wrong_file(doing_, {"version ", version}, {"1"},
                          "Use a library as new as the bundle, or export the bundle again.");
    if (!record_.has("format") || !record_.has("version"))
      return wrong({"manifest.json without a format and a version"}, {"plc.bundle, version 1"});
    read_base();
    made_.target = record_.text("target");
    made_.tasks = record_.texts("tasks");
    read_graph();
    if (record_.has("precision")) read_precision();
    read_toolchain();
    constexpr Parity verdicts[] = {Parity::kPassed, Parity::kFailed, Parity::kNotMeasured};
    made_.parity = verdicts[record_.choice("parity", {"passed", "failed", "not measured"})];
    if (record_.has("kernels")) made_.kernels = record_.whole("kernels", made_.kernels, kMost);
    if (record_.has("no_tokenizer_tables")) made_.no_tokenizer_tables = record_.text("no_tokenizer_tables");
    read_files();
    if (const Status done = record_.finish(); !done.ok()) return done.error();
    if (const Status done = check(); !done.ok()) return done.error();
    return std::move(made_);
  }

 private:
  Error wrong(Words found, Words expected) const { return wrong_file(doing_, found, expected); }

  // Reads an object of the manifest by a function.
  template <typename Read>
  void read_object(std::string_view key, Read read) {
    const Json* const object = record_.object(key);
    if (object == nullptr) return;
    JsonRecord record(*object, doing_, joined({"manifest.json, ", key}));
    read(record);
    if (const Status done = record.finish(); !done.ok()) record_.problem(done.error());
  }

  void read_base() {
    read_object("base", [this](JsonRecord& record) {
      made_.base.name = record.text("name");
      made_.base.fingerprint = record.text("fingerprint");
      made_.base.hidden = record.whole("hidden", 1, kMostHidden);
      made_.base.vocab = record.whole("vocab", 1, kMostVocab);
    });
  }

  void read_graph() {
    read_object("graph", [this](JsonRecord& record) {
      GraphContract& graph = made_.graph;
      graph.layers = record.whole("layers", 1, kMostLayers);
      graph.kv_heads = record.whole("kv_heads", 1, kMostHeads);
      graph.head_dim = record.whole("head_dim", 1, kMostHeads);
      graph.hidden = record.whole("hidden", 1, kMostHidden);
      graph.vocab = record.whole("vocab", 1, kMostVocab);
      graph.capacity = record.whole("capacity", 1, kMostCapacity);
      if (record.choice("prompts", {"input", "baked"}) == 1) graph.prompts = PromptsMode::kBaked;
      if (record.has("baked_tasks")) graph.baked_tasks = record.texts("baked_tasks");
      if (record.has("candidates")) graph.candidates = record.whole("candidates", 0, graph.vocab);
      if (record.has("sampling_inputs")) graph.sampling_inputs = record.texts("sampling_inputs");
      if (record.has("ranks")) graph.ranks = record.whole("ranks", 1, kMostRanks);
      if (record.has("rows") && record.choice("rows", {"padded", "ragged"}) == 1)
        graph.rows = RowsMode::kRagged;
      if (record.has("logit_tiles")) graph.logit_tiles = record.truth("logit_tiles");
      for (const std::string& name : graph.sampling_inputs)
        if (name != "temperature" && name != "top_k" && name != "top_p" && name != "min_p")
          record.problem({"sampling input '", shortened(name, 100), "'"},
                         {"one of temperature, top_k, top_p, min_p"});
      if (graph.logit_tiles && graph.rows != RowsMode::kRagged)
        record.problem({"logit_tiles, and rows that are padded"}, {"ragged ones"});
      // What graphs took before manifests said so.
      if (graph.candidates > 0 && graph.sampling_inputs.empty())
        graph.sampling_inputs = {"temperature", "top_k", "top_p"};
    });
  }

  void read_precision() {
    read_object("precision", [this](JsonRecord& record) {
      Precision& precision = made_.precision;
      constexpr Dtype dtypes[] = {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBfloat16};
      constexpr Quantization kinds[] = {Quantization::kNone, Quantization::kInt8, Quantization::kInt4};
      if (record.has("dtype"))
        precision.dtype = dtypes[record.choice("dtype", {"float32", "float16", "bfloat16"})];
      if (record.has("quantization"))
        precision.quantization = kinds[record.choice("quantization", {"none", "int8", "int4"})];
      const bool has_block = record.has_value("block"), has_method = record.has_value("method");
      if (has_block) record.whole("block", 0, kMostHidden);
      if (has_method) precision.method = record.text("method");
      const bool is_rounded = precision.quantization != Quantization::kNone;
      if (has_block != is_rounded || has_method != is_rounded)
        record.problem({"block, method and quantization that do not go together"},
                       {"block and method exactly where weights are quantised"});
      precision.prefix_bits = bits(record, "prefix_bits", 8);
      precision.cache_bits = bits(record, "cache_bits", 16);
    });
  }

  // 32, which is the default, or a smaller number.
  static int bits(JsonRecord& record, std::string_view key, int64_t fewer) {
    if (!record.has(key)) return 32;
    const int64_t found = record.whole(key, 0, kMost);
    if (found != 32 && found != fewer) record.problem({"'", key, "' is ", found}, {"32 or ", fewer});
    return static_cast<int>(found);
  }

  void read_toolchain() {
    const Json* const object = record_.object("toolchain");
    if (object == nullptr) return;
    for (const auto& [package, version] : *object->object()) {
      if (version.text() == nullptr)
        return record_.problem({"toolchain of '", shortened(package, 100), "' ", version.kind()},
                               {"a version as text"});
      made_.toolchain.emplace_back(package, *version.text());
    }
  }

  void read_files() {
    const Json* const object = record_.object("files");
    if (object == nullptr) return;
    for (const auto& [path, entry] : *object->object()) {
      JsonRecord record(entry, doing_, joined({"manifest.json, files, '", shortened(path, 200), "'"}));
      const std::string sum = record.text("sha256");
      const int64_t bytes = record.whole("size_bytes", -kMost, kMost);
      if (const Status done = record.finish(); !done.ok()) return record_.problem(done.error());
      made_.files.push_back({path, sum, bytes});
    }
    std::sort(made_.files.begin(), made_.files.end(),
              [](const FileRecord& one, const FileRecord& other) { return one.path < other.path; });
  }

  // What parts of the manifest say of each other.
  Status check() const {
    const GraphContract& graph = made_.graph;
    if (made_.tasks.empty()) return wrong({"no task is named"}, {"at least one"});
    std::vector<std::string_view> names(made_.tasks.begin(), made_.tasks.end());
    std::sort(names.begin(), names.end());
    const auto twice = std::adjacent_find(names.begin(), names.end());
    if (twice != names.end())
      return wrong({"task '", shortened(*twice, 100), "' is named twice"}, {"each task once"});
    const bool baked = graph.prompts == PromptsMode::kBaked;
    if (baked ? graph.baked_tasks != made_.tasks : !graph.baked_tasks.empty())
      return wrong({"damaged manifest.json: other baked_tasks"},
                   {baked ? "the tasks, in their order" : "none"});
    if (graph.hidden != made_.base.hidden || graph.vocab != made_.base.vocab)
      return wrong({"damaged manifest.json: a graph of hidden ", graph.hidden, ", vocab ", graph.vocab},
                   {"hidden ", made_.base.hidden, ", vocab ", made_.base.vocab, ", as its base"});
    if (graph.ranks > graph.kv_heads)
      return wrong({"damaged manifest.json: ranks ", graph.ranks},
                   {"at most the ", graph.kv_heads, " key and value heads that they divide"});
    if (record_.has("no_tokenizer_tables") && made_.file("tokenizer.tables") != nullptr)
      return wrong({"damaged manifest.json: tokenizer.tables, and no_tokenizer_tables '",
                    shortened(made_.no_tokenizer_tables, 200), "'"},
                   {"one of them"});
    for (const FileRecord& file : made_.files)
      if (Status done = check_path(file.path); !done.ok()) return done;
    return {};
  }

  Status check_path(std::string_view path) const {
    bool inside = path.substr(0, 1) != "/" && path.find('\\') == std::string_view::npos;
    for (std::string_view rest = path;;) {
      const size_t end = std::min(rest.find('/'), rest.size());
      inside &= rest.substr(0, end) != "..";
      if (end == rest.size()) break;
      rest.remove_prefix(end + 1);
    }
    if (inside) return {};
    return wrong_file(doing_, {"the path '", shortened(path, 200), "' leaves the folder"},
                      {"paths inside the bundle"}, "Do not use this bundle; export it again.");
  }

  const std::string& doing_;
  JsonRecord record_;
  Manifest made_{};
};

}  // namespace

const FileRecord* Manifest::file(std::string_view path) const {
  const auto place =
      std::lower_bound(files.begin(), files.end(), path,
                       [](const FileRecord& file, std::string_view wanted) { return file.path < wanted; });
  return place != files.end() && place->path == path ? &*place : nullptr;
}

std::string Manifest::version_of(std::string_view package) const {
  for (const auto& [name, version] : toolchain)
    if (name == package) return version;
  return {};
}

Result<Manifest> read_manifest(std::string_view bytes, const std::string& doing) {
  const auto content = parse_json_file(bytes, doing + ", manifest.json");
  if (!content.ok()) return content.error();
  return Reader(content.value(), doing).read();
}

std::string sum_of_base(const std::vector<FileRecord>& files) {
  std::string text = "[";
  for (const FileRecord& file : files) {  // they are sorted
    if (file.path.compare(0, 5, "base/") != 0) continue;
    // A plan computes what its ONNX file says, and equal builds differ in bytes.
    const std::string name = file.path.substr(file.path.rfind('/') + 1);
    if (name == "model.plan" || name == "plan.json" || name == "profile.json" || name == "model_ctx.onnx")
      continue;
    append({text.size() > 1 ? ", [" : "["}, text);
    append_json_text(file.path, text);
    text += ", ";
    append_json_text(file.sha256, text);
    text += ']';
  }
  return sha256_of(text + "]");
}

}  // namespace plc
