// Which blocks of a cache are free, which ones rows use, and which are kept for later prompts.
//
// A block that is full can be named by a key: what its entries were computed from. A later row that
// begins alike then uses the same block (arXiv:2309.06180, section 4.4). It knows no engine and no
// numbers. (runtime/engines/onnxruntime/block_pool.py is the same in Python.)
#pragma once

#include <cstddef>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "keyed_hash.h"

namespace plc {

using BlockKey = Sum128;

// Blocks by their numbers. Each is free, or used by rows, or kept while no row uses it.
class BlockPool {
 public:
  // `count`: at least `keep` more than rows can use at once. `keep`: most named blocks that are kept
  // while no row uses them.
  BlockPool(size_t count, size_t keep);

  size_t keep() const { return keep_; }
  size_t kept() const { return kept_count_; }
  size_t evicted() const { return evicted_; }

  // The lowest free block, used by one row from now on. There must be one.
  size_t take();
  // The block of a name, used by one more row from now on.
  std::optional<size_t> find(const BlockKey& key);
  // Names a block that is in use, unless another one has the name already.
  void name(size_t block, const BlockKey& key);
  // Takes the names of blocks away, so that no later row finds them. `blocks` are those of some rows;
  // one that several of them use stands there as often. Gives those that no other rows use.
  std::vector<size_t> forget(const std::vector<size_t>& blocks);
  // Ends the use of blocks by a row; they are in the row's order. Of those that are kept, the last
  // ones leave first: without those before them no later row could use them.
  void give_back(const std::vector<size_t>& blocks);
  // Free blocks that were used and are not likely to be used again soon, if there are many: runs of
  // neighbours, the first one of each and the one after its last. Nobody reads them again before they
  // are taken, so their memory can be given back. The lowest ones stay: they are taken next.
  std::vector<std::pair<size_t, size_t>> idle();

 private:
  static constexpr size_t kNone = SIZE_MAX;

  struct Block {
    size_t users = 0;
    bool is_named = false, is_kept = false, is_touched = false;
    BlockKey key{};
    size_t before = kNone, after = kNone;  // among those that are kept
  };
  struct HashOfKey {
    size_t operator()(const BlockKey& key) const { return static_cast<size_t>(key.first); }
  };

  void free(size_t block);
  void keep_block(size_t block);
  void unkeep(size_t block);

  size_t keep_;
  size_t evicted_ = 0, kept_count_ = 0;
  size_t oldest_ = kNone, newest_ = kNone;  // of those that are kept; the oldest leaves next
  size_t touched_end_ = 0;                  // no block from here on is touched
  std::vector<Block> blocks_;
  std::vector<size_t> free_;  // a heap: the lowest is first
  std::unordered_map<BlockKey, size_t, HashOfKey> named_{};
};

}  // namespace plc
