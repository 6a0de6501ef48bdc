#include "caches.h"

#include <cstring>

#include "cache_numbers.h"
#include "touched_memory.h"

namespace plc {
namespace {

class HostCaches final : public Caches {
 public:
  HostCaches(const GraphContract& contract, Dtype dtype) : Caches(contract, dtype) {}

  Status take(size_t caches, size_t places) {
    for (size_t cache = 0; cache < caches; ++cache) {
      auto memory = TouchedMemory::zeros({places, heads_, head_bytes_});
      if (!memory.ok()) return memory.error();
      memory_.push_back(std::move(memory.value()));
      arrays_.push_back(memory_.back().data());
    }
    return {};
  }

  Status write(size_t place, const float* prefix, size_t length) override {
    for (size_t cache = 0; cache < arrays_.size(); ++cache)
      for (size_t head = 0; head < heads_; ++head, prefix += length * dim_)
        write_numbers(prefix, length * dim_, dtype_, address(cache, place) + head * head_bytes_);
    return {};
  }

  Status copy(size_t from, size_t to, size_t entries) override {
    for (size_t cache = 0; cache < arrays_.size(); ++cache)
      for (size_t head = 0; head < heads_; ++head)
        std::memcpy(address(cache, to) + head * head_bytes_, address(cache, from) + head * head_bytes_,
                    bytes_of_entries(entries));
    return {};
  }

  Status clear(size_t place) override {
    for (size_t cache = 0; cache < arrays_.size(); ++cache)
      std::memset(address(cache, place), 0, place_bytes());
    return {};
  }

 private:
  std::vector<TouchedMemory> memory_{};
};

class DeviceCaches final : public Caches {
 public:
  DeviceCaches(const GraphContract& contract, Dtype dtype, Device& device)
      : Caches(contract, dtype), device_(device) {}
  DeviceCaches(const DeviceCaches&) = delete;
  DeviceCaches& operator=(const DeviceCaches&) = delete;
  ~DeviceCaches() override {
    for (char* array : arrays_) device_.free(array);
  }

  Status take(size_t caches, size_t places) {
    for (size_t cache = 0; cache < caches; ++cache) {
      auto memory = device_.take(places * place_bytes());
      if (!memory.ok()) return memory.error();
      arrays_.push_back(memory.value());
    }
    // Entries that no token has are read too, and count nothing: a number that is not finite would.
    for (size_t place = 0; place < places; ++place)
      if (auto done = clear(place); !done.ok()) return done;
    return {};
  }

  Status write(size_t place, const float* prefix, size_t length) override {
    const size_t bytes = bytes_of_entries(length);
    std::vector<char> numbers(arrays_.size() * heads_ * bytes);
    write_numbers(prefix, arrays_.size() * heads_ * length * dim_, dtype_, numbers.data());
    std::vector<Device::Piece> pieces;
    for (size_t cache = 0; cache < arrays_.size(); ++cache)
      for (size_t head = 0; head < heads_; ++head)
        pieces.push_back(
            {numbers.data() + pieces.size() * bytes, address(cache, place) + head * head_bytes_, bytes});
    return device_.copy(Device::From::kHost, pieces);
  }

  Status copy(size_t from, size_t to, size_t entries) override {
    std::vector<Device::Piece> pieces;
    for (size_t cache = 0; entries > 0 && cache < arrays_.size(); ++cache)
      for (size_t head = 0; head < heads_; ++head)
        pieces.push_back({address(cache, from) + head * head_bytes_, address(cache, to) + head * head_bytes_,
                          bytes_of_entries(entries)});
    return device_.copy(Device::From::kDevice, pieces);
  }

  Status clear(size_t place) override {
    const std::vector<char> zeros(place_bytes());
    std::vector<Device::Piece> pieces;
    for (size_t cache = 0; cache < arrays_.size(); ++cache)
      pieces.push_back({zeros.data(), address(cache, place), place_bytes()});
    return device_.copy(Device::From::kHost, pieces);
  }

 private:
  Device& device_;
};

template <typename Kind>
Result<std::unique_ptr<Caches>> taken(std::unique_ptr<Kind> caches, const GraphContract& contract,
                                      size_t places) {
  if (auto done = caches->take(2 * static_cast<size_t>(contract.layers), places); !done.ok())
    return done.error();
  return std::unique_ptr<Caches>(std::move(caches));
}

}  // namespace

Caches::Caches(const GraphContract& contract, Dtype dtype)
    : dtype_(dtype),
      heads_(static_cast<size_t>(contract.kv_heads)),
      dim_(static_cast<size_t>(contract.head_dim)),
      entry_bytes_(dim_ * bytes_of(dtype)),
      head_bytes_(static_cast<size_t>(contract.capacity) * entry_bytes_) {}

Result<std::unique_ptr<Caches>> Caches::open(const GraphContract& contract, Dtype dtype, size_t places,
                                             Device* device) {
  if (device == nullptr) return taken(std::make_unique<HostCaches>(contract, dtype), contract, places);
  return taken(std::make_unique<DeviceCaches>(contract, dtype, *device), contract, places);
}

}  // namespace plc
