#include "step_inputs.h"

#include <algorithm>

namespace plc {

Error wrong_feed(size_t slot, Words what) {
  return {ErrorCode::kArgument, joined({"computing tokens of the row in slot ", slot, ": ", joined(what),
                                        ". This is a mistake in what calls the engine."})};
}

Status check_feed(const Engine& engine, const Feed& feed, const RowState& row) {
  const auto count = static_cast<int64_t>(feed.ids.size());
  const auto wrong = [&feed](Words what) { return wrong_feed(feed.slot, what); };
  if (feed.ids.empty()) return wrong({"no tokens; expected at least one"});
  if (feed.past > row.entries)
    return wrong({feed.past, " entries before them; expected at most ", row.entries, ", which it holds"});
  if (feed.ids.size() > engine.capacity - feed.past)
    return wrong({feed.ids.size(), " tokens after ", feed.past, " entries; expected at most ",
                  engine.capacity, " together"});
  const size_t ids = engine.vocab + (row.prompt.rows == nullptr ? 0 : row.prompt.virtual_rows);
  for (const int64_t id : feed.ids)
    if (id < 0 || static_cast<size_t>(id) >= ids) return wrong({"token ", id, "; expected 0 to ", ids - 1});
  int64_t before = -1;
  for (const int64_t place : feed.wanted) {
    if (place <= before || place >= count)
      return wrong({"logits after token ", place, "; expected ascending places below ", count});
    before = place;
  }
  if (!feed.parents.empty()) {
    if (!engine.branches) return wrong({"branches; expected none, since this engine computes no branches"});
    if (feed.parents.size() != feed.ids.size())
      return wrong({feed.parents.size(), " parents; expected ", count});
    for (int64_t place = 0; place < count; ++place) {
      const int64_t parent = feed.parents[static_cast<size_t>(place)];
      if (parent < -1 || parent >= place)
        return wrong({"token ", place, " follows ", parent, "; expected -1 or one before it"});
    }
  }
  for (const int64_t id : feed.looked_at)
    if (id < 0 || static_cast<size_t>(id) >= engine.vocab)
      return wrong({"the logit of token ", id, " is looked at; expected 0 to ", engine.vocab - 1});
  if (feed.draw) {
    const GraphDraw& draw = *feed.draw;
    const size_t most = engine.candidates;
    if (draw.top_k < 1 || static_cast<size_t>(draw.top_k) > most || draw.noise.size() > most)
      return wrong({"a draw among ", draw.top_k, " tokens with ", draw.noise.size(),
                    " numbers of noise; expected 1 to ", most, " tokens, which the graph chooses among"});
  }
  return {};
}

Status check_prompt(const Engine& engine, size_t slot, const EnginePrompt& prompt) {
  if (slot >= engine.max_batch)
    return wrong_feed(slot, {"there is no such slot; expected one below ", engine.max_batch});
  const size_t length = prompt.prefix == nullptr ? 0 : prompt.prefix_length;
  if (length >= engine.capacity)
    return wrong_feed(slot, {"a prefix of ", length, " entries; expected less than ", engine.capacity});
  return {};
}

bool asks_for_rows(const Feed& feed, size_t vocab) {
  return std::any_of(feed.ids.begin(), feed.ids.end(),
                     [vocab](int64_t id) { return static_cast<size_t>(id) >= vocab; });
}

Status give_draws(OnnxGraph& graph, const GraphContract& contract,
                  const std::vector<const GraphDraw*>& draws) {
  static const GraphDraw greedy;
  const auto count = static_cast<int64_t>(draws.size());
  const auto width = static_cast<size_t>(contract.candidates);
  std::vector<float> noise(draws.size() * width, 0.0f);
  for (size_t k = 0; k < draws.size(); ++k) {
    const GraphDraw& draw = draws[k] == nullptr ? greedy : *draws[k];
    std::copy(draw.noise.begin(), draw.noise.end(), noise.begin() + static_cast<ptrdiff_t>(k * width));
  }
  if (auto done = graph.give("noise", {count, contract.candidates}, noise.data()); !done.ok()) return done;
  for (const std::string& name : contract.sampling_inputs) {
    std::vector<float> numbers;
    std::vector<int64_t> counts;
    for (const GraphDraw* given : draws) {
      const GraphDraw& draw = given == nullptr ? greedy : *given;
      if (name == "top_k") counts.push_back(draw.top_k);
      else
        numbers.push_back(name == "temperature" ? draw.temperature
                          : name == "top_p"     ? draw.top_p
                                                : draw.min_p);
    }
    const auto done = name == "top_k" ? graph.give(name.c_str(), {count}, counts.data())
                                      : graph.give(name.c_str(), {count}, numbers.data());
    if (!done.ok()) return done;
  }
  return {};
}

}  // namespace plc
