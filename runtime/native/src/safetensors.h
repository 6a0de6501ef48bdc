// Tensors of a file in memory: https://github.com/huggingface/safetensors#format.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "json.h"
#include "mapped_file.h"
#include "numbers.h"
#include "result.h"

namespace plc {

struct Tensor {
  std::string name;
  std::string dtype;  // as the file writes it: "F32", "I64", …
  std::vector<int64_t> shape;
  std::string_view bytes;  // row-major; as many as dtype and shape say

  bool is(std::string_view kind, std::initializer_list<int64_t> sizes) const;
  std::string described() const;  // "'prompt' F32 [20, 576]"
};

// A file's tensors, by mapping it. The tensors are views of it.
class TensorFile {
 public:
  // An error names the file.
  static Result<TensorFile> open(const std::string& path);
  // Of bytes that outlive it; `name` is for messages.
  static Result<TensorFile> from_memory(std::string_view bytes, const std::string& name);

  // In the order of their bytes.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Tensor* find(std::string_view name) const;
  std::string described() const;  // all of them, for messages

  // A text of the file's metadata; null where there is none of that name.
  const std::string* metadata(std::string_view name) const;

  MappedFile& file() { return file_; }

 private:
  Status read(std::string_view bytes, const std::string& doing);
  Status read_tensor(const std::string& name, const Json& entry, std::string_view data,
                     const std::string& doing);

  MappedFile file_;
  std::vector<Tensor> tensors_;
  std::vector<std::pair<std::string, std::string>> metadata_;
};

// Floats of a tensor, at an address where floats may stand: its own bytes, or a copy of them, since
// a file may hold them anywhere.
class Floats {
 public:
  Floats() = default;
  explicit Floats(const Tensor& tensor);

  const float* data() const { return copy_.empty() ? at_ : copy_.data(); }
  size_t size() const { return size_; }
  bool are_finite() const;

 private:
  const float* at_ = nullptr;
  size_t size_ = 0;
  std::vector<float> copy_;
};

}  // namespace plc
