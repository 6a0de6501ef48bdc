#include "padded_engine.h"

#include <algorithm>

#include "cache_numbers.h"
#include "words.h"

namespace plc {
namespace {

// Tokens of a row that are computed together: enough for matrix products at full speed.
constexpr size_t kPiece = 256;

int64_t signed_of(size_t count) { return static_cast<int64_t>(count); }

}  // namespace

Result<std::unique_ptr<Engine>> PaddedEngine::open(const std::string& model, const GraphContract& contract,
                                                   const Precision& precision, const EngineOptions& options) {
  auto graph = OnnxGraph::open(model, contract, cache_dtype(precision), options);
  if (!graph.ok()) return graph.error();
  std::unique_ptr<PaddedEngine> engine(new PaddedEngine(contract, precision, options));
  engine->graph_ = std::move(graph.value());
  if (auto done = engine->take_memory(); !done.ok()) return done.error();
  return std::unique_ptr<Engine>(std::move(engine));
}

PaddedEngine::PaddedEngine(const GraphContract& contract, const Precision& precision,
                           const EngineOptions& options)
    : Engine(contract, options.max_batch),
      contract_(contract),
      dtype_(cache_dtype(precision)),
      rows_(options.max_batch) {
  piece = kPiece;
}

Status PaddedEngine::take_memory() {
  auto caches = Caches::open(contract_, dtype_, max_batch, graph_->device());
  if (!caches.ok()) return caches.error();
  caches_ = std::move(caches.value());
  auto logits = TouchedMemory::zeros({max_batch, vocab, sizeof(float)});
  if (!logits.ok()) return logits.error();
  logits_ = std::move(logits.value());
  auto tokens = TouchedMemory::zeros({max_batch, sizeof(int64_t)});
  if (!tokens.ok()) return tokens.error();
  tokens_ = std::move(tokens.value());
  return {};
}

const float* PaddedEngine::logits_at(size_t place) const {
  return reinterpret_cast<const float*>(logits_.data()) + place * vocab;
}

int64_t PaddedEngine::token_at(size_t place) const {
  return candidates == 0 ? -1 : reinterpret_cast<const int64_t*>(tokens_.data())[place];
}

Result<size_t> PaddedEngine::admit(size_t slot, const EnginePrompt& prompt) {
  if (auto done = check_prompt(*this, slot, prompt); !done.ok()) return done.error();
  if (rows_[slot]) return wrong_feed(slot, {"the slot has a row; expected a free one"});
  // The lowest place that is free.
  std::vector<bool> used(max_batch);
  for (const auto& row : rows_)
    if (row) used[row->place] = true;
  const auto place = static_cast<size_t>(std::find(used.begin(), used.end(), false) - used.begin());
  const size_t length = prompt.prefix == nullptr ? 0 : prompt.prefix_length;
  if (length > 0)
    if (auto done = caches_->write(place, prompt.prefix, length); !done.ok()) return done.error();
  rows_[slot] = Row{{prompt, length}, place};
  return length;
}

size_t PaddedEngine::share(size_t, const std::vector<int64_t>&) { return 0; }

bool PaddedEngine::alike(size_t, size_t) { return false; }

Status PaddedEngine::step(const std::vector<Feed>& feeds, std::vector<Fed>& results) {
  results.assign(feeds.size(), {});
  copies_.clear();
  std::vector<bool> seen(max_batch);
  for (const Feed& feed : feeds) {
    if (feed.slot >= max_batch || !rows_[feed.slot] || seen[feed.slot])
      return wrong_feed(feed.slot, {"no row, or two feeds for it; expected one feed for each row"});
    seen[feed.slot] = true;
    if (auto done = check_feed(*this, feed, rows_[feed.slot]->state); !done.ok()) return done;
  }
  if (!cleared_.ok()) return cleared_;
  if (auto done = close_gaps(); !done.ok()) return done;
  std::vector<Part> plain;
  for (const Feed& feed : feeds) {
    Row& row = *rows_[feed.slot];
    row.state.entries = feed.past + feed.ids.size();
    if (feed.wanted.empty()) plain.push_back({&feed, &row.state.prompt, row.place, 0, feed.ids.size()});
  }
  std::sort(plain.begin(), plain.end(), [](const Part& a, const Part& b) { return a.place < b.place; });
  if (auto done = run_together(plain); !done.ok()) return done;
  for (size_t index = 0; index < feeds.size(); ++index) {
    const Feed& feed = feeds[index];
    const Row& row = *rows_[feed.slot];
    if (feed.wanted.empty()) {
      results[index] = {logits_at(row.place), 1, feed.draw ? token_at(row.place) : -1};
      continue;
    }
    const Part whole{&feed, &row.state.prompt, row.place, 0, feed.ids.size()};
    if (auto done = run_one_by_one(whole, results[index]); !done.ok()) return done;
  }
  return {};
}

// Parts by place, in ascending order: neighbours of one token each run together.
Status PaddedEngine::run_together(const std::vector<Part>& parts) {
  for (size_t begin = 0, end = 0; begin < parts.size(); begin = end) {
    end = begin + 1;
    if (parts[begin].count > 1) {
      if (auto done = run_alone(parts[begin]); !done.ok()) return done;
      continue;
    }
    while (end < parts.size() && parts[end].count == 1 && parts[end].place == parts[end - 1].place + 1) ++end;
    if (auto done = run(&parts[begin], end - begin); !done.ok()) return done;
  }
  return {};
}

// In pieces: for a token, nothing after its piece is computed.
Status PaddedEngine::run_alone(const Part& part) {
  for (size_t begin = 0; begin < part.count; begin += kPiece) {
    Part some = part;
    some.begin = part.begin + begin;
    some.count = std::min(kPiece, part.count - begin);
    if (auto done = run(&some, 1); !done.ok()) return done;
  }
  return {};
}

// A feed with several outputs: a run up to each of them, and one for what follows.
Status PaddedEngine::run_one_by_one(const Part& whole, Fed& fed) {
  std::vector<float>& copy = copies_.emplace_back();
  Part part = whole;
  for (const int64_t place : whole.feed->wanted) {
    part.count = static_cast<size_t>(place) + 1 - part.begin;
    if (auto done = run_alone(part); !done.ok()) return done;
    copy.insert(copy.end(), logits_at(part.place), logits_at(part.place) + vocab);
    if (whole.feed->draw) fed.token = token_at(part.place);
    part.begin += part.count;
  }
  fed.logits = copy.data();  // a vector keeps its numbers where they are when it is moved itself
  fed.outputs = whole.feed->wanted.size();
  part.count = whole.count - part.begin;
  return part.count == 0 ? Status() : run_alone(part);
}

// One run of the graph over parts in neighbouring places, of as many tokens each.
Status PaddedEngine::run(const Part* parts, size_t count) {
  const size_t tokens = parts[0].count;
  std::vector<int64_t> ids, past, last(count, signed_of(tokens) - 1);
  std::vector<const GraphDraw*> draws;
  for (const Part* part = parts; part != parts + count; ++part) {
    const auto begin = part->feed->ids.begin() + static_cast<ptrdiff_t>(part->begin);
    ids.insert(ids.end(), begin, begin + static_cast<ptrdiff_t>(tokens));
    past.push_back(signed_of(part->feed->past + part->begin));
    draws.push_back(part->feed->draw ? &*part->feed->draw : nullptr);
  }
  if (auto done = graph_->give("input_ids", {signed_of(count), signed_of(tokens)}, ids.data()); !done.ok())
    return done;
  if (auto done = graph_->give("past_lengths", past); !done.ok()) return done;
  if (auto done = graph_->give("last_index", last); !done.ok()) return done;
  if (auto done = give_prompts(parts, count); !done.ok()) return done;
  if (candidates > 0) {
    if (auto done = give_draws(*graph_, contract_, draws); !done.ok()) return done;
  }
  if (auto done = bind_rows(parts[0].place, count); !done.ok()) return done;
  return graph_->run();
}

Status PaddedEngine::give_prompts(const Part* parts, size_t count) {
  if (contract_.prompts == PromptsMode::kBaked) {
    std::vector<int64_t> tasks;
    for (size_t k = 0; k < count; ++k) tasks.push_back(parts[k].prompt->task_id);
    return graph_->give("task_id", tasks);
  }
  // At least one row: a Gather from an empty table is an error, even where no id reads it.
  size_t longest = 1;
  bool asked_for = false;
  for (size_t k = 0; k < count; ++k) {
    const int64_t* ids = parts[k].feed->ids.data() + parts[k].begin;
    asked_for = asked_for ||
                std::any_of(ids, ids + parts[k].count, [this](int64_t id) { return id >= contract_.vocab; });
  }
  for (size_t k = 0; asked_for && k < count; ++k)
    if (parts[k].prompt->rows != nullptr) longest = std::max(longest, parts[k].prompt->virtual_rows);
  const auto hidden = static_cast<size_t>(contract_.hidden);
  std::vector<float> table(count * longest * hidden, 0.0f);
  for (size_t k = 0; asked_for && k < count; ++k) {
    const EnginePrompt& prompt = *parts[k].prompt;
    if (prompt.rows != nullptr)
      std::copy_n(prompt.rows, prompt.virtual_rows * hidden, table.data() + k * longest * hidden);
  }
  return graph_->give("prompt_table", {signed_of(count), signed_of(longest), contract_.hidden}, table.data());
}

// Binds the memory of some places: caches, logits, tokens.
Status PaddedEngine::bind_rows(size_t first, size_t count) {
  if (first == bound_first_ && count == bound_count_) return {};
  bound_count_ = 0;
  const int64_t rows = signed_of(count);
  const std::vector<int64_t> shape{rows, contract_.kv_heads, contract_.capacity, contract_.head_dim};
  for (size_t cache = 0; cache < cache_count(contract_); ++cache)
    if (auto done = graph_->bind_cache(cache, shape, caches_->address(cache, first), graph_->device());
        !done.ok())
      return done;
  auto* logits = reinterpret_cast<float*>(logits_.data()) + first * vocab;
  if (auto done = graph_->bind_logits({rows, contract_.vocab}, logits); !done.ok()) return done;
  if (candidates > 0) {
    auto* tokens = reinterpret_cast<int64_t*>(tokens_.data()) + first;
    if (auto done = graph_->bind_tokens(rows, tokens); !done.ok()) return done;
  }
  bound_first_ = first;
  bound_count_ = count;
  return {};
}

// Moves the last rows into places that are free before them.
Status PaddedEngine::close_gaps() {
  std::vector<Row*> by_place(max_batch);
  size_t rows = 0;
  for (auto& row : rows_) {
    if (!row) continue;
    by_place[row->place] = &*row;
    ++rows;
  }
  size_t last = max_batch;
  for (size_t gap = 0; gap < rows; ++gap) {
    if (by_place[gap] != nullptr) continue;
    while (by_place[--last] == nullptr) {}
    Row& row = *by_place[last];
    if (auto done = caches_->copy(last, gap, row.state.entries); !done.ok()) return done;
    row.place = gap;
    std::swap(by_place[gap], by_place[last]);
  }
  return {};
}

void PaddedEngine::clear(const std::vector<size_t>& slots) {
  for (const size_t slot : slots) {
    if (slot >= max_batch || !rows_[slot]) continue;
    if (auto done = caches_->clear(rows_[slot]->place); !done.ok()) cleared_ = done;
  }
}

void PaddedEngine::retire(const std::vector<size_t>& slots) {
  for (const size_t slot : slots)
    if (slot < max_batch) rows_[slot].reset();
}

}  // namespace plc
