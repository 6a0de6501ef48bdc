// Which prefixes are held, for all sessions of a process. A graph gets their numbers, never an address.
#include "prefixes.h"

#include <map>
#include <mutex>

#include "custom_op.h"

namespace plc {
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

}  // namespace

Prefix HeldPrefix::of_layer(size_t layer, size_t kv_heads, size_t dim) const {
  expect(layer < layers && kv_heads == this->kv_heads && dim == this->dim, "a prefix of another base");
  const size_t size = kv_heads * length * dim;
  return {numbers + 2 * layer * size, numbers + (2 * layer + 1) * size, length};
}

std::shared_ptr<const HeldPrefix> held_prefix(int64_t id) {
  const std::lock_guard<std::mutex> lock(all().mutex);
  const auto found = all().by_id.find(id);
  return found == all().by_id.end() ? nullptr : found->second;
}

}  // namespace plc

// Holds a prefix: float [layers][2][kv_heads][length][dim], which must stay where it is until it is dropped and no step
// runs that reads it. Returns its number, above 0 and never given twice; 0 where there is no memory.
PLC_EXPORT int64_t plc_prefix_hold(const float* numbers, size_t layers, size_t kv_heads, size_t length, size_t dim) {
  try {
    auto held = std::make_shared<const plc::HeldPrefix>(plc::HeldPrefix{numbers, layers, kv_heads, length, dim});
    const std::lock_guard<std::mutex> lock(plc::all().mutex);
    plc::all().by_id.emplace(plc::all().last + 1, std::move(held));
    return ++plc::all().last;
  } catch (...) {
    return 0;
  }
}

PLC_EXPORT void plc_prefix_drop(int64_t id) {
  const std::lock_guard<std::mutex> lock(plc::all().mutex);
  plc::all().by_id.erase(id);
}
