// The kernels by themselves, on random shapes: each instruction set that the processor has, beside double
// precision and beside the others.
//
//   g++ -std=c++17 -O3 -ffp-contract=off -I runtime/kernels tests/runtime/kernels_test.cc
//       runtime/kernels/instruction_sets.cc runtime/kernels/dispatch.cc -o kernels_test && ./kernels_test
//
// Prints a line for each set: its name, the number of cases, and a sum over the bits of all results. All sets
// but the portable one must print the same sum, on every processor. Ends with 1 where a result is wrong.
#include "kernels.h"
#include "prefix_codes.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

using namespace plc::kernels;

namespace {

// The same numbers on every machine, as long as no expression draws twice: compilers differ in the order.
struct Random {
  uint64_t state;
  uint32_t next() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return uint32_t(state >> 33);
  }
  size_t below(size_t count) { return next() % count; }
  // In steps of 2^-10, from -limit to limit.
  float real(int limit) { return float(int(next() % unsigned(2048 * limit + 1)) - 1024 * limit) / 1024; }
};

struct Checker {
  std::string set;
  size_t cases = 0;
  uint64_t bits = 0;
  bool right = true;

  void expect(bool holds, const std::string& what) {
    if (holds) return;
    right = false;
    std::printf("%s: %s is wrong\n", set.c_str(), what.c_str());
  }
  void add(const std::vector<float>& found) {
    ++cases;
    for (const float value : found) {
      uint32_t word;
      std::memcpy(&word, &value, sizeof word);
      bits = bits * 1000003 + (std::isnan(value) ? 0x7fc00000u : word);  // what is no number has many forms
    }
  }
  void compare(const std::vector<float>& found, const std::vector<double>& expected, double tolerance,
               const std::string& what) {
    double largest = 0, apart = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      largest = std::max(largest, std::abs(expected[i]));
      apart = std::max(apart, std::isnan(found[i]) ? INFINITY : std::abs(found[i] - expected[i]));
    }
    // Where a gate is far below 0, the kernels stop at e to the -87.
    expect(apart <= tolerance * largest + 1e-25, what);
  }
};

double half(uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const double magnitude = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
  return h & 0x8000 ? -magnitude : magnitude;
}

struct RandomWeight {
  std::vector<uint8_t> codes;
  std::vector<uint16_t> steps, lows;
  Weight weight{};

  RandomWeight(Random& random, size_t inputs, size_t outputs, size_t bits, size_t block, bool with_lows) {
    weight.inputs = inputs, weight.outputs = outputs, weight.bits = bits, weight.block = block;
    codes.resize(weight.tiles() * weight.tile_bytes());
    steps.resize(weight.tiles() * weight.blocks() * kTile);
    // All codes the least or all the largest: with activations that are alike, sums reach their limits.
    const size_t form = random.below(4);
    for (uint8_t& c : codes) c = uint8_t(form < 2 ? form * 255 : random.next());
    // Subnormal ones too.
    for (uint16_t& s : steps) s = uint16_t(random.below(16) ? 0x1c00 + random.below(0x2000) : random.below(0x400));
    if (with_lows) {
      lows.resize(steps.size());
      for (uint16_t& l : lows) {
        l = uint16_t(0x1c00 + random.below(0x1400));
        if (random.below(2)) l |= 0x8000;
      }
    }
    weight.codes = codes.data(), weight.steps = steps.data(), weight.lows = with_lows ? lows.data() : nullptr;
  }
  int code(size_t k, size_t n) const {
    const uint8_t* tile = codes.data() + n / kTile * weight.tile_bytes();
    if (weight.bits == 8) return tile[k / 4 * 64 + n % kTile * 4 + k % 4] - 128;
    const uint8_t both = tile[k / 8 * 64 + n % kTile * 4 + k % 4];
    return (k % 8 < 4 ? both & 15 : both >> 4) - 8;
  }
  double value(size_t k, size_t n) const {
    const size_t at = (n / kTile * weight.blocks() + k / weight.block) * kTile + n % kTile;
    return code(k, n) * half(steps[at]) + (lows.empty() ? 0 : half(lows[at]));
  }
};

std::vector<float> product(const KernelSet& f, const Weight& w, const std::vector<float>& x, size_t rows, Gate gate) {
  Product p{w, x.data(), nullptr, rows, gate};
  std::vector<float> y(rows * w.outputs / p.tiles_per_result());
  p.y = y.data();
  Activations a;
  a.resize(rows, w);
  f.round(p, a, 0, rows / 2);
  f.round(p, a, rows / 2, rows);
  const size_t middle = w.tiles() / p.tiles_per_result() / 2 * p.tiles_per_result();
  f.multiply(p, a, middle, w.tiles());
  f.multiply(p, a, 0, middle);
  return y;
}

double gated(Gate gate, double x) {
  if (gate == Gate::swiglu) return x / (1 + std::exp(-x));
  // x / 2 * (1 + tanh(u)), with the precision that this loses far below 0.
  const double u = std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
  return x / (1 + std::exp(-2 * u));
}

void check_products(const KernelSet& f, Checker& c) {
  Random random{1};
  for (int turn = 0; turn < 60; ++turn) {
    const Gate gate = std::array{Gate::swiglu, Gate::geglu, Gate::none, Gate::none}[random.below(4)];
    const bool has_gate = gate != Gate::none;
    const size_t bits = random.below(2) ? 4 : 8, block = random.below(2) ? 32 : 64;
    const size_t inputs = block * (1 + random.below(6)), rows = 1 + random.below(40);
    const size_t outputs = has_gate ? 32 * (1 + random.below(4)) : 1 + random.below(120);
    const bool lows = random.below(2);
    const RandomWeight w(random, inputs, outputs, bits, block, lows);
    std::vector<float> x(rows * inputs);
    const bool alike = turn % 3 == 0;  // but for their signs, row by row
    for (size_t i = 0; i < x.size(); ++i) {
      x[i] = random.real(8);
      if (random.below(40) == 0) x[i] *= 64;
      if (alike) x[i] = i / inputs % 2 ? 2.0f : -2.0f;
    }
    if (random.below(2)) std::fill_n(x.begin() + long(random.below(rows) * inputs), inputs, 0.0f);
    if (random.below(4) == 0)  // so small that a block has no scale
      std::fill_n(x.begin() + long(random.below(rows) * inputs), inputs, 1e-39f);
    const std::string what = "a product of " + std::to_string(rows) + " rows, " + std::to_string(inputs) + " x " +
                             std::to_string(outputs) + ", " + std::to_string(bits) + " bits";

    const std::vector<float> y = product(f, w.weight, x, rows, gate);

    std::vector<double> sums(rows * outputs), expected;
    for (size_t r = 0; r < rows; ++r) {
      std::vector<double> rounded(inputs);
      for (size_t b = 0; b < inputs; b += block) {
        float most = 0;
        for (size_t k = b; k < b + block; ++k) most = std::max(most, std::abs(x[r * inputs + k]));
        const float scale = most / 127 < std::numeric_limits<float>::min() ? 0 : most / 127;
        for (size_t k = b; k < b + block; ++k)
          rounded[k] = scale > 0 ? double(std::nearbyint(x[r * inputs + k] * (1 / scale))) * scale : 0;
      }
      for (size_t n = 0; n < outputs; ++n)
        for (size_t k = 0; k < inputs; ++k) sums[r * outputs + n] += rounded[k] * w.value(k, n);
    }
    if (has_gate) {
      for (size_t r = 0; r < rows; ++r)
        for (size_t n = 0; n < outputs / 2; ++n) {
          const size_t at = r * outputs + n / kTile * 2 * kTile + n % kTile;
          expected.push_back(gated(gate, sums[at]) * sums[at + kTile]);
        }
    } else {
      expected = sums;
    }
    c.compare(y, expected, 1e-5, what);
    const size_t first = random.below(rows), last = first + 1 + random.below(rows - first);
    const std::vector<float> part(x.begin() + long(first * inputs), x.begin() + long(last * inputs));
    const std::vector<float> alone = product(f, w.weight, part, last - first, gate);
    const size_t width = y.size() / rows;
    c.expect(!std::memcmp(alone.data(), y.data() + first * width, alone.size() * sizeof(float)),
             what + ": some rows alone");
    c.add(y);

    const size_t broken = random.below(rows);
    const float bad_value = random.below(2) ? INFINITY : NAN;
    x[broken * inputs + random.below(inputs)] = bad_value;
    const std::vector<float> bad = product(f, w.weight, x, rows, gate);
    for (size_t i = 0; i < bad.size(); ++i)
      c.expect(i / width == broken ? std::isnan(bad[i]) : bad[i] == y[i], what + " with a row that is no number");
  }
}

// A step that a corrupt file may have: infinity and what is no number must not become numbers.
void check_broken_steps(const KernelSet& f, Checker& c) {
  Random random{4};
  for (const uint16_t step : {0x7c00, 0xfc00, 0x7e00}) {
    RandomWeight w(random, 32, 16, 8, 32, false);
    std::fill(w.codes.begin(), w.codes.end(), uint8_t(129));
    w.steps[3] = step;
    const std::vector<float> y = product(f, w.weight, std::vector<float>(32, 1.0f), 1, Gate::none);
    for (size_t n = 0; n < 16; ++n) c.expect(std::isfinite(y[n]) == (n != 3), "a product with a broken step");
    c.add(y);
  }
}

void check_lookups(const KernelSet& f, Checker& c) {
  Random random{2};
  for (int turn = 0; turn < 12; ++turn) {
    const size_t bits = turn % 2 ? 4 : 8, block = turn % 4 < 2 ? 32 : 64, outputs = 1 + random.below(100);
    const size_t inputs = block * (1 + random.below(4));
    const RandomWeight w(random, inputs, outputs, bits, block, turn % 3);
    std::vector<int64_t> ids(1 + random.below(20));
    for (int64_t& id : ids) id = int64_t(random.below(outputs));
    std::vector<float> y(ids.size() * w.weight.inputs);
    f.look_up(Lookup{w.weight, ids.data(), y.data()}, 0, ids.size());
    std::vector<double> expected;
    for (const int64_t id : ids)
      for (size_t k = 0; k < w.weight.inputs; ++k) expected.push_back(w.value(k, size_t(id)));
    c.compare(y, expected, 1e-6, "a lookup");
    c.add(y);
  }
}

struct Step {
  std::vector<float> qkv, keys, values, cos, sin, q_norm, k_norm, y;
  std::vector<int64_t> past;
  std::vector<Row> rows;
  size_t batch, seq, heads, kv_heads, dim, capacity, window = 0;
  float scale, softcap = 0, epsilon = 1e-6f;

  size_t width() const { return (heads + 2 * kv_heads) * dim; }
  size_t begin(size_t position) const { return window == 0 || position < window ? 0 : position - window + 1; }

  Attention attention() {
    y.assign(batch * seq * heads * dim, 0.0f);
    const auto or_null = [](const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); };
    Attention t{};
    t.qkv = qkv.data(), t.keys = keys.data(), t.values = values.data(), t.y = y.data();
    t.cos = or_null(cos), t.sin = or_null(sin), t.q_norm = or_null(q_norm), t.k_norm = or_null(k_norm);
    t.heads = heads, t.kv_heads = kv_heads, t.dim = dim, t.capacity = capacity;
    rows.clear();
    for (size_t b = 0; b < batch; ++b) rows.push_back({b * seq, seq, size_t(past[b]), b, nullptr, {}, false});
    t.rows = rows.data();
    t.window = window, t.scale = scale, t.softcap = softcap, t.epsilon = epsilon;
    return t;
  }
  void run(const KernelSet& f, bool in_chunks) {
    const Attention t = attention();
    const size_t queries = std::min(seq, kQueries) * t.group(), size = partial_size(queries, dim);
    std::vector<float> results((capacity / kChunk + 1) * size);
    for (const Row& row : rows)
      for (size_t h = 0; h < kv_heads; ++h) {
        f.write_cache(t, row, h);
        if (in_chunks) {
          const Span seen = t.seen(row, 0, seq);
          std::vector<Part> parts;
          for (size_t i = 0; i < seen.chunks(); ++i) parts.push_back({i * size, queries, 0});
          for (size_t i = seen.chunks(); i-- > 0;)
            f.attend_chunk(t, row, h, seen.first_chunk() + i, results.data() + parts[i].at);
          f.merge_chunks(t, row, h, results.data(), parts.data(), parts.size());
        } else {
          for (size_t i = 0; i < t.query_blocks(row); ++i) f.attend(t, row, h, i);
        }
      }
  }
  // A head after its norm, and at its position.
  std::vector<double> prepared(const float* x, const std::vector<float>& norm, size_t position) const {
    std::vector<double> normed(x, x + dim);
    if (!norm.empty()) {
      double squares = 0;
      for (const double v : normed) squares += v * v;
      for (size_t i = 0; i < dim; ++i) normed[i] *= norm[i] / std::sqrt(squares / double(dim) + epsilon);
    }
    std::vector<double> result = normed;
    const size_t rest = dim / 2;
    for (size_t i = 0; i < rest && !cos.empty(); ++i) {
      const double co = cos[position * rest + i], si = sin[position * rest + i];
      result[i] = normed[i] * co - normed[i + rest] * si;
      result[i + rest] = normed[i + rest] * co + normed[i] * si;
    }
    return result;
  }
  const float* head(size_t b, size_t s, size_t h) const { return qkv.data() + (b * seq + s) * width() + h * dim; }
  size_t cache(size_t b, size_t kv_head, size_t entry) const {
    return ((b * kv_heads + kv_head) * capacity + entry) * dim;
  }
  // The step's own keys: as they must be, and as the cache has them.
  std::vector<double> expected_keys() const {
    std::vector<double> result;
    for (size_t b = 0; b < batch; ++b)
      for (size_t s = 0; s < seq; ++s)
        for (size_t h = 0; h < kv_heads; ++h) {
          const std::vector<double> key = prepared(head(b, s, heads + h), k_norm, size_t(past[b]) + s);
          result.insert(result.end(), key.begin(), key.end());
        }
    return result;
  }
  std::vector<float> written_keys() const {
    std::vector<float> result;
    for (size_t b = 0; b < batch; ++b)
      for (size_t s = 0; s < seq; ++s)
        for (size_t h = 0; h < kv_heads; ++h) {
          const float* key = keys.data() + cache(b, h, size_t(past[b]) + s);
          result.insert(result.end(), key, key + dim);
        }
    return result;
  }
  // From the caches after the step.
  std::vector<double> expected() const {
    std::vector<double> result;
    for (size_t b = 0; b < batch; ++b)
      for (size_t s = 0; s < seq; ++s)
        for (size_t h = 0; h < heads; ++h) {
          const size_t position = size_t(past[b]) + s, kv_head = h / (heads / kv_heads);
          const std::vector<double> query = prepared(head(b, s, h), q_norm, position);
          std::vector<double> weights(position + 1), sums(dim);
          double top = -INFINITY, total = 0;
          for (size_t j = begin(position); j <= position; ++j) {
            for (size_t d = 0; d < dim; ++d) weights[j] += query[d] * keys[cache(b, kv_head, j) + d];
            weights[j] *= scale;
            if (softcap > 0) weights[j] = softcap * std::tanh(weights[j] / softcap);
            top = std::max(top, weights[j]);
          }
          for (size_t j = begin(position); j <= position; ++j) total += weights[j] = std::exp(weights[j] - top);
          for (size_t j = begin(position); j <= position; ++j)
            for (size_t d = 0; d < dim; ++d) sums[d] += weights[j] / total * values[cache(b, kv_head, j) + d];
          result.insert(result.end(), sums.begin(), sums.end());
        }
    return result;
  }
  // Puts what is no number wherever no query of the step looks.
  void spoil_unseen() {
    for (size_t b = 0; b < batch; ++b)
      for (size_t h = 0; h < kv_heads; ++h)
        for (size_t entry = 0; entry < capacity; ++entry) {
          if (entry >= begin(size_t(past[b])) && entry < size_t(past[b]) + seq) continue;
          std::fill_n(keys.begin() + long(cache(b, h, entry)), dim, NAN);
          std::fill_n(values.begin() + long(cache(b, h, entry)), dim, NAN);
        }
  }
};

Step random_step(Random& random, bool few) {
  Step s;
  s.batch = 1 + random.below(3), s.seq = few ? 1 + random.below(3) : 1 + random.below(2 * kQueries + 8);
  s.kv_heads = 1 + random.below(2), s.heads = s.kv_heads * (1 + random.below(4));
  s.dim = 16 * (1 + random.below(6)), s.capacity = 400;
  s.scale = 1.0f / std::sqrt(float(s.dim));
  for (size_t b = 0; b < s.batch; ++b) s.past.push_back(int64_t(random.below(s.capacity - s.seq + 1)));
  s.qkv.resize(s.batch * s.seq * s.width());
  s.keys.resize(s.batch * s.kv_heads * s.capacity * s.dim);
  for (float& v : s.qkv) v = random.real(2);
  for (float& v : s.keys) v = random.real(2);
  s.values = s.keys;
  std::reverse(s.values.begin(), s.values.end());
  if (random.below(2)) {
    s.cos.resize(s.capacity * s.dim / 2);
    for (float& v : s.cos) v = random.real(1);
    s.sin = s.cos;
    std::reverse(s.sin.begin(), s.sin.end());
  }
  return s;
}

// What other families than Llama ask for, each with and without the others.
void add_options(Random& random, Step& s) {
  if (random.below(4)) s.window = 1 + random.below(random.below(2) ? 20 : 300);
  if (random.below(2)) s.softcap = 1 + float(random.below(4));
  if (random.below(2)) s.scale = 0.25f;
  if (random.below(2)) s.epsilon = 0.01f;
  for (std::vector<float>* norm : {&s.q_norm, &s.k_norm}) {
    if (random.below(2)) continue;
    norm->resize(s.dim);
    for (float& v : *norm) v = random.real(2);
  }
}

// The first queries of the only row in one step, the others in another.
std::vector<float> in_two_steps(const KernelSet& f, Step s, size_t first) {
  const std::vector<float> all = s.qkv;
  const size_t seq = s.seq;
  s.qkv.resize(first * s.width());
  s.seq = first;
  s.run(f, false);
  std::vector<float> y = s.y;
  s.qkv.assign(all.begin() + long(first * s.width()), all.end());
  s.seq = seq - first;
  s.past[0] += int64_t(first);
  s.run(f, false);
  y.insert(y.end(), s.y.begin(), s.y.end());
  return y;
}

// One row of a batch by itself.
std::vector<float> alone(const KernelSet& f, Step s, size_t row) {
  const auto part = [&](std::vector<float>& v) {
    const long size = long(v.size() / s.batch);
    v = std::vector<float>(v.begin() + long(row) * size, v.begin() + long(row + 1) * size);
  };
  for (std::vector<float>* v : {&s.qkv, &s.keys, &s.values}) part(*v);
  s.past = {s.past[row]};
  s.batch = 1;
  s.run(f, false);
  return s.y;
}

// The same step on caches in blocks, which lie anywhere. The entries that a row's prefix holds are not in the cache.
struct Paged {
  std::vector<float> keys, values;
  std::vector<std::vector<float>> prefix_keys, prefix_values;
  std::vector<std::vector<int64_t>> tables;
  std::vector<Row> rows;

  Paged(Random& random, const Step& s, const std::vector<size_t>& lengths) {
    const size_t width = (s.capacity + kBlock - 1) / kBlock, size = s.kv_heads * kBlock * s.dim;
    std::vector<int64_t> places(s.batch * width + 3);
    for (size_t i = 0; i < places.size(); ++i) places[i] = int64_t(i);
    for (size_t i = places.size(); i > 1; --i) std::swap(places[i - 1], places[random.below(i)]);
    keys.assign(places.size() * size, NAN);
    values = keys;
    for (size_t b = 0; b < s.batch; ++b) {
      tables.emplace_back(places.begin() + long(b * width), places.begin() + long((b + 1) * width));
      prefix_keys.emplace_back(), prefix_values.emplace_back();
      for (size_t h = 0; h < s.kv_heads; ++h)
        for (size_t entry = 0; entry < size_t(s.past[b]); ++entry) {
          const float *key = s.keys.data() + s.cache(b, h, entry), *value = s.values.data() + s.cache(b, h, entry);
          if (entry < lengths[b]) {
            prefix_keys[b].insert(prefix_keys[b].end(), key, key + s.dim);
            prefix_values[b].insert(prefix_values[b].end(), value, value + s.dim);
            continue;
          }
          const size_t to = block_entry(s, b, h, entry);
          std::copy_n(key, s.dim, keys.begin() + long(to));
          std::copy_n(value, s.dim, values.begin() + long(to));
        }
      const Prefix prefix{prefix_keys[b].data(), prefix_values[b].data(), lengths[b]};
      rows.push_back({b * s.seq, s.seq, size_t(s.past[b]), 0, nullptr, prefix, false});
    }
    for (size_t b = 0; b < s.batch; ++b) rows[b].blocks = tables[b].data();
  }
  size_t block_entry(const Step& s, size_t b, size_t h, size_t entry) const {
    return ((size_t(tables[b][entry / kBlock]) * s.kv_heads + h) * kBlock + entry % kBlock) * s.dim;
  }
  Attention attention(Step& s) {
    Attention t = s.attention();
    t.keys = keys.data(), t.values = values.data(), t.rows = rows.data(), t.capacity = 0;
    return t;
  }
};

void check_blocks(const KernelSet& f, Checker& c, Random& random, const Step& before, const std::string& what) {
  Step whole = before;
  whole.run(f, false);
  std::vector<size_t> lengths;
  for (const int64_t past : before.past) lengths.push_back(random.below(2) ? random.below(size_t(past) + 1) : 0);
  Step s = before;
  Paged paged(random, s, lengths);
  const Attention t = paged.attention(s);
  for (const Row& row : paged.rows)
    for (size_t h = 0; h < s.kv_heads; ++h) {
      f.write_cache(t, row, h);
      for (size_t i = 0; i < t.query_blocks(row); ++i) f.attend(t, row, h, i);
    }
  c.expect(s.y == whole.y, what + ", in blocks");
  if (s.window || lengths[0] < kChunk || s.seq > 8) return;
  // All rows as if they had the first one's prefix: its chunks come once for all of them.
  const size_t chunks = lengths[0] / kChunk, queries = s.batch * s.seq * t.group(), own = s.seq * t.group();
  Step apart = before;
  std::fill(lengths.begin() + 1, lengths.end(), 0);
  Paged shared(random, apart, lengths);
  for (Row& row : shared.rows) row.prefix = shared.rows[0].prefix;
  Attention each = shared.attention(apart);
  std::vector<const Row*> alike;
  for (Row& row : shared.rows) {
    row.past = std::max(row.past, lengths[0]);
    alike.push_back(&row);
    for (size_t h = 0; h < s.kv_heads; ++h) f.write_cache(each, row, h), f.attend(each, row, h, 0);
  }
  Step together = before;
  each = shared.attention(together);
  const size_t most = before.capacity / kChunk + 2;
  std::vector<float> results(chunks * partial_size(queries, s.dim) + most * partial_size(own, s.dim));
  for (size_t h = 0; h < s.kv_heads; ++h) {
    for (size_t i = 0; i < chunks; ++i)
      f.attend_shared(each, alike.data(), alike.size(), h, i, i + 1, results.data() + i * partial_size(queries, s.dim));
    for (size_t b = 0; b < s.batch; ++b) {
      std::vector<Part> parts;
      for (size_t i = 0; i < chunks; ++i) parts.push_back({i * partial_size(queries, s.dim), queries, b * own});
      size_t at = chunks * partial_size(queries, s.dim);
      for (size_t i = chunks; i < each.seen(*alike[b], 0, s.seq).chunks_end(); ++i, at += partial_size(own, s.dim)) {
        parts.push_back({at, own, 0});
        f.attend_chunk(each, *alike[b], h, i, results.data() + at);
      }
      f.merge_chunks(each, *alike[b], h, results.data(), parts.data(), parts.size());
    }
  }
  c.expect(together.y == apart.y, what + ", with a prefix of all");
}

uint16_t rounded(float x) {
  if (std::isnan(x)) return 0x7e00;
  return uint16_t(half_of(std::fabs(x)) | (std::signbit(x) ? 0x8000 : 0));
}

// On caches of float16: what is written is rounded, and what is read is what was rounded.
void check_halves(const KernelSet& f, Checker& c, Random& random, const Step& before, const std::string& what) {
  std::vector<size_t> lengths;
  for (const int64_t past : before.past) lengths.push_back(random.below(2) ? random.below(size_t(past) + 1) : 0);
  Step s = before;
  Paged paged(random, s, lengths);
  std::vector<uint16_t> keys, values;
  for (const float v : paged.keys) keys.push_back(rounded(v));
  for (const float v : paged.values) values.push_back(rounded(v));
  Attention t = paged.attention(s);
  t.halves = true, t.keys = keys.data(), t.values = values.data();
  for (const Row& row : paged.rows)
    for (size_t h = 0; h < s.kv_heads; ++h) {
      f.write_cache(t, row, h);
      for (size_t i = 0; i < t.query_blocks(row); ++i) f.attend(t, row, h, i);
    }
  bool nearest = true;
  for (size_t b = 0; b < s.batch; ++b)
    for (size_t h = 0; h < s.kv_heads; ++h)
      for (size_t entry = lengths[b]; entry < size_t(s.past[b]) + s.seq; ++entry)
        for (size_t d = 0; d < s.dim; ++d) {
          const size_t from = paged.block_entry(s, b, h, entry) + d, to = s.cache(b, h, entry) + d;
          s.keys[to] = float(half(keys[from])), s.values[to] = float(half(values[from]));
          if (entry < size_t(s.past[b])) continue;
          const size_t head = s.heads + s.kv_heads + h;
          nearest &= values[from] == rounded(s.head(b, entry - size_t(s.past[b]), head)[d]);
        }
  c.expect(nearest, what + ", the nearest float16");
  c.compare(s.written_keys(), s.expected_keys(), 1e-3, what + ": keys of float16");
  c.compare(s.y, s.expected(), 3e-6, what + ", of float16");
  c.add(s.y);
}

// Numbers at the ends of what float16 has.
void check_rounding_to_halves(const KernelSet& f, Checker& c) {
  std::vector<float> numbers = {0.0f,     -0.0f,   0x1p-24f, 0x1p-25f, 0x1.8p-25f, 0x1.8p-24f, -0x1.4p-15f, 0x1.ffep-15f,
                                0x1p-14f, 65504.0f, 65519.9f, 65520.0f, -65520.0f, INFINITY,   NAN,         1.0f / 3.0f};
  Attention t{};
  t.heads = t.kv_heads = 1, t.dim = 16, t.halves = true;
  std::vector<float> qkv(48);
  std::copy(numbers.begin(), numbers.end(), qkv.begin() + 32);
  std::vector<uint16_t> keys(kBlock * 16), values = keys;
  const int64_t block = 0;
  t.qkv = qkv.data(), t.keys = keys.data(), t.values = values.data();
  f.write_cache(t, Row{0, 1, 0, 0, &block, {}, false}, 0);
  for (size_t i = 0; i < numbers.size(); ++i) {
    const bool none = (values[i] & 0x7fff) > 0x7c00;
    c.expect(std::isnan(numbers[i]) ? none : values[i] == rounded(numbers[i]), "a float16 for " + std::to_string(numbers[i]));
  }
}

// Tokens of a branching row, each as the last one of its branch alone.
void check_branches(const KernelSet& f, Checker& c, Random& random, const Step& before, const std::string& what) {
  Step s = before;
  std::vector<int64_t> parents(s.seq);
  for (size_t i = 0; i < s.seq; ++i) parents[i] = int64_t(random.below(i + 1)) - 1;
  Paged paged(random, s, {random.below(size_t(s.past[0]) + 1)});
  paged.rows[0].branches = true;
  Attention t = paged.attention(s);
  t.parents = parents.data();
  for (size_t h = 0; h < s.kv_heads; ++h) {
    f.write_cache(t, paged.rows[0], h);
    for (size_t i = 0; i < t.query_blocks(paged.rows[0]); ++i) f.attend(t, paged.rows[0], h, i);
  }
  const size_t width = s.heads * s.dim;
  bool equal = true;
  for (size_t turn = 0; turn < std::min(s.seq, size_t(6)); ++turn) {
    const size_t i = random.below(s.seq);
    std::vector<size_t> branch{i};
    while (parents[branch.back()] >= 0) branch.push_back(size_t(parents[branch.back()]));
    Step alone = before;
    alone.seq = branch.size();
    alone.qkv.clear();
    for (size_t j = branch.size(); j-- > 0;)
      alone.qkv.insert(alone.qkv.end(), before.qkv.begin() + long(branch[j] * s.width()),
                       before.qkv.begin() + long((branch[j] + 1) * s.width()));
    alone.run(f, false);
    equal &= std::equal(alone.y.end() - long(width), alone.y.end(), s.y.begin() + long(i * width));
  }
  c.expect(equal, what + ", in branches");
}

void check_step(const KernelSet& f, Checker& c, Random& random, const Step& before) {
  const std::string what = "attention of " + std::to_string(before.seq) + " queries, window " +
                           std::to_string(before.window) + ", softcap " + std::to_string(int(before.softcap));
  Step s = before;
  s.run(f, false);
  c.compare(s.written_keys(), s.expected_keys(), 1e-6, what + ": the keys");
  c.compare(s.y, s.expected(), 3e-6, what);
  if (s.seq <= kQueries) {
    Step again = before;
    again.run(f, true);
    c.expect(again.y == s.y && again.keys == s.keys, what + ", in chunks");
  }
  Random other{s.seq};  // of its own: cases stay what they were, and so do the bits of all
  check_blocks(f, c, other, before, what);
  check_halves(f, c, other, before, what);
  if (s.batch == 1) check_branches(f, c, other, before, what);
  if (s.batch == 1 && s.seq > 1)
    c.expect(in_two_steps(f, before, 1 + random.below(s.seq - 1)) == s.y, what + ", in two steps");
  const size_t row = random.below(s.batch), size = s.y.size() / s.batch;
  const std::vector<float> one = alone(f, before, row);
  c.expect(std::equal(one.begin(), one.end(), s.y.begin() + long(row * size)), what + ", a row alone");
  Step spoilt = before;
  spoilt.spoil_unseen();
  spoilt.run(f, false);
  c.expect(spoilt.y == s.y, what + ", with what it does not see spoilt");
  c.add(s.y);
  c.add(s.keys);
}

void check_attention(const KernelSet& f, Checker& c) {
  Random random{3};
  // Few of many queries: they take minutes in an emulator.
  for (int turn = 0; turn < 12; ++turn) check_step(f, c, random, random_step(random, turn % 4));
  for (int turn = 0; turn < 12; ++turn) {
    Step s = random_step(random, turn % 4);
    add_options(random, s);
    check_step(f, c, random, s);
  }
}

// A prefix that all rows of a step have, with the most of it as codes.
struct Coded {
  std::vector<float> keys, values;  // what is not
  std::vector<uint8_t> codes;
  Prefix prefix{};

  // Of the caches of the first row, [kv_heads][capacity][dim].
  Coded(const Step& s, size_t length) {
    const size_t chunks = length / kChunk - 1, bytes = CodedChunk::bytes(s.dim);
    codes.resize(s.kv_heads * chunks * bytes);
    for (size_t h = 0; h < s.kv_heads; ++h) {
      for (size_t i = 0; i < chunks; ++i) {
        const size_t at = s.cache(0, h, (i + 1) * kChunk);
        make_codes(s.keys.data() + at, s.values.data() + at, s.dim, codes.data() + (h * chunks + i) * bytes);
      }
      for (size_t e = 0; e < length; ++e) {
        if (e / kChunk > 0 && e / kChunk <= chunks) continue;
        const size_t at = s.cache(0, h, e);
        keys.insert(keys.end(), s.keys.begin() + long(at), s.keys.begin() + long(at + s.dim));
        values.insert(values.end(), s.values.begin() + long(at), s.values.begin() + long(at + s.dim));
      }
    }
    prefix = {keys.data(), values.data(), length, codes.data(), chunks};
  }
  static double value(const Weight& w, size_t k, size_t n) {
    const uint8_t code = w.codes[n / kTile * w.tile_bytes() + k / 4 * 64 + n % kTile * 4 + k % 4];
    return (code - 128) * half(w.steps[(n / kTile * w.blocks() + k / kPrefixBlock) * kTile + n % kTile]);
  }
  // What the codes stand for, in the caches of all rows.
  void write_back(Step& s) const {
    for (size_t b = 0; b < s.batch; ++b)
      for (size_t h = 0; h < s.kv_heads; ++h)
        for (size_t e = kChunk; e < (prefix.coded + 1) * kChunk; ++e)
          for (size_t d = 0; d < s.dim; ++d) {
            const CodedChunk chunk = prefix.chunk(h, e / kChunk, s.dim);
            s.keys[s.cache(b, h, e) + d] = float(value(chunk.keys, d, e % kChunk));
            s.values[s.cache(b, h, e) + d] = float(value(chunk.values, e % kChunk, d));
          }
  }
};

// One step of rows with a prefix in codes. `form`: each row by itself; or in chunks, each row by itself; or in chunks,
// those of the prefix for all rows together.
enum class Form { whole, chunks, shared };

std::vector<float> with_codes(const KernelSet& f, Step s, const Prefix& prefix, Form form,
                              const std::vector<int64_t>* parents = nullptr) {
  Random places{7};
  Paged paged(places, s, std::vector<size_t>(s.batch, prefix.length));
  for (Row& row : paged.rows) row.prefix = prefix, row.branches = parents;
  Attention t = paged.attention(s);
  if (parents) t.parents = parents->data();
  std::vector<const Row*> alike;
  for (const Row& row : paged.rows) alike.push_back(&row);
  const size_t own = s.seq * t.group(), queries = s.batch * own, shared = form == Form::shared ? prefix.length / kChunk : 0;
  const size_t size = partial_size(queries, s.dim), each = partial_size(own, s.dim), chunks = s.capacity / kChunk + 2;
  std::vector<float> results(shared * size + chunks * each);
  for (size_t h = 0; h < s.kv_heads; ++h) {
    for (const Row& row : paged.rows) f.write_cache(t, row, h);
    // In two parts, as threads may take them.
    for (size_t i = 0; i < shared; i += 2)
      f.attend_shared(t, alike.data(), alike.size(), h, i, std::min(shared, i + 2), results.data() + i * size);
    for (const Row& row : paged.rows) {
      if (form == Form::whole) {
        for (size_t i = 0; i < t.query_blocks(row); ++i) f.attend(t, row, h, i);
        continue;
      }
      std::vector<Part> parts;
      for (size_t i = 0; i < shared; ++i) parts.push_back({i * size, queries, row.first * t.group()});
      const Span seen = t.seen(row, 0, s.seq);
      for (size_t i = std::max(shared, seen.first_chunk()); i < seen.chunks_end(); ++i) {
        parts.push_back({shared * size + (i - seen.first_chunk()) * each, own, 0});
        f.attend_chunk(t, row, h, i, results.data() + parts.back().at);
      }
      f.merge_chunks(t, row, h, results.data(), parts.data(), parts.size());
    }
  }
  return s.y;
}

void check_codes(const KernelSet& f, Checker& c) {
  Random random{5};
  for (int turn = 0; turn < 12; ++turn) {
    Step s = random_step(random, turn % 4);
    if (turn % 3) add_options(random, s);
    s.dim = 32 * (1 + random.below(3)), s.capacity = 800;
    s.cos.clear(), s.sin.clear(), s.q_norm.clear(), s.k_norm.clear();
    s.qkv.resize(s.batch * s.seq * s.width());
    for (float& v : s.qkv) v = random.real(2);
    const size_t length = 2 * kChunk + random.below(300), size = s.kv_heads * s.capacity * s.dim;
    s.past.clear();
    for (size_t b = 0; b < s.batch; ++b) s.past.push_back(int64_t(length + random.below(s.capacity - length - s.seq)));
    s.keys.resize(size);
    for (float& v : s.keys) v = random.real(2);
    s.values = s.keys;
    std::reverse(s.values.begin(), s.values.end());
    for (size_t b = 1; b < s.batch; ++b)
      for (std::vector<float>* v : {&s.keys, &s.values}) v->insert(v->end(), v->begin(), v->begin() + long(size));
    const std::string what = "attention of " + std::to_string(s.seq) + " queries to a prefix in codes, window " +
                             std::to_string(s.window);
    const Coded coded(s, length);

    const std::vector<float> y = with_codes(f, s, coded.prefix, Form::whole);

    Step exact = s;
    exact.run(f, false);
    c.compare(y, exact.expected(), 3e-2, what + ": beside floats");
    coded.write_back(exact);
    c.compare(y, exact.expected(), 2e-2, what);  // queries and weights are rounded to 8 bits
    if (s.seq <= kQueries) c.expect(with_codes(f, s, coded.prefix, Form::chunks) == y, what + ", in chunks");
    if (!s.window && s.batch * s.seq <= kQueries)
      c.expect(with_codes(f, s, coded.prefix, Form::shared) == y, what + ", of all rows together");
    // Each token alone, after those before it.
    const size_t width = s.heads * s.dim, last = s.seq - 1;
    Step one = s;
    one.batch = 1, one.seq = 1, one.past = {s.past[0] + int64_t(last)};
    exact.keys.resize(size), exact.values.resize(size);
    one.keys = exact.keys, one.values = exact.values;
    one.qkv.assign(s.qkv.begin() + long(last * s.width()), s.qkv.begin() + long((last + 1) * s.width()));
    const std::vector<float> alone = with_codes(f, one, coded.prefix, Form::whole);
    c.expect(std::equal(alone.begin(), alone.end(), y.begin() + long(last * width)), what + ", a token alone");
    // Branches of one token each see what a row of one token sees.
    Step branch = s;
    branch.batch = 1, branch.past = {s.past[0]};
    branch.keys.resize(size), branch.values.resize(size), branch.qkv.resize(s.seq * s.width());
    const std::vector<int64_t> parents(s.seq, -1);
    const std::vector<float> branches = with_codes(f, branch, coded.prefix, Form::whole, &parents);
    c.expect(std::equal(branches.begin(), branches.begin() + long(width), y.begin()), what + ", in branches");
    c.add(y);

    s.qkv[random.below(s.seq) * s.width()] = NAN;
    const std::vector<float> bad = with_codes(f, s, coded.prefix, Form::whole);
    c.expect(std::isnan(*std::max_element(bad.begin(), bad.begin() + long(s.seq * width),
                                          [](float a, float b) { return !std::isnan(a) && std::isnan(b); })),
             what + ", of a query that is no number");
  }
}

// Numbers that codes cannot stand for are said so; others come back within half a step, and what is 0 as 0.
void check_making_codes(Checker& c) {
  for (const float bad : {NAN, INFINITY, -INFINITY, 1e8f}) {
    std::vector<float> x(kChunk * 32, 1.0f);
    std::vector<uint8_t> codes(CodedChunk::bytes(32));
    x[77] = bad;
    c.expect(!make_codes(x.data(), x.data(), 32, codes.data()), "codes of what has none");
  }
  Random random{6};
  for (const float size : {0.0f, 1e-7f, 1e-4f, 1.0f, 3e4f, 5e6f}) {
    std::vector<float> x(kChunk * 64);
    for (float& v : x) v = random.real(2) / 2 * size;
    std::vector<uint8_t> codes(CodedChunk::bytes(64));
    c.expect(make_codes(x.data(), x.data(), 64, codes.data()), "codes of numbers");
    const CodedChunk chunk(codes.data(), 64);
    bool near = true;
    for (size_t e = 0; e < kChunk; ++e)
      for (size_t d = 0; d < 64; ++d)
        for (const double found : {Coded::value(chunk.keys, d, e), Coded::value(chunk.values, e, d)})
          near &= std::abs(found - x[e * 64 + d]) <= std::max(size / 250.0, std::ldexp(1.0, -24) * 64);
    c.expect(near, "the values of codes of numbers up to " + std::to_string(size));
  }
}

}  // namespace

int main() {
  bool right = true;
  uint64_t bits = 0;
  for (const KernelSet* const* set = available_sets(); *set; ++set) {
    Checker c;
    c.set = (*set)->name;
    check_products(**set, c);
    check_broken_steps(**set, c);
    check_lookups(**set, c);
    check_attention(**set, c);
    check_codes(**set, c);
    check_making_codes(c);
    check_rounding_to_halves(**set, c);
    std::printf("%s: %zu cases, bits %016llx\n", c.set.c_str(), c.cases, static_cast<unsigned long long>(c.bits));
    if (c.set != "portable") {
      if (!bits) bits = c.bits;
      c.expect(c.bits == bits, "that all sets make the same bits");
    }
    right = right && c.right;
  }
  return right ? 0 : 1;
}
