// A task as it stands in a bundle (docs/artifact-format.md, "A task's record"), and its template,
// parsed ("Templates").
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace plc {

enum class WhiteSpace { kKeep, kNemo, kTransformers };

// How the sequences of a task were made in its training.
struct SequenceRules {
  std::optional<int32_t> bos_id;
  std::optional<int32_t> eos_id;
  std::vector<int32_t> end_ids;  // further ids that end an answer

  bool ends(int32_t id) const {
    if (eos_id == id) return true;
    for (int32_t end : end_ids)
      if (end == id) return true;
    return false;
  }
};

struct TaskRecord {
  std::string taskname;
  std::string prompt_template;
  size_t total_virtual_tokens = 0;
  std::vector<size_t> virtual_token_splits;
  std::optional<std::string> truncate_field;
  std::optional<std::string> answer_field;
  bool answer_only_loss = true;
  std::vector<std::string> choices;
  WhiteSpace whitespace = WhiteSpace::kKeep;
  std::optional<std::string> copied_from;  // the field of `answer: span`
  SequenceRules rules;
};

struct Segment {
  enum class Kind { kVirtual, kText, kField };
  Kind kind = Kind::kText;
  std::string text;  // of a text; the name of a field
  size_t start = 0;  // rows `start` to `start + count - 1` of the task's prompt
  size_t count = 0;
};

struct Template {
  std::vector<Segment> segments;  // no two texts are neighbours
  std::optional<std::string> answer_field;
  size_t answer_index = 0;                // of the segment of the answer; their number if none
  std::vector<std::string> input_fields;  // those that a request gives, in order, each once
};

}  // namespace plc
