// The engine for ragged rows: caches in blocks, all tokens of a step in one run.
//
// A row's keys and values lie in blocks of a few entries, wherever one is free (arXiv:2309.06180): so
// the memory in use is that of the entries in use, and no row ever moves. A prefix is in memory once,
// whoever begins with it; a row's own blocks begin where its prefix ends. Rows whose prompts begin
// alike after the same prefix use the same blocks for that, as far as these are full.
// (runtime/engines/onnxruntime/ragged.py is the same in Python.)
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "block_pool.h"
#include "held_prefixes.h"
#include "onnx_graph.h"
#include "step_inputs.h"
#include "touched_memory.h"

namespace plc {

class RaggedEngine final : public Engine {
 public:
  // `own_products`: whether all products of the graph are calls of our kernels. Then no number of a
  // token depends on how many others come with it. ONNX Runtime's products have other bits for other
  // numbers of tokens: there each row of several tokens has a run of its own, and rows share nothing.
  static Result<std::unique_ptr<Engine>> open(const std::string& model, const GraphContract& contract,
                                              const Precision& precision, bool own_products,
                                              const EngineOptions& options);

  Result<size_t> admit(size_t slot, const EnginePrompt& prompt) override;
  size_t share(size_t slot, const std::vector<int64_t>& ids) override;
  bool alike(size_t slot, size_t other) override;
  Status step(const std::vector<Feed>& feeds, std::vector<Fed>& results) override;
  void clear(const std::vector<size_t>& slots) override;
  void retire(const std::vector<size_t>& slots) override;

 private:
  struct Row {
    RowState state{};
    int64_t prefix = 0;            // number of the prefix that the kernels hold; 0 for none
    size_t length = 0;             // entries of that prefix
    std::vector<int64_t> table{};  // the blocks of its entries; 0 where it has none
    size_t first = 0;              // the first block that is its own: those before hold its prefix only
    std::vector<size_t> blocks{};  // its own, in their order; those that it shares come first
    // What it is to be fed of its prompt; empty where nothing of it is shared, or all was fed.
    std::vector<int64_t> ids{};
    std::vector<BlockKey> keys{};  // what the blocks that this fills are computed from, in their order
    size_t fixed = 0;  // entries that other rows may read, its prefix counted: they are not written again

    size_t room() const;  // entries that it has blocks for, those of its prefix counted
    void add(size_t block);
  };
  // The feeds of a run, and where they and their results stand in the step.
  using Run = std::vector<size_t>;

  RaggedEngine(const GraphContract& contract, const Precision& precision, bool own_products,
               const EngineOptions& options);
  Status take_memory(size_t rows, std::optional<size_t> context_mib);

  Status check(const std::vector<Feed>& feeds) const;
  std::vector<BlockKey> keys_of(const Row& row, const std::vector<int64_t>& ids) const;
  void write_prefix(Row& row, size_t entries);
  void make_room(Row& row, size_t entries);
  void name_blocks(const std::vector<Feed>& feeds);
  Status room_for_results(size_t first, size_t count);
  Status run(const std::vector<Feed>& feeds, const Run& some, size_t first, std::vector<Fed>& results);
  Status give_inputs(const std::vector<Feed>& feeds, const Run& some);
  Status give_prompts(const std::vector<Feed>& feeds, const Run& some, std::vector<int64_t>& ids);
  Status give_tiles(const std::vector<Feed>& feeds, const Run& some);

  GraphContract contract_;
  Dtype dtype_;
  std::unique_ptr<OnnxGraph> graph_{};
  std::unique_ptr<HeldPrefixes> prefixes_{};
  size_t width_;        // most blocks of a row
  size_t block_bytes_;  // of one cache
  BlockPool pool_{0, 0};
  HashKey secret_{};
  std::vector<TouchedMemory> caches_{};
  std::vector<std::optional<Row>> rows_;  // by slot

  TouchedMemory logits_{}, tokens_{};
  size_t results_room_ = 0;
  size_t bound_first_ = 0, bound_count_ = 0;
  std::vector<TouchedMemory> old_{};  // results of this step that lie in memory that was too small
};

}  // namespace plc
