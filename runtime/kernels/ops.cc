// The operators of the `plc` domain for ONNX Runtime on CPU, and their registration.
//
//   BlockProduct(x, codes, steps, lows?) -> y          attributes bits, block, columns, gated
//   BlockLookup(codes, steps, ids, lows?) -> rows      attributes bits, block, columns
//   PackedAttention(query, past_key, past_value, past_lengths, cos?, sin?, q_norm?, k_norm?)
//       -> y, present_key, present_value               attributes heads, kv_heads, scale?, window?, softcap?, epsilon?
//
// gated: 0 none, 1 SwiGLU, 2 GeGLU. scale is 1 / sqrt(width of a head) by default, epsilon 1e-6; a window or a
// softcap of 0 is none.
//
// A query holds the queries, keys and values of a token side by side. Layouts: kernels.h. Inputs are named as in
// pl_compile/graph/kernel_operators.py. Bundles hold a body in standard operators for each of them, which ONNX Runtime
// runs where this library is not registered.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "collective.h"
#include "custom_op.h"
#include "kernels.h"

namespace plc {
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

struct BlockProduct {
  static constexpr const char* kName = "BlockProduct";
  static constexpr const char* kProvider = nullptr;  // CPU
  static constexpr ort::ElementType kInputs[] = {ort::kFloat, ort::kUint8, ort::kFloat16, ort::kFloat16};
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
    if (!rows) return;

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
    const size_t tiles = p.weight.tiles(), per_result = p.tiles_per_result();
    const Parts by_tile(tiles / per_result, 1, kPartsOfTiles);
    parallel(context, by_tile.number, [&](size_t part) {
      const size_t first = part * by_tile.each * per_result;
      f.multiply(p, a, first, std::min(tiles, first + by_tile.each * per_result));
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

struct PackedAttention {
  static constexpr const char* kName = "PackedAttention";
  static constexpr const char* kProvider = nullptr;  // CPU
  static constexpr ort::ElementType kInputs[] = {ort::kFloat, ort::kFloat, ort::kFloat,
                                                 ort::kInt64, ort::kFloat, ort::kFloat,
                                                 ort::kFloat, ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat, ort::kFloat, ort::kFloat};
  static constexpr size_t kNeeded = 4;

  size_t heads, kv_heads, window;
  std::optional<float> scale;
  float softcap, epsilon;

  explicit PackedAttention(const ort::KernelInfo* info)
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

  void compute(ort::KernelContext* context) const {
    const Attention t = attention(context);
    if (!t.batch || !t.seq) return;
    const KernelSet& f = *chosen_set();
    const size_t pairs = t.batch * kv_heads, blocks = t.query_blocks();
    if (t.seq <= kFewQueries && pairs < kEnoughPairs && t.most_chunks() > 1) return attend_in_chunks(context, t);
    if (blocks == 1) {
      parallel(context, pairs, [&](size_t i) {
        f.write_cache(t, i / kv_heads, i % kv_heads);
        f.attend(t, i / kv_heads, i % kv_heads, 0);
      });
      return;
    }
    parallel(context, pairs, [&](size_t i) { f.write_cache(t, i / kv_heads, i % kv_heads); });
    parallel(context, pairs * blocks, [&](size_t i) {
      // The longest first: later blocks of queries see more keys.
      const size_t pair = i % pairs, block = blocks - 1 - i / pairs;
      f.attend(t, pair / kv_heads, pair % kv_heads, block);
    });
  }

 private:
  // So that no product of sizes overflows.
  static constexpr size_t kMostHeads = 65536;
  // With fewer pairs of a row and a head than this some threads would wait for others.
  static constexpr size_t kEnoughPairs = 16;
  // Results of chunks are as large as the queries, for each chunk.
  static constexpr size_t kFewQueries = 8;

  // What is to be computed, once all of it fits.
  Attention attention(ort::KernelContext* context) const {
    const Tensor qkv = input(context, 0), past_key = input(context, 1), past_value = input(context, 2);
    const Tensor past = input(context, 3);
    expect(qkv.shape.size() == 3 && past_key.shape.size() == 4, "qkv must have 3 axes, caches 4");
    Attention t{};
    t.batch = size_t(qkv.shape[0]);
    t.seq = size_t(qkv.shape[1]);
    t.heads = heads;
    t.kv_heads = kv_heads;
    t.capacity = size_t(past_key.shape[2]);
    t.dim = size_t(past_key.shape[3]);
    expect(t.dim > 0 && t.dim % 16 == 0, "heads must be a multiple of 16 wide");
    expect(t.width() == size_t(qkv.shape[2]), "qkv of another width than the heads");
    expect(past_key.shape == past_value.shape && size_t(past_key.shape[0]) == t.batch &&
               size_t(past_key.shape[1]) == kv_heads && past.size() == t.batch,
           "caches of another shape than qkv");
    t.past = past.as<int64_t>();
    for (size_t b = 0; b < t.batch; ++b)
      expect(t.past[b] >= 0 && size_t(t.past[b]) + t.seq <= t.capacity, "a row that ends after its cache");
    t.qkv = qkv.as<float>();
    set_positions(t, input(context, 4), input(context, 5));
    t.q_norm = norm(t, input(context, 6));
    t.k_norm = norm(t, input(context, 7));
    t.window = window;
    t.scale = scale.value_or(1.0f / std::sqrt(float(t.dim)));
    t.softcap = softcap;
    t.epsilon = epsilon;
    t.y = static_cast<float*>(output(context, 0, {qkv.shape[0], qkv.shape[1], int64_t(heads * t.dim)}));
    t.keys = present(context, 1, past_key);
    t.values = present(context, 2, past_value);
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

  // A few new tokens after many: threads share the cache of a head.
  static void attend_in_chunks(ort::KernelContext* context, const Attention& t) {
    const KernelSet& f = *chosen_set();
    const size_t pairs = t.batch * t.kv_heads, size = partial_size(t.seq * (t.heads / t.kv_heads), t.dim);
    const size_t most = t.most_chunks();
    static thread_local std::vector<float> partials;
    partials.resize(pairs * most * size);
    // The pointer is needed: inside the lambda `partials` would be that of the worker that runs it.
    float* memory = partials.data();
    for (size_t i = 0; i < pairs; ++i) f.write_cache(t, i / t.kv_heads, i % t.kv_heads);
    parallel(context, pairs * most, [&](size_t i) {
      const size_t pair = i / most, chunk = i % most, batch = pair / t.kv_heads;
      if (chunk < t.seen(batch, 0, t.seq).chunks())
        f.attend_chunk(t, batch, pair % t.kv_heads, chunk, memory + i * size);
    });
    for (size_t i = 0; i < pairs; ++i)
      f.merge_chunks(t, i / t.kv_heads, i % t.kv_heads, memory + i * most * size);
  }

  // The cache after the step: the same memory where the caller bound it so, else a copy.
  static float* present(ort::KernelContext* context, size_t index, const Tensor& past) {
    float* memory = static_cast<float*>(output(context, index, past.shape));
    const auto* begin = static_cast<const float*>(past.data);
    expect(memory == begin || memory + past.size() <= begin || begin + past.size() <= memory,
           "a cache that overlaps the one before it without being the same");
    if (memory != past.data) std::memcpy(memory, past.data, past.size() * sizeof(float));
    return memory;
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
  return {&product, &lookup, &attention};
}

std::vector<const ort::CustomOp*> sums_over_ranks() {
  std::vector<const ort::CustomOp*> ops = group_ops();
  for (const ort::CustomOp* op : nccl_ops()) ops.push_back(op);
  return ops;
}

}  // namespace
}  // namespace plc

// The names of all that this processor has, best first, with a space between them.
PLC_EXPORT const char* plc_kernels_available() {
  static const std::string names = [] {
    std::string all;
    for (const plc::KernelSet* const* set = plc::available_sets(); *set; ++set)
      all += (all.empty() ? "" : " ") + std::string((*set)->name);
    return all;
  }();
  return names.c_str();
}

PLC_EXPORT plc::ort::Status* RegisterCustomOps(plc::ort::SessionOptions* options,
                                               const plc::ort::ApiBase* base) {
  using namespace plc;
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
PLC_EXPORT int plc_kernels_interface() { return 3; }

// The name of the instruction set in use; empty where PLC_KERNELS names one that is not there.
PLC_EXPORT const char* plc_kernels_name() {
  const plc::KernelSet* chosen = plc::chosen_set();
  return chosen ? chosen->name : "";
}
