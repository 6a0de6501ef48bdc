// The files of a task in a bundle. `doing` begins an error's message, and names the file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "contract.h"
#include "label_trie.h"
#include "result.h"
#include "safetensors.h"
#include "task_record.h"

namespace plc {

// Reads task.json of the task of this name. Its template is parsed by `parse_template`.
Result<TaskRecord> read_task_record(std::string_view bytes, const std::string& taskname, int64_t vocab,
                                    const std::string& doing);

// Reads labels.json of a task with these choices.
Result<LabelTrie> read_labels(std::string_view bytes, const std::vector<std::string>& choices, int64_t vocab,
                              const std::string& doing);

// What keys and values of a folded prefix were computed from, each part as text.
struct PrefixIdentity {
  std::string base, graph, prompt, layout, positions, dtype, quantization;
};

struct FoldedPrefix {
  Floats numbers;  // [layers, 2, kv_heads, length, head_dim]
  size_t length = 0;
  PrefixIdentity identity;
};

// Reads folded_kv.safetensors. The numbers are views of the file.
Result<FoldedPrefix> read_folded(const TensorFile& file, const GraphContract& graph,
                                 const std::string& doing);

// Vectors that any runtime can check itself with: docs/artifact-format.md, "Self-test".
struct SelfTest {
  size_t rows = 0, seq = 0, steps = 0;
  std::vector<int64_t> input_ids;  // [rows, seq]
  std::vector<int64_t> lengths;    // [rows]
  std::vector<int64_t> tokens;     // [steps, rows]
  std::vector<int64_t> logit_ids;
  std::vector<float> logits;  // [steps, rows, logit_ids]
};

// Reads selftest.safetensors of a task with so many rows, and a learned prefix of this length.
Result<SelfTest> read_selftest(const TensorFile& file, const GraphContract& graph, size_t rows, size_t prefix,
                               const std::string& doing);

}  // namespace plc
