// The files of a task in a bundle. `doing` begins an error's message, and names the file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "contract.h"
#include "result.h"
#include "safetensors.h"
#include "task_record.h"

namespace plc {

// Reads task.json of the task of this name. Its template is parsed by `parse_template`.
Result<TaskRecord> read_task_record(std::string_view bytes, const std::string& taskname,
                                    int64_t vocab, const std::string& doing);

// The choices of a task as a tree of tokens. Node 0 is the root, where nothing is written yet. A
// parent stands before its children.
struct LabelTree {
  std::vector<std::string> labels;  // as they stand in the data
  std::vector<int32_t> parents;     // for each node; -1 of the root
  std::vector<int32_t> tokens;      // for each node the token that leads to it; -1 of the root
  std::vector<int32_t> ends;        // for each label its node
  bool fixed = true;                // whether it is the same after every prompt

  bool operator==(const LabelTree& other) const;
};

// Reads labels.json of a task with these choices.
Result<LabelTree> read_labels(std::string_view bytes, const std::vector<std::string>& choices,
                              int64_t vocab, const std::string& doing);

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
Result<SelfTest> read_selftest(const TensorFile& file, const GraphContract& graph, size_t rows,
                               size_t prefix, const std::string& doing);

}  // namespace plc
