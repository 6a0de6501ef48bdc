#include "task_files.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "json.h"
#include "problems.h"
#include "unicode.h"
#include "utf8.h"

namespace plc {
namespace {

constexpr int64_t kMostVirtualTokens = 1000000;
constexpr int64_t kRendering = 2;         // the newest version of the rules for fields
constexpr size_t kMostResults = 1 << 10;  // rows times steps of a self-test

// Two underscores at the start are refused: safetensors keeps "__metadata__" for itself.
bool is_taskname(std::string_view name) {
  const auto is_allowed = [](char byte) {
    return (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') || (byte >= '0' && byte <= '9') ||
           byte == '_' || byte == '-';
  };
  return !name.empty() && name.size() <= 64 && name[0] != '-' && name.substr(0, 2) != "__" &&
         std::all_of(name.begin(), name.end(), is_allowed);
}

class RecordReader {
 public:
  RecordReader(const Json& content, int64_t vocab, const std::string& doing)
      : record_(content, doing, "task.json"), last_token_(vocab - 1), doing_(doing) {}

  Result<TaskRecord> read(const std::string& taskname) {
    if (const Json* const object = record_.object("task")) {
      JsonRecord task(*object, doing_, "task.json, task");
      read_task(task);
      if (const Status done = task.finish(); !done.ok()) record_.problem(done.error());
    }
    made_.rules.bos_id = token("bos_id");
    made_.rules.eos_id = token("eos_id");
    record_.text("method");
    if (record_.has("end_ids"))
      for (const int64_t id : record_.wholes("end_ids", 0, last_token_))
        made_.rules.end_ids.push_back(static_cast<int32_t>(id));
    if (record_.has("rendering")) record_.whole("rendering", 1, kRendering);
    if (const Status done = record_.finish(); !done.ok()) return done.error();
    if (made_.taskname != taskname)
      return wrong_file(doing_, {"the record of task '", made_.taskname, "'"},
                        {"that of '", shortened(taskname, 100), "'"});
    std::vector<int32_t> ends = made_.rules.end_ids;
    if (made_.rules.eos_id) ends.push_back(*made_.rules.eos_id);
    std::sort(ends.begin(), ends.end());
    if (std::adjacent_find(ends.begin(), ends.end()) != ends.end())
      return wrong_file(doing_, {"an id twice in eos_id and end_ids"}, {"each id once"});
    return std::move(made_);
  }

 private:
  std::optional<int32_t> token(std::string_view key) {
    if (!record_.has_value(key)) {
      if (!record_.has(key)) record_.whole(key, 0, 0);  // null is to be written
      return std::nullopt;
    }
    return static_cast<int32_t>(record_.whole(key, 0, last_token_));
  }

  static std::optional<std::string> text_or_null(JsonRecord& task, std::string_view key) {
    if (!task.has_value(key)) return std::nullopt;
    return task.text(key);
  }

  void read_task(JsonRecord& task) {
    made_.taskname = task.text("taskname");
    if (task.ok() && !is_taskname(made_.taskname))
      task.problem({"taskname '", shortened(made_.taskname, 100), "'"},
                   {"1 to 64 letters, digits, '_' or '-', not beginning with '-' or '__'"});
    made_.prompt_template = task.text("prompt_template");
    made_.total_virtual_tokens =
        static_cast<size_t>(task.whole("total_virtual_tokens", 1, kMostVirtualTokens));
    if (task.has("virtual_token_splits"))
      for (const int64_t split : task.wholes("virtual_token_splits", 1, kMostVirtualTokens))
        made_.virtual_token_splits.push_back(static_cast<size_t>(split));
    made_.truncate_field = text_or_null(task, "truncate_field");
    made_.answer_field = text_or_null(task, "answer_field");
    if (task.has("answer_only_loss")) made_.answer_only_loss = task.truth("answer_only_loss");
    if (task.has("choices")) made_.choices = task.texts("choices");
    constexpr WhiteSpace kinds[] = {WhiteSpace::kKeep, WhiteSpace::kNemo, WhiteSpace::kTransformers};
    if (task.has("whitespace"))
      made_.whitespace = kinds[task.choice("whitespace", {"keep", "nemo", "transformers"})];
    text_or_null(task, "init_text");
    if (task.has_value("answer"))
      if (const Json* const object = task.object("answer")) {
        JsonRecord answer(*object, doing_, "task.json, task, answer");
        made_.copied_from = answer.text("span");
        if (const Status done = answer.finish(); !done.ok()) task.problem(done.error());
      }
    check_choices(task);
  }

  void check_choices(JsonRecord& task) const {
    std::vector<std::string_view> stripped;
    for (const std::string& choice : made_.choices) stripped.push_back(without_space(choice));
    std::sort(stripped.begin(), stripped.end());
    if (std::adjacent_find(stripped.begin(), stripped.end()) != stripped.end() ||
        (!stripped.empty() && stripped[0].empty()))
      task.problem({"choices that are empty or equal"},
                   {"texts that are not empty and that differ in more than white space"});
    if (!made_.choices.empty() && made_.copied_from)
      task.problem({"choices, and an answer that is copied"}, {"one of the two"});
  }

  JsonRecord record_;
  const int64_t last_token_;
  const std::string& doing_;
  TaskRecord made_{};
};

std::vector<int32_t> narrow(const std::vector<int64_t>& numbers) {
  std::vector<int32_t> made(numbers.size());
  for (size_t k = 0; k < numbers.size(); ++k) made[k] = static_cast<int32_t>(numbers[k]);
  return made;
}

std::vector<int64_t> whole_numbers(const Tensor& tensor) {
  std::vector<int64_t> numbers(tensor.bytes.size() / sizeof(int64_t));
  if (!numbers.empty()) std::memcpy(numbers.data(), tensor.bytes.data(), tensor.bytes.size());
  return numbers;
}

}  // namespace

Result<TaskRecord> read_task_record(std::string_view bytes, const std::string& taskname, int64_t vocab,
                                    const std::string& doing) {
  const auto content = parse_json_file(bytes, doing);
  if (!content.ok()) return content.error();
  return RecordReader(content.value(), vocab, doing).read(taskname);
}

Result<LabelTrie> read_labels(std::string_view bytes, const std::vector<std::string>& choices, int64_t vocab,
                              const std::string& doing) {
  const auto content = parse_json_file(bytes, doing);
  if (!content.ok()) return content.error();
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  JsonRecord record(content.value(), doing, "labels.json");
  std::vector<std::string> labels = record.texts("labels");
  std::vector<int32_t> parents = narrow(record.wholes("parents", -1, most));
  std::vector<int32_t> tokens = narrow(record.wholes("tokens", -1, vocab - 1));
  std::vector<int32_t> ends = narrow(record.wholes("ends", 1, most));
  const bool fixed = record.truth("fixed");
  if (const Status done = record.finish(); !done.ok()) return done.error();
  auto tree =
      LabelTrie::of_parts(std::move(labels), std::move(parents), std::move(tokens), std::move(ends), fixed);
  if (!tree.ok()) return wrong_file(doing, {"damaged (", tree.error().message, ")"}, {"one"});
  const size_t found = tree.value().labels().size();
  if (tree.value().labels() != choices)
    return wrong_file(doing, {found, " labels that are not the choices of the task"},
                      {"its ", choices.size(), " choices, in their order"});
  return tree;
}

Result<FoldedPrefix> read_folded(const TensorFile& file, const GraphContract& graph,
                                 const std::string& doing) {
  const Tensor* const tensor = file.find("folded_kv");
  const bool has_axes = tensor != nullptr && file.tensors().size() == 1 && tensor->shape.size() == 5;
  const int64_t length = has_axes ? tensor->shape[3] : 0;
  if (length < 1 || length >= graph.capacity ||
      !tensor->is("F32", {graph.layers, 2, graph.kv_heads, length, graph.head_dim}))
    return wrong_file(doing, {file.described()},
                      {"'folded_kv' alone, F32 [", graph.layers, ", 2, ", graph.kv_heads, ", opening, ",
                       graph.head_dim, "], and an opening of 1 to ", graph.capacity - 1});
  FoldedPrefix made;
  made.numbers = Floats(*tensor);
  made.length = static_cast<size_t>(length);
  if (!made.numbers.are_finite())
    return wrong_file(doing, {"keys or values that are not finite numbers"}, {"finite ones"});
  const std::string* const text = file.metadata("identity");
  if (text == nullptr) return wrong_file(doing, {"no metadata 'identity'"}, {"it"});
  const auto content = parse_json(*text, doing + ", identity");
  if (!content.ok()) return content.error();
  JsonRecord record(content.value(), doing, "identity");
  PrefixIdentity& identity = made.identity;
  identity.base = record.text("base");
  identity.graph = record.text("graph");
  identity.prompt = record.text("prompt");
  identity.layout = record.text("layout");
  identity.positions = record.text("positions");
  identity.dtype = record.text("dtype");
  identity.quantization = record.text("quantization");
  if (const Status done = record.finish(); !done.ok()) return done.error();
  return made;
}

Result<SelfTest> read_selftest(const TensorFile& file, const GraphContract& graph, size_t rows, size_t prefix,
                               const std::string& doing) {
  const Tensor* const input_ids = file.find("input_ids");
  const Tensor* const lengths = file.find("lengths");
  const Tensor* const tokens = file.find("tokens");
  const Tensor* const logit_ids = file.find("logit_ids");
  const Tensor* const logits = file.find("logits");
  const auto refused = [&]() {
    return wrong_file(doing, {file.described()},
                      {"I64 input_ids [rows, seq], lengths [rows], tokens [steps, rows], logit_ids "
                       "[ids], and F32 logits [steps, rows, ids], no size 0, and at most ",
                       kMostResults, " rows times steps"});
  };
  if (input_ids == nullptr || lengths == nullptr || tokens == nullptr || logit_ids == nullptr ||
      logits == nullptr || file.tensors().size() != 5)
    return refused();
  if (input_ids->shape.size() != 2 || tokens->shape.size() != 2 || logit_ids->shape.size() != 1)
    return refused();
  const int64_t count = input_ids->shape[0], seq = input_ids->shape[1], steps = tokens->shape[0];
  const int64_t ids = logit_ids->shape[0], most = static_cast<int64_t>(kMostResults);
  if (!input_ids->is("I64", {count, seq}) || !lengths->is("I64", {count}) ||
      !tokens->is("I64", {steps, count}) || !logit_ids->is("I64", {ids}) ||
      !logits->is("F32", {steps, count, ids}))
    return refused();
  if (count < 1 || seq < 1 || steps < 1 || ids < 1 || count > most || steps > most / count) return refused();

  SelfTest made;
  made.rows = static_cast<size_t>(count);
  made.seq = static_cast<size_t>(seq);
  made.steps = static_cast<size_t>(steps);
  made.input_ids = whole_numbers(*input_ids);
  made.lengths = whole_numbers(*lengths);
  made.tokens = whole_numbers(*tokens);
  made.logit_ids = whole_numbers(*logit_ids);
  const Floats floats(*logits);
  made.logits.assign(floats.data(), floats.data() + floats.size());
  const int64_t room = graph.capacity - static_cast<int64_t>(prefix) - (steps - 1);
  if (room < 1)
    return wrong_file(doing, {steps, " steps"},
                      {"at most ", graph.capacity - static_cast<int64_t>(prefix), ", which the cache holds"});
  struct Range {
    const char* name;
    const std::vector<int64_t>& numbers;
    int64_t least, most;
  };
  const int64_t vocab = graph.vocab;
  for (const Range& range :
       {Range{"input_ids", made.input_ids, 0, vocab + static_cast<int64_t>(rows) - 1},
        Range{"lengths", made.lengths, 1, std::min(seq, room)}, Range{"tokens", made.tokens, 0, vocab - 1},
        Range{"logit_ids", made.logit_ids, 0, vocab - 1}})
    for (const int64_t number : range.numbers)
      if (number < range.least || number > range.most)
        return wrong_file(doing, {range.name, " of ", number}, {range.least, " to ", range.most});
  if (!floats.are_finite()) return wrong_file(doing, {"logits that are not finite numbers"}, {"finite ones"});
  return made;
}

}  // namespace plc
