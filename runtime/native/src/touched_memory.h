// Memory that is taken as it is touched, page by page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "result.h"

namespace plc {

// Zeros that take no memory until they are written to, then one small page at a time. In a cache
// whose rows are not full, the parts in use lie far apart: large pages would be mostly empty.
class TouchedMemory {
 public:
  // So many bytes as the product of `sizes`.
  static Result<TouchedMemory> zeros(std::initializer_list<size_t> sizes);

  TouchedMemory() = default;
  TouchedMemory(TouchedMemory&& other) noexcept;
  TouchedMemory& operator=(TouchedMemory&& other) noexcept;
  ~TouchedMemory();

  char* data() const { return data_; }
  size_t size() const { return size_; }
  // Gives the pages between two bytes back to the system; touched again, they are zeros. Pages that
  // hold other parts of the memory too stay.
  void give_back(size_t begin, size_t end);

 private:
  TouchedMemory(char* data, size_t size) : data_(data), size_(size) {}

  char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace plc
