// A target for libFuzzer. An input's first byte says what the rest is: JSON, a safetensors file, a
// manifest, a task's record, or labels. Whatever it is: nothing crashes or hangs, and what is wrong
// is an error in UTF-8.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "json.h"
#include "manifest.h"
#include "safetensors.h"
#include "task_files.h"
#include "template.h"
#include "utf8.h"

namespace {

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

template <typename Read>
bool is_read(const Read& read) {
  if (!read.ok()) expect(plc::is_utf8(read.error().message), "a message is UTF-8");
  return read.ok();
}

void read_tensors(std::string_view bytes) {
  const auto file = plc::TensorFile::from_memory(bytes, "it");
  if (!is_read(file)) return;
  plc::GraphContract graph;
  graph.layers = 2;
  graph.kv_heads = 3;
  graph.head_dim = 4;
  graph.hidden = 6;
  graph.vocab = 11;
  graph.capacity = 17;
  for (const plc::Tensor& tensor : file.value().tensors())
    if (tensor.dtype == "F32") plc::Floats(tensor).are_finite();
  is_read(plc::read_folded(file.value(), graph, "reading it"));
  is_read(plc::read_selftest(file.value(), graph, 3, 0, "reading it"));
}

void read_task(std::string_view bytes) {
  const auto record = plc::read_task_record(bytes, "mood", 11, "reading it");
  if (!is_read(record)) return;
  const auto parsed = plc::parse_template(record.value());
  if (!is_read(parsed)) return;
  size_t rows = 0;
  for (const plc::Segment& segment : parsed.value().segments) rows += segment.count;
  expect(rows == record.value().total_virtual_tokens, "each row stands somewhere");
}

// A template alone: what stands around it is right.
void read_template(std::string_view bytes) {
  plc::TaskRecord record;
  plc::append_replaced(bytes, record.prompt_template);
  record.total_virtual_tokens = 3;
  record.answer_only_loss = false;
  is_read(plc::parse_template(record));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 6) {
    case 0:
      is_read(plc::parse_json_file(rest, "reading it"));
      break;
    case 1:
      read_tensors(rest);
      break;
    case 2:
      is_read(plc::read_manifest(rest, "opening it"));
      break;
    case 3:
      read_task(rest);
      break;
    case 4:
      is_read(plc::read_labels(rest, {"good", "bad"}, 11, "reading it"));
      break;
    default:
      read_template(rest);
  }
  return 0;
}
