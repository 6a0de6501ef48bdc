#include "ragged_engine.h"

#include <unistd.h>
#if defined(__APPLE__)
#include <sys/random.h>
#endif

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cache_numbers.h"
#include "linked_kernels.h"
#include "words.h"

namespace plc {
namespace {

constexpr size_t kBlock = 16;  // entries
constexpr size_t kTile = 16;   // logits

// Tokens of a prompt that come together with the tokens of other rows: more keep those waiting for
// longer, and compute each little faster.
constexpr size_t kPieceTogether = 128, kPieceAlone = 256;

// What part of the entries of all rows is kept for prompts that begin alike; one row's at least.
constexpr size_t kPartKept = 8;

constexpr size_t divided_up(size_t count, size_t by) { return count / by + (count % by != 0); }

int64_t signed_of(size_t count) { return static_cast<int64_t>(count); }

}  // namespace

size_t RaggedEngine::Row::room() const { return (first + blocks.size()) * kBlock; }

void RaggedEngine::Row::add(size_t block) {
  table[first + blocks.size()] = signed_of(block);
  blocks.push_back(block);
}

Result<std::unique_ptr<Engine>> RaggedEngine::open(const std::string& model, const GraphContract& contract,
                                                   const Precision& precision, bool own_products,
                                                   const EngineOptions& options) {
  if (is_on_gpu(options.provider))
    return Error{ErrorCode::kArgument,
                 joined({"loading ", model, ": the provider ", options.provider.name,
                         ", and a graph whose caches lie in blocks; expected the provider cpu. Export for "
                         "onnx-cuda to run on a GPU."})};
  auto graph = OnnxGraph::open(model, contract, cache_dtype(precision), options);
  if (!graph.ok()) return graph.error();
  std::unique_ptr<RaggedEngine> engine(new RaggedEngine(contract, precision, own_products, options));
  engine->graph_ = std::move(graph.value());
  if (auto done = engine->take_memory(options.max_batch, options.context_mib); !done.ok())
    return done.error();
  return std::unique_ptr<Engine>(std::move(engine));
}

RaggedEngine::RaggedEngine(const GraphContract& contract, const Precision& precision, bool own_products,
                           const EngineOptions& options)
    : Engine(contract, options.max_batch),
      contract_(contract),
      dtype_(cache_dtype(precision)),
      width_(divided_up(static_cast<size_t>(contract.capacity), kBlock)),
      block_bytes_(static_cast<size_t>(contract.kv_heads) * kBlock * static_cast<size_t>(contract.head_dim) *
                   bytes_of(dtype_)),
      rows_(options.max_batch) {
  // Without the kernels ONNX Runtime runs the calls' bodies, which know neither branches nor prefixes
  // that are held.
  together = branches = own_products && kHasKernels;
  piece = together ? kPieceTogether : kPieceAlone;
  if (kHasKernels) prefixes_ = std::make_unique<HeldPrefixes>(contract, precision.prefix_bits);
}

Status RaggedEngine::take_memory(size_t rows, std::optional<size_t> context_mib) {
  const size_t count = rows * width_;
  size_t keep = 0;
  if (together && !context_mib) keep = std::max(width_, count / kPartKept);
  else if (together)
    keep = divided_up(std::min(*context_mib, size_t{1} << 20) << 20, cache_count(contract_) * block_bytes_);
  const size_t blocks = count + keep;
  for (size_t cache = 0; cache < cache_count(contract_); ++cache) {
    auto memory = TouchedMemory::zeros({blocks, block_bytes_});
    if (!memory.ok()) return memory.error();
    caches_.push_back(std::move(memory.value()));
    const std::vector<int64_t> shape{signed_of(blocks), contract_.kv_heads, signed_of(kBlock),
                                     contract_.head_dim};
    if (auto done = graph_->bind_cache(cache, shape, caches_.back().data(), nullptr); !done.ok()) return done;
  }
  // Each row may have as many blocks as its longest text takes, so there is always a free one.
  pool_ = BlockPool(blocks, keep);
  if (::getentropy(&secret_, sizeof secret_) != 0)
    return Error{ErrorCode::kArgument, "beginning to share prompts: the system gives no random numbers"};
  return {};
}

Result<size_t> RaggedEngine::admit(size_t slot, const EnginePrompt& prompt) {
  if (auto done = check_prompt(*this, slot, prompt); !done.ok()) return done.error();
  if (rows_[slot]) return wrong_feed(slot, {"the slot has a row; expected a free one"});
  Row row;
  row.state.prompt = prompt;
  row.table.assign(width_, 0);
  const bool has_prefix = prompt.prefix != nullptr && prompt.prefix_length > 0;
  const size_t length = has_prefix ? prompt.prefix_length : 0;
  row.state.entries = length;
  if (has_prefix && prefixes_ != nullptr) {
    auto number = prefixes_->number(prompt);
    if (!number.ok()) return number.error();
    row.prefix = number.value();
    row.length = length;
    row.first = length / kBlock;
  } else if (has_prefix) {
    write_prefix(row, length);
  }
  rows_[slot] = std::move(row);
  return length;
}

size_t RaggedEngine::share(size_t slot, const std::vector<int64_t>& ids) {
  if (pool_.keep() == 0 || slot >= max_batch || !rows_[slot] || ids.empty()) return 0;
  Row& row = *rows_[slot];
  if (row.ids.empty()) {
    const bool is_fed = !row.blocks.empty() || row.state.entries > row.length;
    if (is_fed || ids.size() > capacity - row.length) return 0;
    for (const int64_t id : ids)
      if (id < 0 || static_cast<size_t>(id) >= vocab + row.state.prompt.virtual_rows) return 0;
    row.ids = ids;
    row.keys = keys_of(row, ids);
  }
  while (row.room() + kBlock < row.length + row.ids.size()) {
    const auto block = pool_.find(row.keys[row.blocks.size()]);
    if (!block) break;
    row.add(*block);
  }
  row.fixed = row.room();
  const size_t held = row.room() > row.length ? row.room() - row.length : 0;
  row.state.entries = std::max(row.state.entries, row.length + held);
  return held;
}

// At least half of the blocks that both fill must be the same.
bool RaggedEngine::alike(size_t slot, size_t other) {
  if (std::max(slot, other) >= max_batch || !rows_[slot] || !rows_[other]) return false;
  const Row &row = *rows_[slot], &before = *rows_[other];
  const size_t half = std::max(row.keys.size(), before.keys.size()) / 2;
  if (row.blocks.size() > half || half >= std::min(row.keys.size(), before.keys.size())) return false;
  return row.keys[half] == before.keys[half];
}

// What the blocks that a prompt fills are computed from: each sum is over all before it, too. That is
// the prefix (a number of a prefix is never given twice), the prompt's virtual rows, and its tokens. No
// name is in it: a task that is replaced has another prefix, or other rows.
std::vector<BlockKey> RaggedEngine::keys_of(const Row& row, const std::vector<int64_t>& ids) const {
  KeyedHash begin(secret_);
  begin.add(static_cast<uint64_t>(row.prefix));
  const auto hidden = static_cast<size_t>(contract_.hidden);
  bool is_first = true;
  for (const int64_t id : ids) {
    if (static_cast<size_t>(id) < vocab) continue;
    if (is_first) {
      const bool baked = contract_.prompts == PromptsMode::kBaked;
      begin.add(static_cast<uint64_t>(baked ? row.state.prompt.task_id : 0));
      is_first = false;
    }
    const size_t number = static_cast<size_t>(id) - vocab;
    if (row.state.prompt.rows != nullptr)
      begin.add(row.state.prompt.rows + number * hidden, hidden * sizeof(float));
  }
  BlockKey key = begin.sum();
  std::vector<BlockKey> keys;
  for (size_t end = row.room() + kBlock - row.length; end <= ids.size(); end += kBlock) {
    KeyedHash next(secret_);
    next.add(key);
    for (size_t at = end > kBlock ? end - kBlock : 0; at < end; ++at)
      next.add(static_cast<uint64_t>(ids[at]));
    key = next.sum();
    keys.push_back(key);
  }
  return keys;
}

// Copies what a prefix begins with into a row's own blocks.
void RaggedEngine::write_prefix(Row& row, size_t entries) {
  make_room(row, entries);
  const EnginePrompt& prompt = row.state.prompt;
  const auto heads = static_cast<size_t>(contract_.kv_heads), dim = static_cast<size_t>(contract_.head_dim);
  const size_t entry_bytes = dim * bytes_of(dtype_);
  for (size_t cache = 0; cache < caches_.size(); ++cache) {
    for (size_t head = 0; head < heads; ++head) {
      const float* from = prompt.prefix + (cache * heads + head) * prompt.prefix_length * dim;
      for (size_t entry = 0; entry < entries; entry += kBlock) {
        char* to =
            caches_[cache].data() + row.blocks[entry / kBlock] * block_bytes_ + head * kBlock * entry_bytes;
        write_numbers(from + entry * dim, std::min(kBlock, entries - entry) * dim, dtype_, to);
      }
    }
  }
}

void RaggedEngine::make_room(Row& row, size_t entries) {
  while (row.room() < entries) row.add(pool_.take());
}

Status RaggedEngine::check(const std::vector<Feed>& feeds) const {
  std::vector<bool> seen(max_batch);
  for (const Feed& feed : feeds) {
    if (feed.slot >= max_batch || !rows_[feed.slot] || seen[feed.slot])
      return wrong_feed(feed.slot, {"no row, or two feeds for it; expected one feed for each row"});
    seen[feed.slot] = true;
    const Row& row = *rows_[feed.slot];
    if (auto done = check_feed(*this, feed, row.state); !done.ok()) return done;
    const bool within_prefix = feed.past < row.length;
    if (within_prefix ? !row.blocks.empty() : feed.past < row.fixed)
      return wrong_feed(feed.slot,
                        {feed.past, " entries before its tokens, and others read those that follow"});
    if (within_prefix || row.ids.empty()) continue;
    const size_t begin = feed.past - row.length;
    if (begin > row.ids.size() || feed.ids.size() > row.ids.size() - begin ||
        !std::equal(feed.ids.begin(), feed.ids.end(), row.ids.begin() + static_cast<ptrdiff_t>(begin)))
      return wrong_feed(feed.slot, {"other tokens than those that it was to share"});
  }
  return {};
}

Status RaggedEngine::step(const std::vector<Feed>& feeds, std::vector<Fed>& results) {
  results.assign(feeds.size(), {});
  old_.clear();
  if (feeds.empty()) return {};
  if (auto done = check(feeds); !done.ok()) return done;
  for (const Feed& feed : feeds) {
    Row& row = *rows_[feed.slot];
    if (feed.past < row.length) {
      // A prompt that is no longer than its prefix: a step needs a token, so the last one is computed
      // again. No token may stand within a prefix, so the row gets a copy of what comes before.
      Row own;
      own.state = {row.state.prompt, feed.past};
      own.table.assign(width_, 0);
      if (feed.past > 0) write_prefix(own, feed.past);
      row = std::move(own);
    }
    const size_t end = feed.past + feed.ids.size();
    make_room(row, end);
    row.state.entries = std::max(row.state.entries, end);
  }
  Run all(feeds.size());
  std::iota(all.begin(), all.end(), size_t{0});
  if (together) {
    if (auto done = run(feeds, all, 0, results); !done.ok()) return done;
    name_blocks(feeds);
    return {};
  }
  std::vector<Run> runs(1);
  for (const size_t index : all) {
    if (feeds[index].ids.size() == 1) runs[0].push_back(index);
    else runs.push_back({index});
  }
  size_t first = 0;
  for (const Run& some : runs) {
    if (some.empty()) continue;
    if (auto done = run(feeds, some, first, results); !done.ok()) return done;
    for (const size_t index : some) first += results[index].outputs;
  }
  return {};
}

// Names the blocks of prompts that were fed to their ends, so that later rows find them. The blocks of
// an answer have no names: what follows a prompt may be rewound. `clear` takes the names away where
// numbers are not finite.
void RaggedEngine::name_blocks(const std::vector<Feed>& feeds) {
  for (const Feed& feed : feeds) {
    Row& row = *rows_[feed.slot];
    if (row.ids.empty() || feed.past + feed.ids.size() - row.length < row.ids.size()) continue;
    // The last block may not be full: it has no key.
    for (size_t k = 0; k < row.keys.size(); ++k) pool_.name(row.blocks[k], row.keys[k]);
    row.fixed = (row.first + row.keys.size()) * kBlock;
    row.ids.clear();
    row.keys.clear();
  }
}

// Binds the graph's results to memory that comes after `first` others of the same step.
Status RaggedEngine::room_for_results(size_t first, size_t count) {
  if (first + count > results_room_) {
    // What lies in the old memory is in use as long as its step is.
    const size_t room = results_room_ == 0 ? std::max(max_batch, first + count) : 2 * (first + count);
    auto logits = TouchedMemory::zeros({room, vocab, sizeof(float)});
    if (!logits.ok()) return logits.error();
    auto tokens = TouchedMemory::zeros({room, sizeof(int64_t)});
    if (!tokens.ok()) return tokens.error();
    old_.push_back(std::move(logits_));
    old_.push_back(std::move(tokens_));
    logits_ = std::move(logits.value());
    tokens_ = std::move(tokens.value());
    results_room_ = room;
    bound_count_ = 0;
  }
  if (bound_first_ == first && bound_count_ == count) return {};
  bound_count_ = 0;
  auto* logits = reinterpret_cast<float*>(logits_.data()) + first * vocab;
  if (auto done = graph_->bind_logits({signed_of(count), contract_.vocab}, logits); !done.ok()) return done;
  if (candidates > 0) {
    auto* tokens = reinterpret_cast<int64_t*>(tokens_.data()) + first;
    if (auto done = graph_->bind_tokens(signed_of(count), tokens); !done.ok()) return done;
  }
  bound_first_ = first;
  bound_count_ = count;
  return {};
}

// One run of the graph; its results lie after `first` others of the step.
Status RaggedEngine::run(const std::vector<Feed>& feeds, const Run& some, size_t first,
                         std::vector<Fed>& results) {
  if (auto done = give_inputs(feeds, some); !done.ok()) return done;
  size_t count = 0;
  for (const size_t index : some) count += outputs_of(feeds[index]);
  if (auto done = room_for_results(first, count); !done.ok()) return done;
  if (auto done = graph_->run(); !done.ok()) return done;
  const auto* logits = reinterpret_cast<const float*>(logits_.data());
  const auto* tokens = reinterpret_cast<const int64_t*>(tokens_.data());
  for (const size_t index : some) {
    Fed& fed = results[index];
    fed.logits = logits + first * vocab;
    fed.outputs = outputs_of(feeds[index]);
    first += fed.outputs;
    if (feeds[index].draw) fed.token = tokens[first - 1];
  }
  return {};
}

Status RaggedEngine::give_inputs(const std::vector<Feed>& feeds, const Run& some) {
  std::vector<int64_t> ids, positions, token_rows, parents, logit_tokens, tables, prefixes, tasks;
  std::vector<const GraphDraw*> draws;
  const bool branching =
      std::any_of(some.begin(), some.end(), [&](size_t index) { return !feeds[index].parents.empty(); });
  for (size_t number = 0; number < some.size(); ++number) {
    const Feed& feed = feeds[some[number]];
    const Row& row = *rows_[feed.slot];
    const size_t begin = ids.size(), count = feed.ids.size();
    ids.insert(ids.end(), feed.ids.begin(), feed.ids.end());
    token_rows.insert(token_rows.end(), count, signed_of(number));
    tasks.insert(tasks.end(), count, row.state.prompt.task_id);
    for (size_t k = 0; k < count; ++k) {
      const int64_t parent = feed.parents.empty() ? signed_of(k) - 1 : feed.parents[k];
      positions.push_back(parent < 0 ? signed_of(feed.past)
                                     : positions[begin + static_cast<size_t>(parent)] + 1);
      if (branching) parents.push_back(parent);
    }
    if (feed.wanted.empty()) logit_tokens.push_back(signed_of(begin + count) - 1);
    for (const int64_t place : feed.wanted) logit_tokens.push_back(signed_of(begin) + place);
    // A graph that can choose does so after every token that is asked for.
    draws.insert(draws.end(), outputs_of(feed) - 1, nullptr);
    draws.push_back(feed.draw ? &*feed.draw : nullptr);
    tables.insert(tables.end(), row.table.begin(), row.table.end());
    prefixes.push_back(row.prefix);
  }
  const std::vector<int64_t> of_tokens{1, signed_of(ids.size())};
  if (contract_.prompts == PromptsMode::kBaked) {
    if (auto done = graph_->give("task_id", of_tokens, tasks.data()); !done.ok()) return done;
  } else {
    if (auto done = give_prompts(feeds, some, ids); !done.ok()) return done;
  }
  if (auto done = graph_->give("input_ids", of_tokens, ids.data()); !done.ok()) return done;
  if (auto done = graph_->give("positions", of_tokens, positions.data()); !done.ok()) return done;
  if (auto done = graph_->give("token_rows", token_rows); !done.ok()) return done;
  if (auto done = graph_->give("parents", parents); !done.ok()) return done;
  if (auto done = graph_->give("logit_tokens", logit_tokens); !done.ok()) return done;
  const std::vector<int64_t> of_tables{signed_of(some.size()), signed_of(width_)};
  if (auto done = graph_->give("block_tables", of_tables, tables.data()); !done.ok()) return done;
  if (auto done = graph_->give("prefixes", prefixes); !done.ok()) return done;
  if (contract_.logit_tiles) {
    if (auto done = give_tiles(feeds, some); !done.ok()) return done;
  }
  return candidates > 0 ? give_draws(*graph_, contract_, draws) : Status();
}

// Gives the prompts of the feeds that read theirs, one after the other; `ids` become their rows.
Status RaggedEngine::give_prompts(const std::vector<Feed>& feeds, const Run& some,
                                  std::vector<int64_t>& ids) {
  const auto hidden = static_cast<size_t>(contract_.hidden);
  // At least one row: a Gather from an empty table is an error, even where no id reads it.
  std::vector<float> table(hidden, 0.0f);
  size_t rows = 1, at = 0;
  for (const size_t index : some) {
    const Feed& feed = feeds[index];
    const size_t end = at + feed.ids.size();
    if (asks_for_rows(feed, vocab)) {
      const EnginePrompt& prompt = rows_[feed.slot]->state.prompt;
      table.insert(table.end(), prompt.rows, prompt.rows + prompt.virtual_rows * hidden);
      for (size_t k = at; k < end; ++k)
        if (ids[k] >= contract_.vocab) ids[k] += signed_of(rows);
      rows += prompt.virtual_rows;
    }
    at = end;
  }
  return graph_->give("prompt_table", {1, signed_of(rows), contract_.hidden}, table.data());
}

// The tiles of the logits that feeds look at; no elements, for all, where one looks at all.
Status RaggedEngine::give_tiles(const std::vector<Feed>& feeds, const Run& some) {
  std::vector<int64_t> tiles;
  bool all = false;
  for (const size_t index : some) {
    all = all || feeds[index].all_logits;
    for (const int64_t id : feeds[index].looked_at) tiles.push_back(id / signed_of(kTile));
  }
  std::sort(tiles.begin(), tiles.end());
  tiles.erase(std::unique(tiles.begin(), tiles.end()), tiles.end());
  // Where nothing is looked at, one tile is the least that can be asked for.
  if (tiles.empty()) tiles.push_back(0);
  if (all) tiles.clear();
  return graph_->give("logit_tiles", tiles);
}

void RaggedEngine::clear(const std::vector<size_t>& slots) {
  std::vector<size_t> blocks;
  for (const size_t slot : slots)
    if (slot < max_batch && rows_[slot])
      blocks.insert(blocks.end(), rows_[slot]->blocks.begin(), rows_[slot]->blocks.end());
  for (const size_t block : pool_.forget(blocks))
    for (TouchedMemory& cache : caches_) std::memset(cache.data() + block * block_bytes_, 0, block_bytes_);
}

void RaggedEngine::retire(const std::vector<size_t>& slots) {
  for (const size_t slot : slots) {
    if (slot >= max_batch || !rows_[slot]) continue;
    pool_.give_back(rows_[slot]->blocks);
    rows_[slot].reset();
  }
  // The memory of blocks that are not likely to be used again soon goes back to the system.
  for (const auto& [begin, end] : pool_.idle())
    for (TouchedMemory& cache : caches_) cache.give_back(begin * block_bytes_, end * block_bytes_);
}

}  // namespace plc
