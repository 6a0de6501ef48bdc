// The reader of bundles as a program, for the tests beside it.
//
//     bundle_program
//
// Reads lines from standard input, and answers each with a line: "ok" and what was read, or
// "refused" and why, as JSON text. Bytes are hexadecimal, "-" for none; numbers stand between
// commas.
//
//     json PATH                  a file of JSON: its value, with doubles as the bits of each
//     text BYTES                 a text as "JSON text for sums"
//     sum BYTES PIECE            its sha256, added in pieces of this size
//     tensors BYTES              a safetensors file
//     task VOCAB NAME BYTES      task.json: the record and the template
//     labels VOCAB CHOICES BYTES labels.json; CHOICES is a list in JSON
//     open PATH FLAGS            a bundle; FLAGS: "failed" allows it, "weights" leaves them out
//     prompt PATH TASK LAYOUT N  what an engine is given: how many rows, the length of the prefix
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>

#include "bundle.h"
#include "hex.h"
#include "json.h"
#include "sha256.h"
#include "template.h"
#include "utf8.h"

namespace {

using plc::Json;

std::string quoted(const std::string& text) {
  std::string made;
  plc::append_json_text(text, made);
  return made;
}

std::string refused(const plc::Error& error) {
  std::string message;
  plc::append_replaced(error.message, message);
  if (message != error.message) std::abort();  // a message is UTF-8
  return "refused " + quoted(message);
}

// Values of one kind as a list.
template <typename Values, typename Show>
std::string list_of(const Values& values, Show show) {
  std::string text = "[";
  for (const auto& value : values) text += (text.size() > 1 ? ", " : "") + show(value);
  return text + "]";
}

template <typename Number>
std::string numbers_of(const std::vector<Number>& numbers) {
  return list_of(numbers, [](Number number) { return std::to_string(number); });
}

std::string texts_of(const std::vector<std::string>& texts) { return list_of(texts, quoted); }

std::string text_or_null(const std::optional<std::string>& text) {
  return text ? quoted(*text) : "null";
}

std::string shown(const Json& value) {
  if (const bool* const truth = value.truth()) return *truth ? "true" : "false";
  if (const int64_t* const whole = value.whole()) return std::to_string(*whole);
  if (const double* const number = value.number()) {
    uint64_t bits;
    std::memcpy(&bits, number, sizeof bits);
    return "{\"bits\": " + std::to_string(bits) + "}";
  }
  if (const std::string* const text = value.text()) return quoted(*text);
  if (const Json::List* const items = value.list()) return list_of(*items, shown);
  if (const Json::Object* const members = value.object()) {
    const std::string pairs = list_of(*members, [](const auto& member) {
      return "[" + quoted(member.first) + ", " + shown(member.second) + "]";
    });
    return "{\"object\": " + pairs + "}";
  }
  return "null";
}

std::string shown(const plc::TensorFile& file) {
  return list_of(file.tensors(), [](const plc::Tensor& tensor) {
    return "[" + quoted(tensor.name) + ", " + quoted(tensor.dtype) + ", " +
           numbers_of(tensor.shape) + ", " + quoted(plc::sha256_of(tensor.bytes)) + "]";
  });
}

std::string shown(const plc::TaskRecord& record, const plc::Template& parsed) {
  const char* const kinds[] = {"keep", "nemo", "transformers"};
  const auto id = [](const std::optional<int32_t>& token) {
    return token ? std::to_string(*token) : std::string("null");
  };
  const std::string segments = list_of(parsed.segments, [](const plc::Segment& segment) {
    if (segment.kind == plc::Segment::Kind::kVirtual)
      return "[" + std::to_string(segment.start) + ", " + std::to_string(segment.count) + "]";
    return std::string(segment.kind == plc::Segment::Kind::kText ? "[\"text\", " : "[\"field\", ") +
           quoted(segment.text) + "]";
  });
  return "[" + quoted(record.taskname) + ", " + std::to_string(record.total_virtual_tokens) + ", " +
         texts_of(record.choices) + ", " + quoted(kinds[static_cast<int>(record.whitespace)]) +
         ", " + text_or_null(record.truncate_field) + ", " + text_or_null(record.copied_from) +
         ", " + id(record.rules.bos_id) + ", " + id(record.rules.eos_id) + ", " +
         numbers_of(record.rules.end_ids) + ", " + segments + ", " +
         text_or_null(parsed.answer_field) + ", " + std::to_string(parsed.answer_index) + ", " +
         texts_of(parsed.input_fields) + "]";
}

std::string shown(const plc::LabelTrie& tree) {
  return "[" + texts_of(tree.labels()) + ", " + numbers_of(tree.parents()) + ", " +
         numbers_of(tree.tokens()) + ", " + numbers_of(tree.ends()) + ", " +
         (tree.fixed() ? "true" : "false") + "]";
}

std::string sum_of(const plc::Floats& floats) {
  const auto* const bytes = reinterpret_cast<const char*>(floats.data());
  return quoted(plc::sha256_of({bytes, floats.size() * sizeof(float)}));
}

std::string shown(const plc::Bundle& bundle) {
  const plc::Manifest& manifest = bundle.manifest();
  const plc::GraphContract& graph = manifest.graph;
  std::string text = "[" + quoted(manifest.base.fingerprint) + ", " + quoted(bundle.base_sum()) +
                     ", " + quoted(manifest.target) + ", " +
                     numbers_of(std::vector<int64_t>{
                         graph.layers, graph.kv_heads, graph.head_dim, graph.hidden, graph.vocab,
                         graph.capacity, graph.prompts == plc::PromptsMode::kBaked,
                         graph.candidates, graph.rows == plc::RowsMode::kRagged, graph.logit_tiles,
                         manifest.precision.prefix_bits, manifest.precision.cache_bits,
                         manifest.kernels}) +
                     ", " + texts_of(graph.sampling_inputs) + ", " +
                     quoted(manifest.precision.method) + ", " +
                     quoted(manifest.version_of("kernels")) + ", " +
                     (bundle.has_tokenizer_tables() ? "true" : "false");
  for (const plc::BundleTask& task : bundle.tasks()) {
    const auto vectors = bundle.selftest(task);
    if (!vectors.ok()) return refused(vectors.error());
    text += ", [" + shown(task.record, task.parsed) + ", " + sum_of(task.learned) + ", " +
            (task.has_prefix ? "true" : "false") + ", " +
            (task.folded ? "[" + sum_of(task.folded->numbers) + ", " +
                               std::to_string(task.folded->length) + ", " +
                               quoted(task.folded->identity.prompt) + "]"
                         : "null") +
            ", " + (task.labels ? shown(*task.labels) : "null") + ", " +
            (vectors.value() ? numbers_of(vectors.value()->input_ids) + ", " +
                                   numbers_of(vectors.value()->tokens) + "]"
                             : "null, null]");
  }
  return "ok " + text + "]";
}

std::string task_answer(int64_t vocab, const std::string& name, const std::string& bytes) {
  const auto record = plc::read_task_record(bytes, name, vocab, "reading task.json");
  if (!record.ok()) return refused(record.error());
  const auto parsed = plc::parse_template(record.value());
  if (!parsed.ok()) return refused(parsed.error());
  return "ok " + shown(record.value(), parsed.value());
}

std::string labels_answer(int64_t vocab, const std::string& choices, const std::string& bytes) {
  const auto wanted = plc::parse_json(choices, "choices");
  std::vector<std::string> texts;
  for (const Json& item : *wanted.value().list()) texts.push_back(*item.text());
  const auto tree = plc::read_labels(bytes, texts, vocab, "reading labels.json");
  return tree.ok() ? "ok " + shown(tree.value()) : refused(tree.error());
}

std::string prompt_answer(const plc::Bundle& bundle, const std::string& name,
                          const std::string& layout, size_t opening) {
  const auto task = bundle.task(name);
  if (!task.ok()) return refused(task.error());
  const auto prompt = bundle.prompt(*task.value(), layout, opening);
  if (!prompt.ok()) return refused(prompt.error());
  return "ok [" + std::to_string(prompt.value().virtual_rows) + ", " +
         std::to_string(prompt.value().prefix_length) + ", " +
         std::to_string(prompt.value().task_id) + "]";
}

std::string answer(const std::string& line) {
  std::istringstream in(line);
  std::string mode, first, second, third, fourth;
  in >> mode >> first >> second >> third >> fourth;
  if (mode == "json") {
    const auto file = plc::MappedFile::open(first);
    if (!file.ok()) return refused(file.error());
    const auto value = plc::parse_json_file(file.value().bytes(), "reading it");
    return value.ok() ? "ok " + shown(value.value()) : refused(value.error());
  }
  if (mode == "text") return "ok " + quoted(from_hex(first));
  if (mode == "sum") {
    plc::Sha256 sum, other(true);
    const std::string bytes = from_hex(first);
    const size_t piece = std::stoul(second);
    for (size_t at = 0; at < bytes.size(); at += piece) {
      sum.add(bytes.substr(at, piece));
      other.add(bytes.substr(at, piece));
    }
    const std::string digits = sum.digits();
    if (digits != other.digits()) std::abort();  // an instruction's sum is not the other one
    return "ok " + quoted(digits);
  }
  if (mode == "tensors") {
    const std::string bytes = from_hex(first);
    const auto file = plc::TensorFile::from_memory(bytes, "it");
    return file.ok() ? "ok " + shown(file.value()) : refused(file.error());
  }
  if (mode == "task") return task_answer(std::stoll(first), from_hex(second), from_hex(third));
  if (mode == "labels") return labels_answer(std::stoll(first), from_hex(second), from_hex(third));
  if (mode == "open" || mode == "prompt") {
    plc::BundleOptions options;
    options.allow_failed_parity = second == "failed";
    if (second == "weights") options.sums = plc::BundleOptions::Sums::kAllButWeights;
    const auto bundle = plc::Bundle::open(first, options);
    if (!bundle.ok()) return refused(bundle.error());
    if (mode == "open") return shown(*bundle.value());
    return prompt_answer(*bundle.value(), second, third, std::stoul(fourth));
  }
  std::fprintf(stderr, "no such line: %s\n", line.c_str());
  std::exit(2);
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::printf("%s\n", answer(line).c_str());
    std::fflush(stdout);  // the tests change files between lines
  }
  return 0;
}
