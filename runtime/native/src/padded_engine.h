// The engine for padded rows: each row has a place of its own in the caches, for all its entries.
//
// Input and output of each cache are the same memory, so a step writes only its own tokens. Rows that
// step together must be neighbours: the last rows move into gaps before a step. Rows of several tokens
// run one at a time, since ONNX Runtime's attention takes several tokens after a filled cache for one
// row only. Caches lie in the memory of the provider's device. (runtime/engines/padded.py and
// runtime/engines/onnxruntime/engine.py are the same in Python.)
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "caches.h"
#include "onnx_graph.h"
#include "step_inputs.h"
#include "touched_memory.h"

namespace plc {

class PaddedEngine final : public Engine {
 public:
  static Result<std::unique_ptr<Engine>> open(const std::string& model, const GraphContract& contract,
                                              const Precision& precision, const EngineOptions& options);

  Result<size_t> admit(size_t slot, const EnginePrompt& prompt) override;
  // Rows share nothing.
  size_t share(size_t slot, const std::vector<int64_t>& ids) override;
  bool alike(size_t slot, size_t other) override;
  Status step(const std::vector<Feed>& feeds, std::vector<Fed>& results) override;
  void clear(const std::vector<size_t>& slots) override;
  void retire(const std::vector<size_t>& slots) override;

 private:
  struct Row {
    RowState state{};
    size_t place = 0;
  };
  // Tokens of a row: those of a feed, or some of them.
  struct Part {
    const Feed* feed;
    const EnginePrompt* prompt;
    size_t place, begin, count;
  };

  PaddedEngine(const GraphContract& contract, const Precision& precision, const EngineOptions& options);
  Status take_memory();

  Status close_gaps();
  Status run_together(const std::vector<Part>& parts);
  Status run_alone(const Part& part);
  Status run_one_by_one(const Part& whole, Fed& fed);
  Status run(const Part* parts, size_t count);
  Status give_prompts(const Part* parts, size_t count);
  Status bind_rows(size_t first, size_t count);
  const float* logits_at(size_t place) const;
  int64_t token_at(size_t place) const;

  GraphContract contract_;
  Dtype dtype_;
  std::unique_ptr<OnnxGraph> graph_{};
  std::unique_ptr<Caches> caches_{};
  Status cleared_{};                      // what a call said that cannot fail itself; the next step does
  std::vector<std::optional<Row>> rows_;  // by slot
  TouchedMemory logits_{}, tokens_{};     // by place
  size_t bound_first_ = 0, bound_count_ = 0;
  std::vector<std::vector<float>> copies_{};  // of logits of this step, for feeds that want several
};

}  // namespace plc
