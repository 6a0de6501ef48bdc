// The kernels by themselves, on random shapes: each instruction set that the processor has, beside double
// precision and beside the others.
//
//   g++ -std=c++17 -O3 -ffp-contract=off -I runtime/kernels tests/runtime/kernels_test.cc
//       runtime/kernels/instruction_sets.cc runtime/kernels/dispatch.cc -o kernels_test && ./kernels_test
//
// Prints a line for each set: its name, the number of cases, and a sum over the bits of all results. All sets
// but the portable one must print the same sum, on every processor. Ends with 1 where a result is wrong.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

using namespace plc;

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
    expect(apart <= tolerance * largest, what);
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

std::vector<float> product(const Functions& f, const Weight& w, const std::vector<float>& x, size_t rows, bool gated) {
  std::vector<float> y(rows * (gated ? w.outputs / 2 : w.outputs));
  const Product p{w, x.data(), y.data(), rows, gated};
  Activations a;
  a.resize(rows, w);
  f.round(p, a, 0, rows / 2);
  f.round(p, a, rows / 2, rows);
  const size_t pair = gated ? 2 : 1, middle = w.tiles() / pair / 2 * pair;
  f.multiply(p, a, middle, w.tiles());
  f.multiply(p, a, 0, middle);
  return y;
}

void check_products(const Functions& f, Checker& c) {
  Random random{1};
  for (int turn = 0; turn < 60; ++turn) {
    const bool gated = random.below(3) == 0;
    const size_t bits = random.below(2) ? 4 : 8, block = random.below(2) ? 32 : 64;
    const size_t inputs = block * (1 + random.below(6)), rows = 1 + random.below(40);
    const size_t outputs = gated ? 32 * (1 + random.below(4)) : 1 + random.below(120);
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

    const std::vector<float> y = product(f, w.weight, x, rows, gated);

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
    if (gated) {
      for (size_t r = 0; r < rows; ++r)
        for (size_t n = 0; n < outputs / 2; ++n) {
          const size_t at = r * outputs + n / kTile * 2 * kTile + n % kTile;
          expected.push_back(sums[at] / (1 + std::exp(-sums[at])) * sums[at + kTile]);
        }
    } else {
      expected = sums;
    }
    c.compare(y, expected, 1e-5, what);
    const size_t first = random.below(rows), last = first + 1 + random.below(rows - first);
    const std::vector<float> part(x.begin() + long(first * inputs), x.begin() + long(last * inputs));
    const std::vector<float> alone = product(f, w.weight, part, last - first, gated);
    const size_t width = y.size() / rows;
    c.expect(!std::memcmp(alone.data(), y.data() + first * width, alone.size() * sizeof(float)),
             what + ": some rows alone");
    c.add(y);

    const size_t broken = random.below(rows);
    const float bad_value = random.below(2) ? INFINITY : NAN;
    x[broken * inputs + random.below(inputs)] = bad_value;
    const std::vector<float> bad = product(f, w.weight, x, rows, gated);
    for (size_t i = 0; i < bad.size(); ++i)
      c.expect(i / width == broken ? std::isnan(bad[i]) : bad[i] == y[i], what + " with a row that is no number");
  }
}

// A step that a corrupt file may have: infinity and what is no number must not become numbers.
void check_broken_steps(const Functions& f, Checker& c) {
  Random random{4};
  for (const uint16_t step : {0x7c00, 0xfc00, 0x7e00}) {
    RandomWeight w(random, 32, 16, 8, 32, false);
    std::fill(w.codes.begin(), w.codes.end(), uint8_t(129));
    w.steps[3] = step;
    const std::vector<float> y = product(f, w.weight, std::vector<float>(32, 1.0f), 1, false);
    for (size_t n = 0; n < 16; ++n) c.expect(std::isfinite(y[n]) == (n != 3), "a product with a broken step");
    c.add(y);
  }
}

void check_lookups(const Functions& f, Checker& c) {
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
  std::vector<float> qkv, keys, values, cos, sin, y;
  std::vector<int64_t> past;
  size_t batch, seq, heads, kv_heads, dim, capacity;

  Attention attention() {
    y.assign(batch * seq * heads * dim, 0.0f);
    Attention t{};
    t.qkv = qkv.data(), t.keys = keys.data(), t.values = values.data(), t.past = past.data(), t.y = y.data();
    t.cos = cos.empty() ? nullptr : cos.data(), t.sin = sin.empty() ? nullptr : sin.data();
    t.batch = batch, t.seq = seq, t.heads = heads, t.kv_heads = kv_heads, t.dim = dim, t.capacity = capacity;
    return t;
  }
  void run(const Functions& f, bool in_chunks) {
    const Attention t = attention();
    const size_t rows = std::min(seq, kQueries) * (heads / kv_heads);
    std::vector<float> partials((capacity / kChunk + 1) * partial_size(rows, dim));
    for (size_t b = 0; b < batch; ++b)
      for (size_t h = 0; h < kv_heads; ++h) {
        f.write_cache(t, b, h);
        if (in_chunks) {
          const size_t chunks = (size_t(past[b]) + seq + kChunk - 1) / kChunk;
          for (size_t i = chunks; i-- > 0;) f.attend_chunk(t, b, h, i, partials.data() + i * partial_size(rows, dim));
          f.merge_chunks(t, b, h, partials.data());
        } else {
          for (size_t i = 0; i < t.query_blocks(); ++i) f.attend(t, b, h, i);
        }
      }
  }
  std::vector<double> turned(const float* x, size_t position) const {
    std::vector<double> result(x, x + dim);
    const size_t rest = dim / 2;
    for (size_t i = 0; i < rest && !cos.empty(); ++i) {
      const double co = cos[position * rest + i], si = sin[position * rest + i];
      result[i] = x[i] * co - x[i + rest] * si;
      result[i + rest] = x[i + rest] * co + x[i] * si;
    }
    return result;
  }
  // From the caches after the step.
  std::vector<double> expected() const {
    std::vector<double> result;
    const size_t width = (heads + 2 * kv_heads) * dim;
    for (size_t b = 0; b < batch; ++b)
      for (size_t s = 0; s < seq; ++s)
        for (size_t h = 0; h < heads; ++h) {
          const size_t position = size_t(past[b]) + s;
          const std::vector<double> query = turned(qkv.data() + (b * seq + s) * width + h * dim, position);
          const size_t cache = (b * kv_heads + h / (heads / kv_heads)) * capacity * dim;
          std::vector<double> weights(position + 1), sums(dim);
          double top = -INFINITY, total = 0;
          for (size_t j = 0; j <= position; ++j) {
            for (size_t d = 0; d < dim; ++d) weights[j] += query[d] * keys[cache + j * dim + d];
            weights[j] /= std::sqrt(double(dim));
            top = std::max(top, weights[j]);
          }
          for (double& w : weights) total += w = std::exp(w - top);
          for (size_t j = 0; j <= position; ++j)
            for (size_t d = 0; d < dim; ++d) sums[d] += weights[j] / total * values[cache + j * dim + d];
          result.insert(result.end(), sums.begin(), sums.end());
        }
    return result;
  }
};

void check_attention(const Functions& f, Checker& c) {
  Random random{3};
  for (int turn = 0; turn < 24; ++turn) {
    Step s;
    s.batch = 1 + random.below(3), s.seq = turn % 2 ? 1 + random.below(3) : 1 + random.below(90);
    s.kv_heads = 1 + random.below(3), s.heads = s.kv_heads * (1 + random.below(4));
    s.dim = 16 * (1 + random.below(6)), s.capacity = 400;
    for (size_t b = 0; b < s.batch; ++b) s.past.push_back(int64_t(random.below(s.capacity - s.seq + 1)));
    s.qkv.resize(s.batch * s.seq * (s.heads + 2 * s.kv_heads) * s.dim);
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
    Step again = s, pieces = s;
    s.run(f, false);
    c.compare(s.y, s.expected(), 3e-6, "attention of " + std::to_string(s.seq) + " queries");
    if (s.seq <= kQueries) {
      again.run(f, true);
      c.expect(again.y == s.y && again.keys == s.keys, "attention in chunks");
    }
    // The last queries in a step of their own.
    if (s.batch == 1 && s.seq > 1) {
      const size_t first = 1 + random.below(s.seq - 1), width = (s.heads + 2 * s.kv_heads) * s.dim;
      const std::vector<float> all = pieces.qkv;
      pieces.qkv.resize(first * width);
      pieces.seq = first;
      pieces.run(f, false);
      std::vector<float> y = pieces.y;
      pieces.qkv.assign(all.begin() + long(first * width), all.end());
      pieces.seq = s.seq - first;
      pieces.past[0] += int64_t(first);
      pieces.run(f, false);
      y.insert(y.end(), pieces.y.begin(), pieces.y.end());
      c.expect(y == s.y, "attention in two steps");
    }
    c.add(s.y);
    c.add(s.keys);
  }
}

}  // namespace

int main() {
  bool right = true;
  uint64_t bits = 0;
  for (const Functions* const* set = available(); *set; ++set) {
    Checker c;
    c.set = (*set)->name;
    check_products(**set, c);
    check_broken_steps(**set, c);
    check_lookups(**set, c);
    check_attention(**set, c);
    std::printf("%s: %zu cases, bits %016llx\n", c.set.c_str(), c.cases, static_cast<unsigned long long>(c.bits));
    if (c.set != "portable") {
      if (!bits) bits = c.bits;
      c.expect(c.bits == bits, "that all sets make the same bits");
    }
    right = right && c.right;
  }
  return right ? 0 : 1;
}
