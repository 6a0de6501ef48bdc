// A file's bytes without reading them first.
#pragma once

#include <string>
#include <string_view>

#include "result.h"

namespace plc {

// Mapped for reading until it is destroyed. While it is mapped nobody may shorten the file: what
// lies behind its new end cannot be read any more, and the operating system ends the process
// (SIGBUS). Bundles are written whole and then renamed, so they are safe.
class MappedFile {
 public:
  // An error names the file. A file of 0 bytes is none.
  static Result<MappedFile> open(const std::string& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::string_view bytes() const { return bytes_; }

 private:
  explicit MappedFile(std::string_view bytes) : bytes_(bytes) {}

  std::string_view bytes_;
};

}  // namespace plc
