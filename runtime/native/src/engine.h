// An engine computes tokens of rows, whose keys and values it keeps. What runs when is decided
// elsewhere. (runtime/engines/engine.py is the same in Python.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "contract.h"
#include "result.h"

namespace plc {

// A task as an engine needs it. Engines copy it for each row; the numbers stay where they are.
struct EnginePrompt {
  const float* rows = nullptr;    // [virtual, hidden]
  size_t virtual_rows = 0;        // 0 where prefix tuning learned the task
  const float* prefix = nullptr;  // [layers, 2, kv_heads, prefix_length, head_dim]; null for none
  size_t prefix_length = 0;
  int64_t task_id = 0;  // its number in a graph with baked prompts
  // Of the numbers: while it lives they neither move nor change. Null where they live as long as the
  // engine, and no other task's ever lie in their place.
  std::shared_ptr<const void> owner{};
};

// How a graph that samples chooses a row's next token (docs/artifact-format.md, "In the graph").
struct GraphDraw {
  float temperature = 0.0f;
  int64_t top_k = 1;
  float top_p = 1.0f;
  float min_p = 0.0f;
  std::vector<float> noise{0.0f};  // [top_k]
};

// Tokens that a row is fed in a step.
struct Feed {
  size_t slot = 0;
  std::vector<int64_t> ids;  // at least one; `vocab + r` stands for row `r` of the prompt
  size_t past = 0;           // valid entries of the row before the step
  std::optional<GraphDraw> draw;
  // Places in `ids` after which logits are computed, ascending; the last one alone where empty.
  std::vector<int64_t> wanted;
  // For each token the place in `ids` of the one that it follows, -1 for the row's last entry; each
  // follows the one before where empty.
  std::vector<int64_t> parents;
  // Tokens of the vocabulary whose logits are looked at: others may be minus infinity.
  // `all_logits` false with an empty list: nobody looks at any.
  bool all_logits = true;
  std::vector<int64_t> looked_at;
};

// Valid until the next step.
struct Fed {
  const float* logits = nullptr;  // [outputs, vocab]
  size_t outputs = 0;
  int64_t token = -1;  // that the graph chose after the last one; -1 where it chose none
};

class Engine {
 public:
  virtual ~Engine() = default;

  size_t capacity;  // most entries of a row
  size_t vocab;
  size_t max_batch;   // slots
  size_t candidates;  // likeliest tokens that the graph chooses from; 0 if it cannot choose
  std::vector<std::string> sampling_inputs;
  size_t piece = 0;       // tokens of a prompt that are best computed together
  bool branches = false;  // whether a feed may have `parents`
  // Whether no number of a token depends on how a prompt is cut, or on what comes with it.
  bool together = false;

  // Begins a row with the prefix of its prompt; its length. The slot is one without a row.
  virtual Result<size_t> admit(size_t slot, const EnginePrompt& prompt) = 0;
  // Begins a prompt with entries that other rows have computed: how many of `ids`, never all.
  // `ids` is all that the row is to be fed of its prompt. Called before the row is fed, and again
  // as often as is wanted.
  virtual size_t share(size_t slot, const std::vector<int64_t>& ids) = 0;
  // Whether a prompt had better wait for the end of another: it could share most of it then.
  virtual bool alike(size_t slot, size_t other) = 0;
  virtual Status step(const std::vector<Feed>& feeds, std::vector<Fed>& results) = 0;
  // Sets entries of rows to zero whose numbers are not finite, before they are retired.
  virtual void clear(const std::vector<size_t>& slots) = 0;
  virtual void retire(const std::vector<size_t>& slots) = 0;

 protected:
  Engine(const GraphContract& contract, size_t slots)
      : capacity(static_cast<size_t>(contract.capacity)),
        vocab(static_cast<size_t>(contract.vocab)),
        max_batch(slots),
        candidates(static_cast<size_t>(contract.candidates)),
        sampling_inputs(contract.sampling_inputs) {}
};

}  // namespace plc
