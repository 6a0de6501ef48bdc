#include "block_pool.h"

#include <algorithm>
#include <functional>

namespace plc {
namespace {

// Idle blocks that are not given back: a few, and more where many blocks are in use.
constexpr size_t kFew = 8, kPartSpare = 32;

}  // namespace

BlockPool::BlockPool(size_t count, size_t keep) : keep_(keep), blocks_(count), free_(count) {
  for (size_t block = 0; block < count; ++block) free_[block] = block;  // in order, so it is a heap
}

size_t BlockPool::take() {
  std::pop_heap(free_.begin(), free_.end(), std::greater<>());
  const size_t block = free_.back();
  free_.pop_back();
  blocks_[block].users = 1;
  blocks_[block].is_touched = true;
  touched_end_ = std::max(touched_end_, block + 1);
  return block;
}

std::optional<size_t> BlockPool::find(const BlockKey& key) {
  const auto found = named_.find(key);
  if (found == named_.end()) return std::nullopt;
  const size_t block = found->second;
  if (blocks_[block].is_kept) unkeep(block);
  ++blocks_[block].users;
  return block;
}

void BlockPool::name(size_t block, const BlockKey& key) {
  if (blocks_[block].is_named || !named_.emplace(key, block).second) return;
  blocks_[block].is_named = true;
  blocks_[block].key = key;
}

std::vector<size_t> BlockPool::forget(const std::vector<size_t>& blocks) {
  std::vector<size_t> sorted = blocks;
  std::sort(sorted.begin(), sorted.end());
  std::vector<size_t> unshared;
  for (size_t at = 0; at < sorted.size();) {
    Block& block = blocks_[sorted[at]];
    if (block.is_named) named_.erase(block.key);
    block.is_named = false;
    const size_t begin = at;
    while (at < sorted.size() && sorted[at] == sorted[begin]) ++at;
    if (block.users == at - begin) unshared.push_back(sorted[begin]);
  }
  return unshared;
}

void BlockPool::give_back(const std::vector<size_t>& blocks) {
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    if (--blocks_[*block].users != 0) continue;
    if (blocks_[*block].is_named) keep_block(*block);
    else free(*block);
  }
  while (kept_count_ > keep_) {
    const size_t block = oldest_;
    unkeep(block);
    named_.erase(blocks_[block].key);
    blocks_[block].is_named = false;
    free(block);
    ++evicted_;
  }
}

std::vector<std::pair<size_t, size_t>> BlockPool::idle() {
  std::vector<size_t> idle;
  size_t busy = 0;
  for (size_t block = 0; block < touched_end_; ++block) {
    const Block& each = blocks_[block];
    if (!each.is_touched) continue;
    if (each.users == 0 && !each.is_kept) idle.push_back(block);
    else ++busy;
  }
  const size_t spare = kFew + busy / kPartSpare;
  std::vector<std::pair<size_t, size_t>> runs;
  if (idle.size() <= spare) return runs;
  for (size_t at = spare / 2; at < idle.size(); ++at) {
    const size_t block = idle[at];
    blocks_[block].is_touched = false;
    if (!runs.empty() && runs.back().second == block) ++runs.back().second;
    else runs.emplace_back(block, block + 1);
  }
  while (touched_end_ > 0 && !blocks_[touched_end_ - 1].is_touched) --touched_end_;
  return runs;
}

void BlockPool::free(size_t block) {
  free_.push_back(block);
  std::push_heap(free_.begin(), free_.end(), std::greater<>());
}

void BlockPool::keep_block(size_t block) {
  Block& kept = blocks_[block];
  kept.is_kept = true;
  kept.before = newest_;
  kept.after = kNone;
  (newest_ == kNone ? oldest_ : blocks_[newest_].after) = block;
  newest_ = block;
  ++kept_count_;
}

void BlockPool::unkeep(size_t block) {
  Block& kept = blocks_[block];
  kept.is_kept = false;
  (kept.before == kNone ? oldest_ : blocks_[kept.before].after) = kept.after;
  (kept.after == kNone ? newest_ : blocks_[kept.after].before) = kept.before;
  --kept_count_;
}

}  // namespace plc
