// Which prefixes are held, for all sessions of a process. A graph gets their numbers, never an address.
#include "prefixes.h"

#include <algorithm>
#include <map>
#include <mutex>

#include "custom_op.h"
#include "prefix_codes.h"

namespace plc::kernels {
namespace {

struct All {
  std::mutex mutex;
  std::map<int64_t, std::shared_ptr<const HeldPrefix>> by_id;
  int64_t last = 0;
};

// Never destroyed: threads may still look something up while the process ends.
All& all() {
  static All& prefixes = *new All;
  return prefixes;
}

// A prefix whose whole chunks, but for the first, are codes. Where there are none, where heads are of another width
// than blocks of codes, or where a number does not fit into them, it is held as it is.
HeldPrefix with_codes(const float* numbers, size_t layers, size_t kv_heads, size_t length, size_t dim) {
  HeldPrefix held{numbers, layers, kv_heads, length, dim};
  const size_t chunks = length / kChunk, heads = layers * kv_heads, bytes = CodedChunk::bytes(dim);
  if (chunks < 2 || dim % kPrefixBlock) return held;
  const size_t coded = chunks - 1, rest = length - coded * kChunk;
  AlignedBytes codes(heads * coded * bytes);
  std::vector<float> own(2 * heads * rest * dim);
  for (size_t head = 0; head < heads; ++head) {
    // Both of a layer lie side by side, head by head.
    const size_t of_keys = head / kv_heads * 2 * kv_heads + head % kv_heads, of_values = of_keys + kv_heads;
    for (size_t c = 0; c < coded; ++c) {
      const size_t from = (c + 1) * kChunk;
      if (!make_codes(numbers + (of_keys * length + from) * dim, numbers + (of_values * length + from) * dim, dim,
                      codes.begin + (head * coded + c) * bytes))
        return held;
    }
    for (const size_t part : {of_keys, of_values}) {
      const float *first = numbers + part * length * dim, *end = first + length * dim;
      float* to = std::copy_n(first, kChunk * dim, own.data() + part * rest * dim);
      std::copy(first + (coded + 1) * kChunk * dim, end, to);
    }
  }
  held.numbers = own.data();
  held.coded = coded;
  held.own = std::move(own);
  held.codes = std::move(codes);
  return held;
}

}  // namespace

Prefix HeldPrefix::of_layer(size_t layer, size_t kv_heads, size_t dim) const {
  expect(layer < layers && kv_heads == this->kv_heads && dim == this->dim, "a prefix of another base");
  const size_t size = kv_heads * (length - coded * kChunk) * dim;
  const uint8_t* of_layer = coded ? codes.begin + layer * kv_heads * coded * CodedChunk::bytes(dim) : nullptr;
  return {numbers + 2 * layer * size, numbers + (2 * layer + 1) * size, length, of_layer, coded};
}

std::shared_ptr<const HeldPrefix> held_prefix(int64_t id) {
  const std::lock_guard<std::mutex> lock(all().mutex);
  const auto found = all().by_id.find(id);
  return found == all().by_id.end() ? nullptr : found->second;
}

}  // namespace plc::kernels

// Holds a prefix: float [layers][2][kv_heads][length][dim]. `bits`: 32, or 8 for codes where they can be. It must stay
// where it is until it is dropped and no step runs that reads it. Returns its number, above 0 and never given twice; 0
// where there is no memory.
PLC_EXPORT int64_t plc_prefix_hold(const float* numbers, size_t layers, size_t kv_heads, size_t length, size_t dim,
                                   size_t bits) {
  try {
    auto held = std::make_shared<const plc::kernels::HeldPrefix>(
        bits == 8 ? plc::kernels::with_codes(numbers, layers, kv_heads, length, dim)
                  : plc::kernels::HeldPrefix{numbers, layers, kv_heads, length, dim});
    const std::lock_guard<std::mutex> lock(plc::kernels::all().mutex);
    plc::kernels::all().by_id.emplace(plc::kernels::all().last + 1, std::move(held));
    return ++plc::kernels::all().last;
  } catch (...) {
    return 0;
  }
}

PLC_EXPORT void plc_prefix_drop(int64_t id) {
  const std::lock_guard<std::mutex> lock(plc::kernels::all().mutex);
  plc::kernels::all().by_id.erase(id);
}
