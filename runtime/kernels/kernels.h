// What the operators compute, as plain structures; each instruction set has its own functions.
//
// Weights are few-bit codes in blocks along their inputs. With c a code, b its block and m the
// middle of the codes (8 of 4 bits, 128 of 8):
//
//     weight[k][n] = (c[k][n] - m) * steps[b][n] + lows[b][n]
//
// `steps` are the weight's scales: the distance from one code to the next. `lows` are its offsets: what the
// middle code stands for (not the lowest value). `scales`, of activations alone, are those of their rows.
//
// They lie as the integer instructions read them, 16 outputs (a tile) at a time:
//
//     codes  8 bits  [outputs / 16][inputs / 4][16][4]    4 inputs of an output side by side
//            4 bits  [outputs / 16][inputs / 8][16][4]    low half: inputs 0-3 of 8, high: 4-7
//     steps, lows    float16 [outputs / 16][inputs / block][16]
//
// Activations are rounded to 8 bits in the same blocks, each with a scale of its own. Sums within a
// block are exact integers and blocks are added in their order, so a row's result does not depend
// on how many rows there are, nor on the instruction set. (Except for the portable functions: they
// round a product and its sum one after the other, the others once.)
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace plc::kernels {

// Outputs of a tile: the lanes of vectors.inc, and TILE in pl_compile/graph/kernel_operators.py.
constexpr size_t kTile = 16;

struct Weight {
  const uint8_t* codes;
  const uint16_t* steps;
  const uint16_t* lows;  // offsets; null where all are 0
  size_t inputs, outputs, bits, block;

  size_t tiles() const { return (outputs + kTile - 1) / kTile; }
  size_t blocks() const { return inputs / block; }
  size_t tile_bytes() const { return inputs * kTile * bits / 8; }
};

// Rows in groups of 16; of each group, block by block, 16 numbers: [rows / 16][blocks][16].
struct Activations {
  std::vector<int8_t> codes;    // [rows / 16][blocks][16][block]
  std::vector<float> scales;    // the value of a code of 1
  std::vector<float> sums;      // of the block's values
  std::vector<int32_t> shifts;  // -m times the sum of these codes, in the form that a set adds (dots.inc)

  void resize(size_t rows, const Weight& w) {
    const size_t up = (rows + kTile - 1) / kTile * kTile;
    codes.resize(up * w.inputs);
    scales.resize(up * w.blocks());
    sums.resize(up * w.blocks());
    shifts.resize(up * w.blocks());
  }
};

// What a product does with its sums. The numbers are those of the operator's attribute `gated`.
enum class Gate { none = 0, swiglu = 1, geglu = 2 };

// y[rows][outputs] = x[rows][inputs] @ weight. With a gate, tiles of the weight are gate and up in turn,
// and y[rows][outputs / 2] = silu(gate) * up (SwiGLU) or gelu(gate) * up (GeGLU, arXiv:2002.05202).
struct Product {
  Weight weight;
  const float* x;
  float* y;
  size_t rows;
  Gate gate;

  // Tiles of the weight that make one tile of y.
  size_t tiles_per_result() const { return gate == Gate::none ? 1 : 2; }
};

// Rows of the weight, taken as a table [outputs][inputs], by id.
struct Lookup {
  Weight weight;
  const int64_t* ids;
  float* y;
};

// Queries of a head that are computed together.
constexpr size_t kQueries = 32;
// Keys that are computed together.
constexpr size_t kKeys = 64;
// Keys that a thread takes when several share a cache.
constexpr size_t kChunk = 128;
// Entries of a block of a paged cache: as many keys as are transposed at once.
constexpr size_t kBlock = 16;

// The entries begin <= entry < end of a row.
struct Span {
  size_t begin, end;

  size_t first_chunk() const { return begin / kChunk; }
  size_t chunks_end() const { return (end + kChunk - 1) / kChunk; }
  size_t chunks() const { return chunks_end() - first_chunk(); }
};

// Inputs that share a step where a prefix is held as codes.
constexpr size_t kPrefixBlock = 32;

// A chunk of keys and one of values, as weights: the keys have `dim` inputs and kChunk outputs, the values kChunk
// inputs and `dim` outputs. So both have as many codes, and as many steps.
struct CodedChunk {
  Weight keys, values;

  static size_t codes(size_t dim) { return kChunk * dim; }
  static size_t steps(size_t dim) { return codes(dim) / kPrefixBlock; }
  static size_t bytes(size_t dim) { return 2 * (codes(dim) + steps(dim) * sizeof(uint16_t)); }

  // At `memory` lie codes and steps of the keys, then those of the values.
  CodedChunk(const uint8_t* memory, size_t dim)
      : keys(weight(memory, dim, kChunk, dim)), values(weight(memory + bytes(dim) / 2, kChunk, dim, dim)) {}

 private:
  static Weight weight(const uint8_t* memory, size_t inputs, size_t outputs, size_t dim) {
    const auto* steps = reinterpret_cast<const uint16_t*>(memory + codes(dim));
    return {memory, steps, nullptr, inputs, outputs, 8, kPrefixBlock};
  }
};

// Keys and values that many rows begin with, of one layer. Some chunks may be held as codes: `coded` of them, from the
// second on. (The first one has the entries that most attention goes to, and stays exact.)
struct Prefix {
  const float *keys, *values;      // of the other entries, in their order: [kv_heads][length - coded * kChunk][dim]
  size_t length;
  const uint8_t* codes = nullptr;  // [kv_heads][coded][CodedChunk::bytes(dim)]
  size_t coded = 0;

  bool is_coded(size_t chunk) const { return chunk > 0 && chunk <= coded; }
  CodedChunk chunk(size_t kv_head, size_t chunk, size_t dim) const {
    return {codes + (kv_head * coded + chunk - 1) * CodedChunk::bytes(dim), dim};
  }
  // How many entries of `keys` come before one that is not coded.
  size_t place(size_t entry) const { return entry < kChunk ? entry : entry - coded * kChunk; }
};

// New tokens of a row, which lie side by side in qkv. They follow `past` entries: those of its prefix, if it has
// one, and then its own in the cache.
struct Row {
  size_t first, count;    // tokens of qkv
  size_t past;            // also the entry that the first token is written to
  size_t slot;            // of a cache [slots][kv_heads][capacity][dim]
  const int64_t* blocks;  // of a cache [blocks][kv_heads][kBlock][dim]: where its entries lie, kBlock at a time; or null
  Prefix prefix;          // of no length where it has none
  bool branches;          // whether a token may follow another than the one before it: see `parents`
};

// Causal attention of new tokens to caches. A row of qkv is heads * dim queries, then kv_heads * dim keys, then as
// many values. What is null is not computed.
struct Attention {
  const float* qkv;          // [tokens][(heads + 2 kv_heads) * dim]
  void* keys;                // see Row: float, or float16 where `halves`
  void* values;              // as keys
  const Row* rows;
  const int64_t* parents;    // [tokens]: of a row that branches, the token of this step that each follows, counted
                             // from the row's first; -1: the last entry of the cache. A token sees those before it
                             // in its branch only.
  const float* cos;          // [capacity][dim / 2], or null
  const float* sin;          // as cos
  const float* q_norm;       // [dim], or null: the weight of an RMS norm of each query, before cos and sin
  const float* k_norm;       // as q_norm, of each key
  float* y;                  // [tokens][heads * dim]
  bool halves;               // whether entries are rounded to float16 as they are written; only in blocks
  size_t heads, kv_heads, dim, capacity;
  size_t window;             // a token sees itself and window - 1 entries before it; 0: all
  float scale;               // of the products of queries and keys
  float softcap;             // scaled products s become softcap * tanh(s / softcap); 0: they stay
  float epsilon;             // of both norms

  size_t width() const { return (heads + 2 * kv_heads) * dim; }
  size_t group() const { return heads / kv_heads; }
  // Of a row that branches, each query is a block of its own.
  size_t query_blocks(const Row& row) const {
    return row.branches ? row.count : (row.count + kQueries - 1) / kQueries;
  }
  // How many tokens lead from the cache to a token of a row, itself not counted.
  size_t depth(const Row& row, size_t token) const {
    if (!row.branches) return token;
    size_t steps = 0;
    while (parents[row.first + token] >= 0) token = size_t(parents[row.first + token]), ++steps;
    return steps;
  }
  // The first entry that the token at `position` sees.
  size_t begin(size_t position) const { return window && position >= window ? position + 1 - window : 0; }
  // What the queries first <= query < first + count of a row see together. Those of a branch come alone.
  Span seen(const Row& row, size_t first, size_t count) const {
    const size_t position = row.past + depth(row, first);
    return {begin(position), position + count};
  }
  // How many numbers of a cache lie before an entry; the next ones follow it up to a multiple of kBlock.
  size_t place(const Row& row, size_t kv_head, size_t index) const {
    if (!row.blocks) return ((row.slot * kv_heads + kv_head) * capacity + index) * dim;
    return ((size_t(row.blocks[index / kBlock]) * kv_heads + kv_head) * kBlock + index % kBlock) * dim;
  }
};

// Floats that the result of a chunk takes, for all heads of a group and some queries.
inline size_t partial_size(size_t queries, size_t dim) { return queries * (2 + dim); }

// Where among the results of all chunks that of one lies: of some queries, of which `first` and those after it are a
// row's.
struct Part {
  size_t at, queries, first;
};

// What an instruction set computes with.
struct KernelSet {
  const char* name;
  void (*round)(const Product&, Activations&, size_t first_row, size_t last_row);
  void (*multiply)(const Product&, const Activations&, size_t first_tile, size_t last_tile);
  void (*look_up)(const Lookup&, size_t first_id, size_t last_id);
  void (*write_cache)(const Attention&, const Row&, size_t kv_head);
  void (*attend)(const Attention&, const Row&, size_t kv_head, size_t query_block);
  // The same in chunks, for a row of one block of queries. They are counted from entry 0. The result of each goes
  // into a part of its own: partial_size(row.count * group, dim). Then they are merged, in their order.
  void (*attend_chunk)(const Attention&, const Row&, size_t kv_head, size_t chunk, float* partial);
  // Chunks of the prefix that several rows have, for all of them at once; they do not branch, and see all of it.
  // Their queries follow one another in the result of a chunk, in the order of the rows.
  void (*attend_shared)(const Attention&, const Row* const* rows, size_t count, size_t kv_head, size_t first_chunk,
                        size_t last_chunk, float* partials);
  void (*merge_chunks)(const Attention&, const Row&, size_t kv_head, float* results, const Part* parts, size_t count);
};

// The sets that this library was built with and that this processor has, best first, and then null.
const KernelSet* const* available_sets();

// The best of them, or the one that the variable PLC_KERNELS names; null where it names another.
const KernelSet* chosen_set();

}  // namespace plc::kernels
