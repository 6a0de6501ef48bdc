// Keys and values of all rows of an engine for padded rows, in memory that steps read and write in
// place. (runtime/engines/caches.py is the same in Python.)
#pragma once

#include <memory>

#include "contract.h"
#include "device.h"
#include "result.h"

namespace plc {

// One array [places, kv_heads, capacity, head_dim] for each of a contract's caches, zeros at first.
class Caches {
 public:
  // In the memory of a device; in the process's own where it is null. The device must live longer.
  static Result<std::unique_ptr<Caches>> open(const GraphContract& contract, Dtype dtype, size_t places,
                                              Device* device);
  virtual ~Caches() = default;

  // Writes a prefix [layers, 2, kv_heads, length, head_dim] at the start of a place.
  virtual Status write(size_t place, const float* prefix, size_t length) = 0;
  // Copies the first entries of a place over those of another one.
  virtual Status copy(size_t from, size_t to, size_t entries) = 0;
  // Sets a place to zero.
  virtual Status clear(size_t place) = 0;

  // Where a place of an array begins.
  char* address(size_t cache, size_t place) const { return arrays_[cache] + place * heads_ * head_bytes_; }

 protected:
  Caches(const GraphContract& contract, Dtype dtype);

  size_t place_bytes() const { return heads_ * head_bytes_; }
  // Bytes of so many entries of a head.
  size_t bytes_of_entries(size_t entries) const { return entries * entry_bytes_; }

  Dtype dtype_;
  size_t heads_, dim_, entry_bytes_, head_bytes_;  // of a head: an entry, and all entries of a place
  std::vector<char*> arrays_{};
};

}  // namespace plc
