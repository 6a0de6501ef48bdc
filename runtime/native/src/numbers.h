// Numbers inside a file that is in memory as it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace plc {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "files are little-endian, and read as is");

// A view of little-endian numbers; they need not be aligned. Bytes that are left over are ignored.
template <typename Number>
class Numbers {
 public:
  Numbers() = default;
  explicit Numbers(std::string_view bytes) : bytes_(bytes) {}

  size_t size() const { return bytes_.size() / sizeof(Number); }
  Number operator[](size_t place) const {
    Number number;
    std::memcpy(&number, bytes_.data() + place * sizeof number, sizeof number);
    return number;
  }

 private:
  std::string_view bytes_;
};

}  // namespace plc
