// Sums of files and texts: sha256 (FIPS 180-4), as 64 lower-case hexadecimal digits.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "result.h"

namespace plc {

class Sha256 {
 public:
  // `portably`: without the processor's own instructions for sums; they are only faster.
  explicit Sha256(bool portably = false) : portably_(portably) {}

  void add(std::string_view bytes);
  // The sum of all that was added. Nothing can be added after it.
  std::string digits();

 private:
  std::array<uint32_t, 8> state_{0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                                 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};
  std::array<unsigned char, 64> waiting_{};  // bytes of a block that is not full
  uint64_t size_ = 0;                        // bytes that were added
  bool portably_;
};

std::string sha256_of(std::string_view bytes);

// Of a file, without keeping it in memory. An error names the file.
Result<std::string> sha256_of_file(const std::string& path);

}  // namespace plc
