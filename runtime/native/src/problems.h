// Errors about files.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include "result.h"
#include "words.h"

namespace plc {

constexpr std::string_view kCopyOrExport = "Copy the bundle again, or export it again.";

// An error about what a file holds. `fix` says what to do next, as a sentence.
Error wrong_file(std::string_view doing, Words found, Words expected, std::string_view fix = kCopyOrExport);

// Several things that are wrong, for one error. A hostile file may have millions: few are kept.
class Problems {
 public:
  void add(Words words);
  bool none() const { return count_ == 0; }
  // One as it is, more as a list.
  std::string listed() const;

 private:
  std::vector<std::string> first_{};
  size_t count_ = 0;
};

}  // namespace plc
