// What engines of all kinds check of feeds, and give to graphs.
#pragma once

#include <vector>

#include "contract.h"
#include "engine.h"
#include "onnx_graph.h"
#include "words.h"

namespace plc {

// A row, as far as its feeds can be checked without an engine.
struct RowState {
  EnginePrompt prompt{};
  size_t entries = 0;  // that it holds
};

Error wrong_feed(size_t slot, Words what);

// Whether a feed is one that a row can be given; feeds of our own scheduler always are.
Status check_feed(const Engine& engine, const Feed& feed, const RowState& row);

// Whether a prompt can begin a row.
Status check_prompt(const Engine& engine, size_t slot, const EnginePrompt& prompt);

// How many logits a feed asks for.
inline size_t outputs_of(const Feed& feed) { return feed.wanted.empty() ? 1 : feed.wanted.size(); }

// Whether a feed has virtual tokens in it.
bool asks_for_rows(const Feed& feed, size_t vocab);

// Gives a graph what it needs to choose tokens; for a null draw the choice is unused.
Status give_draws(OnnxGraph& graph, const GraphContract& contract,
                  const std::vector<const GraphDraw*>& draws);

}  // namespace plc
