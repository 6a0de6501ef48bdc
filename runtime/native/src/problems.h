// Several things that are wrong, for one error. A hostile file may have millions: few are kept.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "words.h"

namespace plc {

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
