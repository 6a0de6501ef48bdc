// How fast the kernels of target native-cpu are by themselves, on one thread.
//
//   g++ -std=c++17 -O3 -ffp-contract=off -I runtime/kernels benchmarks/kernels.cc
//       runtime/kernels/instruction_sets.cc runtime/kernels/dispatch.cc -o build/kernels && build/kernels [SET ...]
//
// For each set of this processor, or those named: products of the default base's shapes in 10^9 operations a
// second (a multiplication and an addition are two), rounding of activations in 10^9 bytes read a second, and
// attention of 9 heads with 3 key heads of 64 in 10^9 operations a second. Best of many turns, all in cache.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "kernels.h"
#include "prefix_codes.h"

using namespace plc::kernels;

namespace {

double seconds(const std::function<void()>& work) {
  using Clock = std::chrono::steady_clock;
  const auto passed = [](Clock::time_point since) {
    return std::chrono::duration<double>(Clock::now() - since).count();
  };
  double best = 1e9;
  const auto begin = Clock::now();
  for (int turn = 0; turn < 5 || passed(begin) < 0.3; ++turn) {
    const auto start = Clock::now();
    work();
    best = std::min(best, passed(start));
  }
  return best;
}

std::vector<float> random_floats(size_t count) {
  std::mt19937 random(1);
  std::vector<float> values(count);
  for (float& v : values) v = float(int(random() % 2001) - 1000) / 500;
  return values;
}

void products(const KernelSet& f, size_t rows, size_t inputs, size_t outputs, size_t bits) {
  Weight w{};
  w.inputs = inputs, w.outputs = outputs, w.bits = bits, w.block = 32;
  std::mt19937 random(1);
  std::vector<uint8_t> codes(w.tiles() * w.tile_bytes());
  for (uint8_t& c : codes) c = uint8_t(random());
  const std::vector<uint16_t> steps(w.tiles() * w.blocks() * kTile, 0x2000);
  w.codes = codes.data(), w.steps = steps.data(), w.lows = bits == 4 ? steps.data() : nullptr;
  const std::vector<float> x = random_floats(rows * inputs);
  std::vector<float> y(rows * outputs);
  const Product p{w, x.data(), y.data(), rows, Gate::none};
  Activations a;
  a.resize(rows, w);
  f.round(p, a, 0, rows);
  const double time = seconds([&] { f.multiply(p, a, 0, w.tiles()); });
  std::printf("  product, %zu bits, %zu x %zu, %3zu rows: %6.1f\n", bits, inputs, outputs, rows,
              2e-9 * double(rows * inputs * outputs) / time);
  if (bits == 8 || inputs != 576) return;
  std::printf("  rounding, %zu rows: %.1f\n", rows,
              1e-9 * double(x.size() * sizeof(float)) / seconds([&] { f.round(p, a, 0, rows); }));
}

void attention(const KernelSet& f, size_t seq, size_t past) {
  Attention t{};
  t.heads = 9, t.kv_heads = 3, t.dim = 64, t.capacity = 1024;
  const std::vector<float> qkv = random_floats(seq * t.width()), turn = random_floats(t.capacity * t.dim / 2);
  std::vector<float> keys = random_floats(t.kv_heads * t.capacity * t.dim), values = keys, y(seq * t.heads * t.dim);
  const Row row{0, seq, past, 0, nullptr, {}, false};
  t.qkv = qkv.data(), t.keys = keys.data(), t.values = values.data(), t.rows = &row;
  t.cos = t.sin = turn.data(), t.y = y.data(), t.scale = 0.125f;
  const double time = seconds([&] {
    for (size_t head = 0; head < t.kv_heads; ++head) {
      f.write_cache(t, row, head);
      for (size_t block = 0; block < t.query_blocks(row); ++block) f.attend(t, row, head, block);
    }
  });
  const double seen = double(seq) * double(past) + double(seq * (seq + 1)) / 2;
  std::printf("  attention, %3zu queries after %3zu: %5.1f\n", seq, past, 4e-9 * double(t.heads * t.dim) * seen / time);
}

// A query of each of some rows to the prefix that they share, one head of it.
void shared_prefix(const KernelSet& f, size_t count, size_t length, bool as_codes) {
  Attention t{};
  t.heads = 3, t.kv_heads = 1, t.dim = 64, t.scale = 0.125f;
  const size_t chunks = length / kChunk, coded = as_codes ? chunks - 1 : 0, queries = count * t.group();
  const std::vector<float> qkv = random_floats(count * t.width()), turn = random_floats((length + 1) * t.dim / 2);
  const std::vector<float> keys = random_floats(length * t.dim);
  std::vector<uint8_t> codes(coded * CodedChunk::bytes(t.dim));
  for (size_t i = 0; i < coded; ++i) {
    const float* chunk = keys.data() + (i + 1) * kChunk * t.dim;
    make_codes(chunk, chunk, t.dim, codes.data() + i * CodedChunk::bytes(t.dim));
  }
  std::vector<Row> rows;
  std::vector<const Row*> alike;
  for (size_t i = 0; i < count; ++i)
    rows.push_back({i, 1, length, 0, nullptr, {keys.data(), keys.data(), length, codes.data(), coded}, false});
  for (const Row& row : rows) alike.push_back(&row);
  t.qkv = qkv.data(), t.rows = rows.data(), t.cos = t.sin = turn.data();
  std::vector<float> results(chunks * partial_size(queries, t.dim));
  const double time = seconds([&] { f.attend_shared(t, alike.data(), count, 0, 0, chunks, results.data()); });
  std::printf("  attention, %3zu queries to a shared prefix of %zu%s: %5.1f (%.0f us)\n", queries, length,
              as_codes ? " as codes" : "", 4e-9 * double(queries * length * t.dim) / time, 1e6 * time);
}

}  // namespace

int main(int count, char** names) {
  for (int i = 1; i < count; ++i) {
    const KernelSet* const* set = available_sets();
    while (*set && std::strcmp(names[i], (*set)->name)) ++set;
    if (*set) continue;
    std::fprintf(stderr, "%s: this processor has no such set; it has", names[i]);
    for (set = available_sets(); *set; ++set) std::fprintf(stderr, " %s", (*set)->name);
    std::fprintf(stderr, "\n");
    return 2;
  }
  for (const KernelSet* const* set = available_sets(); *set; ++set) {
    const auto named = [&](const char* name) { return !std::strcmp(name, (*set)->name); };
    if (count > 1 && std::none_of(names + 1, names + count, named)) continue;
    std::printf("%s\n", (*set)->name);
    for (const size_t bits : {4, 8})
      for (const size_t rows : {1, 4, 16, 512}) products(**set, rows, 576, 1536, bits);
    products(**set, 512, 1536, 576, 4);
    attention(**set, 1, 100);
    attention(**set, 1, 900);
    attention(**set, 512, 0);
    for (const size_t rows : {1, 4, 10})
      for (const bool as_codes : {false, true}) shared_prefix(**set, rows, 2048, as_codes);
  }
}
