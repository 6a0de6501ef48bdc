// Prefixes that the kernels hold: in memory once, for all rows that begin with them.
// (runtime/kernels/prefixes.py is the same in Python.)
#pragma once

#include <memory>
#include <vector>

#include "contract.h"
#include "engine.h"
#include "result.h"

namespace plc {

// Numbers by which a graph names prefixes. A prefix is held as long as the owner of its numbers lives.
class HeldPrefixes {
 public:
  // `bits` of each number: 32 uses the prompt's own memory; 8 makes codes of all whole chunks of 128
  // entries but the first, where heads are a multiple of 32 wide.
  HeldPrefixes(const GraphContract& contract, int bits);
  HeldPrefixes(const HeldPrefixes&) = delete;
  HeldPrefixes& operator=(const HeldPrefixes&) = delete;
  ~HeldPrefixes();

  // The number of a prompt's prefix, which is held from now on.
  Result<int64_t> number(const EnginePrompt& prompt);

 private:
  struct Held {
    const float* prefix;
    size_t length;
    std::weak_ptr<const void> owner;
    bool has_owner;
    int64_t number;
  };

  void drop_dead();

  size_t layers_, kv_heads_, head_dim_, bits_;
  std::vector<Held> held_{};
};

}  // namespace plc
