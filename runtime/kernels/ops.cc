// The operators of the `plc` domain for ONNX Runtime on CPU, and their registration.
//
//   BlockProduct(x, codes, steps, lows?, tiles?) -> y  attributes bits, block, columns, gated
//   BlockLookup(codes, steps, ids, lows?) -> rows      attributes bits, block, columns
//   PackedAttention(query, past_key, past_value, past_lengths, cos?, sin?, q_norm?, k_norm?)
//       -> y, present_key, present_value               attributes heads, kv_heads, scale?, window?, softcap?, epsilon?
//   PagedAttention(query, past_key, past_value, positions, token_rows, block_tables, prefixes, parents,
//                  cos?, sin?, q_norm?, k_norm?)
//       -> y, present_key, present_value               the same attributes, and layer
//   PagedAttention16                                   the same, with caches of float16
//
// gated: 0 none, 1 SwiGLU, 2 GeGLU. tiles: the tiles of y that are computed, in ascending order; none: all of them.
// What is not computed is minus infinity. scale is 1 / sqrt(width of a head) by default, epsilon 1e-6; a window or a
// softcap of 0 is none.
//
// A query holds the queries, keys and values of a token side by side. Layouts: kernels.h. Inputs are named as in
// pl_compile/graph/kernel_operators.py. Bundles hold a body in standard operators for each of them, which ONNX Runtime
// runs where this library is not registered.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "collective.h"
#include "custom_op.h"
#include "kernels.h"
#include "prefixes.h"

namespace plc::kernels {
namespace {

// Cuts `count` items into parts of at least `least`, `most` of them at most. ONNX Runtime hands parts to its
// threads one by one: too few leave threads idle, too many cost more to hand out than they even out.
struct Parts {
  size_t each, number;
  Parts(size_t count, size_t least, size_t most) {
    each = std::max(least, (count + most - 1) / most);
    number = (count + each - 1) / each;
  }
};

// Chosen by reasoning: no other sizes were measured. Rounding or looking up a few rows is soon done, maybe
// sooner than another thread wakes, so a part has several rows and there are few parts. A product takes
// longer: up to 8 threads get two parts or more each, so that one that is late leaves the rest to the others.
constexpr size_t kRowsOfPart = 16, kPartsOfRows = 8;
constexpr size_t kPartsOfTiles = 16;

Weight weight_of(const Tensor& codes, const Tensor& steps, const Tensor& lows, size_t inputs,
                 size_t outputs, size_t bits, size_t block) {
  Weight w{codes.as<uint8_t>(), steps.as<uint16_t>(), lows.as<uint16_t>(), inputs, outputs, bits, block};
  expect(inputs % block == 0, "the block does not divide the inputs");
  expect(codes.size() == w.tiles() * w.tile_bytes(), "codes of another size than the weight");
  expect(steps.size() == w.tiles() * w.blocks() * kTile, "steps of another size than the weight");
  expect(!lows.given() || lows.size() == steps.size(), "lows of another size than steps");
  return w;
}

struct WeightAttributes {
  size_t bits, block, outputs;

  explicit WeightAttributes(const ort::KernelInfo* info)
      : bits(attribute(info, "bits")), block(attribute(info, "block")), outputs(attribute(info, "columns")) {
    expect(outputs > 0, "columns must be at least 1");
    expect(bits == 4 || bits == 8, "bits must be 4 or 8");
    expect(block == 32 || block == 64, "block must be 32 or 64");
  }
};

// The tiles of a product's result that are computed.
struct ChosenTiles {
  const int64_t* numbers;  // in ascending order; null: all
  size_t count;

  ChosenTiles(const Tensor& given, size_t all) : numbers(nullptr), count(all) {
    if (!given.given() || !given.size()) return;
    numbers = given.as<int64_t>();
    count = given.size();
    expect(numbers[0] >= 0 && size_t(numbers[count - 1]) < all, "a tile that the result does not have");
    for (size_t i = 1; i < count; ++i) expect(numbers[i - 1] < numbers[i], "tiles that are not in ascending order");
  }
  size_t operator[](size_t i) const { return numbers ? size_t(numbers[i]) : i; }
  // Of first <= i < last, the first one whose tile does not follow that of the one before.
  size_t run_end(size_t first, size_t last) const {
    if (!numbers) return last;
    size_t i = first + 1;
    while (i < last && numbers[i] == numbers[i - 1] + 1) ++i;
    return i;
  }
};

struct BlockProduct {
  static constexpr const char* kName = "BlockProduct";
  static constexpr const char* kProvider = nullptr;  // CPU
  static constexpr ort::ElementType kInputs[] = {ort::kFloat, ort::kUint8, ort::kFloat16, ort::kFloat16, ort::kInt64};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat};
  static constexpr size_t kNeeded = 3;

  WeightAttributes attributes;
  Gate gate;

  explicit BlockProduct(const ort::KernelInfo* info) : attributes(info) {
    const size_t gated = attribute(info, "gated");
    expect(gated <= size_t(Gate::geglu), "gated must be 0, 1 or 2");
    expect(!gated || attributes.outputs % (2 * kTile) == 0, "gated outputs must be a multiple of 32");
    gate = Gate(gated);
  }

  void compute(ort::KernelContext* context) const {
    const Tensor x = input(context, 0);
    expect(!x.shape.empty() && x.shape.back() > 0, "x without an axis, or without inputs");
    const size_t inputs = size_t(x.shape.back()), rows = x.size() / inputs;
    Product p{};
    p.weight = weight_of(input(context, 1), input(context, 2), input(context, 3), inputs,
                         attributes.outputs, attributes.bits, attributes.block);
    p.x = x.as<float>();
    p.rows = rows;
    p.gate = gate;
    std::vector<int64_t> shape = x.shape;
    shape.back() = int64_t(attributes.outputs / p.tiles_per_result());
    p.y = static_cast<float*>(output(context, 0, shape));
    const size_t per_result = p.tiles_per_result(), width = size_t(shape.back());
    const ChosenTiles tiles(input(context, 4), p.weight.tiles() / per_result);
    if (!rows) return;
    if (tiles.numbers)
      parallel(context, rows, [&](size_t row) {
        std::fill_n(p.y + row * width, width, -std::numeric_limits<float>::infinity());
      });

    // Kept by the thread, so that few steps allocate. The reference is needed: inside the lambdas below
    // `scratch` would be that of the worker that runs them, and `a` is this thread's.
    static thread_local Activations scratch;
    Activations& a = scratch;
    a.resize(rows, p.weight);
    const KernelSet& f = *chosen_set();
    const Parts by_row(rows, kRowsOfPart, kPartsOfRows);
    parallel(context, by_row.number, [&](size_t part) {
      f.round(p, a, part * by_row.each, std::min(rows, (part + 1) * by_row.each));
    });
    const Parts by_tile(tiles.count, 1, kPartsOfTiles);
    parallel(context, by_tile.number, [&](size_t part) {
      const size_t last = std::min(tiles.count, (part + 1) * by_tile.each);
      for (size_t i = part * by_tile.each, end; i < last; i = end) {
        end = tiles.run_end(i, last);
        f.multiply(p, a, tiles[i] * per_result, (tiles[end - 1] + 1) * per_result);
      }
    });
  }
};

struct BlockLookup {
  static constexpr const char* kName = "BlockLookup";
  static constexpr const char* kProvider = nullptr;  // CPU
  static constexpr ort::ElementType kInputs[] = {ort::kUint8, ort::kFloat16, ort::kInt64, ort::kFloat16};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat};
  static constexpr size_t kNeeded = 3;

  WeightAttributes attributes;

  explicit BlockLookup(const ort::KernelInfo* info) : attributes(info) {}

  void compute(ort::KernelContext* context) const {
    const Tensor codes = input(context, 0), steps = input(context, 1), ids = input(context, 2);
    const size_t tiles = (attributes.outputs + kTile - 1) / kTile;
    const size_t inputs = steps.size() / (tiles * kTile) * attributes.block;
    Lookup l{};
    l.weight = weight_of(codes, steps, input(context, 3), inputs, attributes.outputs,
                         attributes.bits, attributes.block);
    l.ids = ids.as<int64_t>();
    const size_t count = ids.size();
    for (size_t i = 0; i < count; ++i)
      expect(l.ids[i] >= 0 && size_t(l.ids[i]) < attributes.outputs, "an id outside the table");
    std::vector<int64_t> shape = ids.shape;
    shape.push_back(int64_t(inputs));
    l.y = static_cast<float*>(output(context, 0, shape));
    if (!count) return;
    const KernelSet& f = *chosen_set();
    const Parts parts(count, kRowsOfPart, kPartsOfRows);
    parallel(context, parts.number, [&](size_t part) {
      f.look_up(l, part * parts.each, std::min(count, (part + 1) * parts.each));
    });
  }
};

// What attention's two forms share.
struct AttentionAttributes {
  size_t heads, kv_heads, window;
  std::optional<float> scale;
  float softcap, epsilon;

  explicit AttentionAttributes(const ort::KernelInfo* info)
      : heads(attribute(info, "heads")),
        kv_heads(attribute(info, "kv_heads")),
        window(optional_int(info, "window").value_or(0)),
        scale(optional_float(info, "scale")),
        softcap(optional_float(info, "softcap").value_or(0.0f)),
        epsilon(optional_float(info, "epsilon").value_or(1e-6f)) {
    expect(heads > 0 && heads <= kMostHeads, "heads must be 1 to 65536");
    expect(kv_heads > 0 && heads % kv_heads == 0, "kv_heads must divide heads");
    expect(!scale || (std::isnormal(*scale) && *scale > 0), "scale must be above 0 and finite");
    expect(softcap == 0 || (std::isnormal(softcap) && softcap > 0), "softcap must be 0, or above it and finite");
    expect(std::isfinite(epsilon) && epsilon >= 0, "epsilon must be 0, or above it and finite");
  }

  // What is to be computed, but for rows and results. `capacity` is set.
  Attention attention(const Tensor& qkv, const Tensor& past_key, const Tensor& past_value, size_t capacity) const {
    expect(qkv.shape.size() == 3 && past_key.shape.size() == 4, "qkv must have 3 axes, caches 4");
    Attention t{};
    t.heads = heads;
    t.kv_heads = kv_heads;
    t.capacity = capacity;
    t.dim = size_t(past_key.shape[3]);
    expect(t.dim > 0 && t.dim % 16 == 0, "heads must be a multiple of 16 wide");
    expect(t.width() == size_t(qkv.shape[2]), "qkv of another width than the heads");
    expect(past_key.shape == past_value.shape && size_t(past_key.shape[1]) == kv_heads,
           "caches of another shape than qkv");
    t.qkv = qkv.as<float>();
    t.window = window;
    t.scale = scale.value_or(1.0f / std::sqrt(float(t.dim)));
    t.softcap = softcap;
    t.epsilon = epsilon;
    return t;
  }

  static void set_positions(Attention& t, const Tensor& cos, const Tensor& sin) {
    expect(cos.given() == sin.given(), "cos without sin, or sin without cos");
    if (!cos.given()) return;
    expect(cos.shape == sin.shape && !cos.shape.empty() && cos.shape.back() == int64_t(t.dim / 2),
           "cos and sin must be half as wide as a head");
    expect(cos.size() >= t.capacity * t.dim / 2, "fewer rotary positions than entries");
    t.cos = cos.as<float>();
    t.sin = sin.as<float>();
  }

  static const float* norm(const Attention& t, const Tensor& weight) {
    expect(!weight.given() || weight.shape == std::vector<int64_t>{int64_t(t.dim)},
           "q_norm and k_norm must have one axis, as wide as a head");
    return weight.as<float>();
  }

  // The cache after the step: the same memory where the caller bound it so, else a copy. `each`: bytes of a number.
  static void* present(ort::KernelContext* context, size_t index, const Tensor& past, size_t each = sizeof(float)) {
    char* memory = static_cast<char*>(output(context, index, past.shape));
    const auto* begin = static_cast<const char*>(past.data);
    const size_t size = past.size() * each;
    expect(memory == begin || memory + size <= begin || begin + size <= memory,
           "a cache that overlaps the one before it without being the same");
    if (memory != past.data) std::memcpy(memory, past.data, size);
    return memory;
  }

 private:
  // So that no product of sizes overflows.
  static constexpr size_t kMostHeads = 65536;
};

// Hands out the parts of a step's attention to threads.
class Attending {
 public:
  Attending(const Attention& t, const std::vector<Row>& rows) : t_(t), pairs_(rows.size() * t.kv_heads) {
    group_by_prefix(rows);
    for (const Rows& group : groups_) add_group(group);
    for (const Row& row : rows) {
      const size_t blocks = t.query_blocks(row);
      if (!common_chunks(row) && !comes_in_chunks(row) && blocks == 1) {
        whole_.push_back(&row);
        continue;
      }
      written_.push_back(&row);
      if (common_chunks(row)) continue;
      for (size_t head = 0; head < t.kv_heads; ++head) {
        if (comes_in_chunks(row)) {
          add_chunks(row, head, t.seen(row, 0, row.count).first_chunk(), {});
        } else {
          for (size_t block = 0; block < blocks; ++block) blocks_.push_back({&row, head, block});
        }
      }
    }
    // The longest first: later blocks of queries see more keys.
    std::stable_sort(blocks_.begin(), blocks_.end(), [](const Block& a, const Block& b) { return a.block > b.block; });
  }

  void run(ort::KernelContext* context) {
    const KernelSet& f = *chosen_set();
    const size_t heads = t_.kv_heads, whole = whole_.size() * heads;
    parallel(context, whole + written_.size() * heads, [&](size_t i) {
      const bool alone = i < whole;
      const Row& row = *(alone ? whole_[i / heads] : written_[(i - whole) / heads]);
      f.write_cache(t_, row, i % heads);
      if (alone) f.attend(t_, row, i % heads, 0);
    });
    if (written_.empty()) return;
    // Kept by the thread that runs the step. The pointer is needed: inside the lambdas below `memory` would be that of
    // the worker that runs them.
    static thread_local std::vector<float> memory;
    memory.resize(floats_);
    float* results = memory.data();
    parallel(context, shared_.size() + blocks_.size() + chunks_.size(), [&](size_t i) {
      if (i < shared_.size()) {
        const Shared& s = shared_[i];
        return f.attend_shared(t_, s.rows->data(), s.rows->size(), s.head, s.first, s.last, results + s.at);
      }
      i -= shared_.size();
      if (i < blocks_.size()) return f.attend(t_, *blocks_[i].row, blocks_[i].head, blocks_[i].block);
      const Chunk& c = chunks_[i - blocks_.size()];
      f.attend_chunk(t_, *c.row, c.head, c.chunk, results + c.at);
    });
    if (merged_.empty()) return;
    parallel(context, merged_.size(), [&](size_t i) {
      const Merged& m = merged_[i];
      f.merge_chunks(t_, *m.row, m.head, results, m.parts.data(), m.parts.size());
    });
  }

 private:
  // With fewer pairs of a row and a head than this some threads would wait for others.
  static constexpr size_t kEnoughPairs = 16;
  // Results of chunks are as large as the queries, for each chunk.
  static constexpr size_t kFewQueries = 8;
  // Chunks of a prefix that a thread takes together: their queries are prepared once.
  static constexpr size_t kChunksOfPart = 4;

  using Rows = std::vector<const Row*>;
  struct Block {
    const Row* row;
    size_t head, block;
  };
  struct Chunk {
    const Row* row;
    size_t head, chunk, at;  // where its result lies among all
  };
  struct Shared {
    const Rows* rows;
    size_t head, first, last, at;  // some chunks
  };
  struct Merged {
    const Row* row;
    size_t head;
    std::vector<Part> parts;
  };

  // Chunks that lie within the prefix of a row, so that rows which have it too may be computed with it.
  size_t common_chunks(const Row& row) const {
    const bool fits = !t_.window && !row.branches && row.count <= kFewQueries;
    return fits ? row.prefix.length / kChunk : 0;
  }

  bool comes_in_chunks(const Row& row) const {
    if (row.branches || row.count > kFewQueries) return false;
    return pairs_ < kEnoughPairs && t_.seen(row, 0, row.count).chunks() > 1;
  }

  // Rows that have a prefix in common, as many together as a block of queries may have.
  void group_by_prefix(const std::vector<Row>& rows) {
    Rows alike;
    for (const Row& row : rows)
      if (common_chunks(row)) alike.push_back(&row);
    std::stable_sort(alike.begin(), alike.end(), [](const Row* a, const Row* b) {
      return std::less<const float*>()(a->prefix.keys, b->prefix.keys);
    });
    size_t queries = 0;
    for (const Row* row : alike) {
      queries += row->count;
      if (groups_.empty() || groups_.back().back()->prefix.keys != row->prefix.keys || queries > kQueries) {
        groups_.push_back({});
        queries = row->count;
      }
      groups_.back().push_back(row);
    }
  }

  void add_group(const Rows& group) {
    size_t queries = 0;
    for (const Row* row : group) queries += row->count * t_.group();
    const size_t chunks = common_chunks(*group.front()), begin = floats_, size = partial_size(queries, t_.dim);
    for (size_t head = 0; head < t_.kv_heads; ++head)
      for (size_t chunk = 0; chunk < chunks; chunk += kChunksOfPart) {
        const size_t last = std::min(chunks, chunk + kChunksOfPart);
        shared_.push_back({&group, head, chunk, last, floats_});
        floats_ += (last - chunk) * size;
      }
    size_t first = 0;
    for (const Row* row : group) {
      for (size_t head = 0; head < t_.kv_heads; ++head) {
        std::vector<Part> parts;
        for (size_t chunk = 0; chunk < chunks; ++chunk)
          parts.push_back({begin + (head * chunks + chunk) * size, queries, first});
        add_chunks(*row, head, chunks, std::move(parts));
      }
      first += row->count * t_.group();
    }
  }

  // The chunks of a row from some on, each by itself, after the parts that come in another way.
  void add_chunks(const Row& row, size_t head, size_t first, std::vector<Part> parts) {
    const size_t queries = row.count * t_.group(), end = t_.seen(row, 0, row.count).chunks_end();
    for (size_t chunk = first; chunk < end; ++chunk, floats_ += partial_size(queries, t_.dim)) {
      parts.push_back({floats_, queries, 0});
      chunks_.push_back({&row, head, chunk, floats_});
    }
    merged_.push_back({&row, head, std::move(parts)});
  }

  const Attention& t_;
  const size_t pairs_;
  size_t floats_ = 0;          // of all results of chunks
  std::vector<Rows> groups_;   // by prefix
  Rows whole_;                 // rows that a thread computes at once, for each head
  Rows written_;               // the others: entries are written first
  std::vector<Shared> shared_;
  std::vector<Block> blocks_;
  std::vector<Chunk> chunks_;
  std::vector<Merged> merged_;
};

void attend_to_caches(ort::KernelContext* context, Attention& t, const std::vector<Row>& rows) {
  t.rows = rows.data();
  if (!rows.empty()) Attending(t, rows).run(context);
}

struct PackedAttention {
  static constexpr const char* kName = "PackedAttention";
  static constexpr const char* kProvider = nullptr;  // CPU
  static constexpr ort::ElementType kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat,
                                                 ort::kInt64, ort::kFloat, ort::kFloat,
                                                 ort::kFloat, ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat, ort::kFloat, ort::kFloat};
  static constexpr size_t kNeeded = 4;

  AttentionAttributes attributes;

  explicit PackedAttention(const ort::KernelInfo* info) : attributes(info) {}

  void compute(ort::KernelContext* context) const {
    const Tensor qkv = input(context, 0), past_key = input(context, 1), past_value = input(context, 2);
    const Tensor past = input(context, 3);
    Attention t = attributes.attention(qkv, past_key, past_value, past_key.shape.size() == 4 ? past_key.shape[2] : 0);
    const size_t batch = size_t(qkv.shape[0]), seq = size_t(qkv.shape[1]);
    expect(size_t(past_key.shape[0]) == batch && past.size() == batch, "caches of another shape than qkv");
    std::vector<Row> rows;
    for (size_t b = 0; b < batch; ++b) {
      const int64_t held = past.as<int64_t>()[b];
      expect(held >= 0 && size_t(held) + seq <= t.capacity, "a row that ends after its cache");
      rows.push_back({b * seq, seq, size_t(held), b, nullptr, {}, false});
    }
    attributes.set_positions(t, input(context, 4), input(context, 5));
    t.q_norm = attributes.norm(t, input(context, 6));
    t.k_norm = attributes.norm(t, input(context, 7));
    t.y = static_cast<float*>(output(context, 0, {qkv.shape[0], qkv.shape[1], int64_t(t.heads * t.dim)}));
    t.keys = attributes.present(context, 1, past_key);
    t.values = attributes.present(context, 2, past_value);
    if (seq) attend_to_caches(context, t, rows);
  }
};

template <bool kHalves>
struct PagedAttention {
  static constexpr const char* kName = kHalves ? "PagedAttention16" : "PagedAttention";
  static constexpr const char* kProvider = nullptr;  // CPU
  static constexpr ort::ElementType kCache = kHalves ? ort::kFloat16 : ort::kFloat;
  static constexpr ort::ElementType kInputs[] = {
      ort::kFloat, kCache,      kCache,      ort::kInt64, ort::kInt64, ort::kInt64,
      ort::kInt64, ort::kInt64, ort::kFloat, ort::kFloat, ort::kFloat, ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat, kCache, kCache};
  static constexpr size_t kNeeded = 8;

  AttentionAttributes attributes;
  size_t layer;

  explicit PagedAttention(const ort::KernelInfo* info) : attributes(info), layer(attribute(info, "layer")) {}

  void compute(ort::KernelContext* context) const {
    const Tensor qkv = input(context, 0), past_key = input(context, 1), past_value = input(context, 2);
    const Tensor positions = input(context, 3), token_rows = input(context, 4), tables = input(context, 5);
    const Tensor prefixes = input(context, 6), parents = input(context, 7);
    expect(past_key.shape.size() != 4 || size_t(past_key.shape[2]) == kBlock, "blocks of another size");
    const size_t tokens = qkv.shape.size() == 3 ? size_t(qkv.shape[0] * qkv.shape[1]) : 0;
    expect(positions.size() == tokens && token_rows.size() == tokens, "positions or rows for other tokens than qkv");
    expect(!parents.size() || parents.size() == tokens, "parents for other tokens than qkv");
    expect(tables.shape.size() == 2 && prefixes.size() == size_t(tables.shape[0]), "a prefix is needed for each table");

    Attention t = attributes.attention(qkv, past_key, past_value, 0);
    t.halves = kHalves;
    t.parents = parents.size() ? parents.as<int64_t>() : nullptr;
    std::vector<Row> rows;
    // Held until the step is done, whoever gives them up meanwhile.
    std::vector<std::shared_ptr<const HeldPrefix>> held;
    const int64_t* of_token = token_rows.as<int64_t>();
    for (size_t first = 0; first < tokens; first += rows.back().count) {
      size_t end = first + 1;
      while (end < tokens && of_token[end] == of_token[first]) ++end;
      expect(of_token[first] >= 0 && size_t(of_token[first]) < prefixes.size(), "a token of a row without a table");
      const size_t index = size_t(of_token[first]);
      Row row{first, end - first, 0, 0, tables.as<int64_t>() + index * size_t(tables.shape[1]), {}, false};
      if (const int64_t id = prefixes.as<int64_t>()[index]) {
        held.push_back(held_prefix(id));
        expect(held.back() != nullptr, "a prefix that is not held");
        row.prefix = held.back()->of_layer(layer, t.kv_heads, t.dim);
      }
      place(t, row, positions.as<int64_t>());
      check_blocks(row, size_t(tables.shape[1]), size_t(past_key.shape[0]));
      t.capacity = std::max(t.capacity, row.past + row.count);
      rows.push_back(row);
    }
    attributes.set_positions(t, input(context, 8), input(context, 9));
    t.q_norm = attributes.norm(t, input(context, 10));
    t.k_norm = attributes.norm(t, input(context, 11));
    t.y = static_cast<float*>(output(context, 0, {qkv.shape[0], qkv.shape[1], int64_t(t.heads * t.dim)}));
    constexpr size_t each = kHalves ? sizeof(uint16_t) : sizeof(float);
    t.keys = attributes.present(context, 1, past_key, each);
    t.values = attributes.present(context, 2, past_value, each);
    attend_to_caches(context, t, rows);
  }

 private:
  // Where a row's tokens stand: one after the other, or on branches.
  static void place(const Attention& t, Row& row, const int64_t* positions) {
    positions += row.first;
    expect(positions[0] >= 0, "a position below 0");
    row.past = size_t(positions[0]);
    expect(row.past >= row.prefix.length, "a token within its row's prefix");
    for (size_t i = 0; i < row.count; ++i) {
      int64_t parent = int64_t(i) - 1;
      if (t.parents) parent = t.parents[row.first + i];
      expect(parent >= -1 && parent < int64_t(i), "a token that follows none before it");
      row.branches |= parent != int64_t(i) - 1;
      const int64_t before = parent < 0 ? int64_t(row.past) - 1 : positions[parent];
      expect(positions[i] == before + 1, "a position that is not after the token before it");
    }
  }

  static void check_blocks(const Row& row, size_t width, size_t blocks) {
    const size_t end = (row.past + row.count + kBlock - 1) / kBlock;
    expect(end <= width, "a row that is longer than its table");
    for (size_t i = row.prefix.length / kBlock; i < end; ++i)
      expect(row.blocks[i] >= 0 && size_t(row.blocks[i]) < blocks, "a block that the cache does not have");
  }
};

// A domain with operators; null where ONNX Runtime refused a part of it.
ort::Domain* make_domain(const char* name, const std::vector<const ort::CustomOp*>& ops) {
  ort::Domain* domain = nullptr;
  if (slot<ort::Status* (*)(const char*, ort::Domain**)>(ort::kCreateDomain)(name, &domain))
    return nullptr;
  const auto add = slot<ort::Status* (*)(ort::Domain*, const ort::CustomOp*)>(ort::kDomainAdd);
  for (const ort::CustomOp* op : ops)
    if (add(domain, op)) return nullptr;
  return domain;
}

std::vector<const ort::CustomOp*> computing_ops() {
  static Definition<BlockProduct> product;
  static Definition<BlockLookup> lookup;
  static Definition<PackedAttention> attention;
  static Definition<PagedAttention<false>> paged;
  static Definition<PagedAttention<true>> paged_in_halves;
  return {&product, &lookup, &attention, &paged, &paged_in_halves};
}

std::vector<const ort::CustomOp*> sums_over_ranks() {
  std::vector<const ort::CustomOp*> ops = group_ops();
  for (const ort::CustomOp* op : nccl_ops()) ops.push_back(op);
  return ops;
}

}  // namespace
}  // namespace plc::kernels

// The names of all that this processor has, best first, with a space between them.
PLC_EXPORT const char* plc_kernels_available() {
  static const std::string names = [] {
    std::string all;
    for (const plc::kernels::KernelSet* const* set = plc::kernels::available_sets(); *set; ++set)
      all += (all.empty() ? "" : " ") + std::string((*set)->name);
    return all;
  }();
  return names.c_str();
}

PLC_EXPORT plc::ort::Status* RegisterCustomOps(plc::ort::SessionOptions* options,
                                               const plc::ort::ApiBase* base) {
  using namespace plc;
  using namespace plc::kernels;
  static const ort::Api interface = base->get_api(ort::kApiVersion);
  // Without its table no error can be returned: the function that makes one is in it. It is missing where
  // ONNX Runtime is older than the oldest that this project installs with.
  if (!interface) std::abort();
  api = interface;
  if (!chosen_set()) {
    const std::string found = std::getenv("PLC_KERNELS"), sets = plc_kernels_available();
    return failed(("PLC_KERNELS=" + found + ", and this processor has: " + sets).c_str());
  }
  // Made once: ONNX Runtime keeps what it was given.
  static ort::Domain* const domains[] = {make_domain("plc", computing_ops()),
                                         make_domain("plc.dist", sums_over_ranks())};
  const auto add = slot<ort::Status* (*)(ort::SessionOptions*, ort::Domain*)>(ort::kAddDomain);
  for (ort::Domain* domain : domains) {
    if (!domain) return failed("ONNX Runtime refused the operators of this project");
    if (ort::Status* refused = add(options, domain)) return refused;
  }
  return nullptr;
}

// The number of the interface between this library, its operators and their callers. It grows with
// every change that a library of another version would get wrong, together with `INTERFACE` in __init__.py.
PLC_EXPORT int plc_kernels_interface() { return 5; }

// The name of the instruction set in use; empty where PLC_KERNELS names one that is not there.
PLC_EXPORT const char* plc_kernels_name() {
  const plc::kernels::KernelSet* chosen = plc::kernels::chosen_set();
  return chosen ? chosen->name : "";
}
