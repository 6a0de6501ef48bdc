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

namespace plc {

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

// The entries begin <= entry < end of a cache.
struct Span {
  size_t begin, end;

  size_t first_chunk() const { return begin / kChunk; }
  size_t chunks_end() const { return (end + kChunk - 1) / kChunk; }
  size_t chunks() const { return chunks_end() - first_chunk(); }
};

// Causal attention after a filled cache. A row of qkv is heads * dim queries, then kv_heads * dim
// keys, then as many values. What is null is not computed.
struct Attention {
  const float* qkv;       // [batch][seq][(heads + 2 kv_heads) * dim]
  float* keys;            // [batch][kv_heads][capacity][dim]
  float* values;          // as keys
  const int64_t* past;    // [batch], entries before this step
  const float* cos;       // [capacity][dim / 2], or null
  const float* sin;       // as cos
  const float* q_norm;    // [dim], or null: the weight of an RMS norm of each query, before cos and sin
  const float* k_norm;    // as q_norm, of each key
  float* y;               // [batch][seq][heads * dim]
  size_t batch, seq, heads, kv_heads, dim, capacity;
  size_t window;          // a token sees itself and window - 1 entries before it; 0: all
  float scale;            // of the products of queries and keys
  float softcap;          // scaled products s become softcap * tanh(s / softcap); 0: they stay
  float epsilon;          // of both norms

  size_t width() const { return (heads + 2 * kv_heads) * dim; }
  size_t query_blocks() const { return (seq + kQueries - 1) / kQueries; }
  // The first entry that the token at `position` sees.
  size_t begin(size_t position) const { return window && position >= window ? position + 1 - window : 0; }
  // What the queries first <= query < first + count of a row see together.
  Span seen(size_t row, size_t first, size_t count) const {
    const size_t position = size_t(past[row]) + first;
    return {begin(position), position + count};
  }
  // The largest number of chunks that the queries of one row see.
  size_t most_chunks() const {
    size_t most = 0;
    for (size_t row = 0; row < batch; ++row) most = std::max(most, seen(row, 0, seq).chunks());
    return most;
  }
};

// Floats that the result of a chunk takes, for all heads of a group and some queries.
inline size_t partial_size(size_t rows, size_t dim) { return rows * (2 + dim); }

// What an instruction set computes with.
struct KernelSet {
  const char* name;
  void (*round)(const Product&, Activations&, size_t first_row, size_t last_row);
  void (*multiply)(const Product&, const Activations&, size_t first_tile, size_t last_tile);
  void (*look_up)(const Lookup&, size_t first_id, size_t last_id);
  void (*write_cache)(const Attention&, size_t batch, size_t kv_head);
  void (*attend)(const Attention&, size_t batch, size_t kv_head, size_t query_block);
  // The same for the first block of queries, in chunks. They are counted from the first chunk that the queries
  // see. The result of each goes into its part of `partials`; then these are merged.
  void (*attend_chunk)(const Attention&, size_t batch, size_t kv_head, size_t chunk, float* partial);
  void (*merge_chunks)(const Attention&, size_t batch, size_t kv_head, float* partials);
};

// The sets that this library was built with and that this processor has, best first, and then null.
const KernelSet* const* available_sets();

// The best of them, or the one that the variable PLC_KERNELS names; null where it names another.
const KernelSet* chosen_set();

}  // namespace plc
