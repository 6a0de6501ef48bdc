#include "held_prefixes.h"

#include <algorithm>

#include "linked_kernels.h"

namespace plc {
namespace {

int64_t hold(const float* numbers, size_t layers, size_t kv_heads, size_t length, size_t dim, size_t bits) {
#ifdef PLC_WITHOUT_KERNELS
  static_cast<void>(numbers), static_cast<void>(layers), static_cast<void>(kv_heads);
  static_cast<void>(length), static_cast<void>(dim), static_cast<void>(bits);
  return 0;
#else
  return plc_prefix_hold(numbers, layers, kv_heads, length, dim, bits);
#endif
}

void drop(int64_t number) {
#ifdef PLC_WITHOUT_KERNELS
  static_cast<void>(number);
#else
  plc_prefix_drop(number);
#endif
}

}  // namespace

HeldPrefixes::HeldPrefixes(const GraphContract& contract, int bits)
    : layers_(static_cast<size_t>(contract.layers)),
      kv_heads_(static_cast<size_t>(contract.kv_heads)),
      head_dim_(static_cast<size_t>(contract.head_dim)),
      bits_(static_cast<size_t>(bits)) {}

HeldPrefixes::~HeldPrefixes() {
  for (const Held& each : held_) drop(each.number);
}

Result<int64_t> HeldPrefixes::number(const EnginePrompt& prompt) {
  // Other numbers may lie where those of a dead owner lay.
  drop_dead();
  for (const Held& each : held_) {
    const bool same_owner = !each.owner.owner_before(prompt.owner) && !prompt.owner.owner_before(each.owner);
    if (each.prefix == prompt.prefix && each.length == prompt.prefix_length && same_owner) return each.number;
  }
  const int64_t found = hold(prompt.prefix, layers_, kv_heads_, prompt.prefix_length, head_dim_, bits_);
  if (found == 0) return Error{ErrorCode::kArgument, "holding a prefix: no memory for it"};
  held_.push_back({prompt.prefix, prompt.prefix_length, prompt.owner, prompt.owner != nullptr, found});
  return found;
}

void HeldPrefixes::drop_dead() {
  const auto is_dead = [](const Held& each) { return each.has_owner && each.owner.expired(); };
  for (const Held& each : held_)
    if (is_dead(each)) drop(each.number);
  held_.erase(std::remove_if(held_.begin(), held_.end(), is_dead), held_.end());
}

}  // namespace plc
