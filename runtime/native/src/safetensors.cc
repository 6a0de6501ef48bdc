// A file is a u64 length, a header of JSON with that many bytes, and the tensors' bytes. The header
// has for each tensor its dtype, its shape, and where its bytes begin and end after the header;
// "__metadata__" is an object of texts. The bytes of all tensors follow one another without gaps.
#include "safetensors.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <limits>

#include "problems.h"
#include "utf8.h"

namespace plc {
namespace {

constexpr size_t kLength = 8;

struct Kind {
  std::string_view name;
  int64_t bytes;
};
constexpr Kind kKinds[] = {{"F32", 4}, {"I64", 8}, {"F16", 2},     {"BF16", 2},    {"F64", 8},
                           {"I32", 4}, {"I16", 2}, {"I8", 1},      {"U64", 8},     {"U32", 4},
                           {"U16", 2}, {"U8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"BOOL", 1}};

int64_t bytes_of(std::string_view dtype) {
  for (const Kind& kind : kKinds)
    if (kind.name == dtype) return kind.bytes;
  return 0;
}

// A list of whole numbers, none below 0.
bool read_sizes(const Json* json, std::vector<int64_t>& sizes) {
  const Json::List* const items = json == nullptr ? nullptr : json->list();
  if (items == nullptr) return false;
  for (const Json& item : *items) {
    if (item.whole() == nullptr || *item.whole() < 0) return false;
    sizes.push_back(*item.whole());
  }
  return true;
}

}  // namespace

bool Tensor::is(std::string_view kind, std::initializer_list<int64_t> sizes) const {
  return dtype == kind && std::equal(shape.begin(), shape.end(), sizes.begin(), sizes.end());
}

std::string Tensor::described() const {
  std::string text = joined({"'", shortened(name, 100), "' ", dtype, " ["});
  for (size_t axis = 0; axis < std::min(shape.size(), size_t{8}); ++axis)
    append({axis == 0 ? "" : ", ", shape[axis]}, text);
  return text + (shape.size() > 8 ? ", …]" : "]");
}

Result<TensorFile> TensorFile::open(const std::string& path) {
  auto mapped = MappedFile::open(path);
  if (!mapped.ok()) return mapped.error();
  TensorFile file;
  file.file_ = std::move(mapped.value());
  const Status done = file.read(file.file_.bytes(), "reading " + path);
  if (!done.ok()) return done.error();
  return file;
}

Result<TensorFile> TensorFile::from_memory(std::string_view bytes, const std::string& name) {
  TensorFile file;
  const Status done = file.read(bytes, "reading " + name);
  if (!done.ok()) return done.error();
  return file;
}

const Tensor* TensorFile::find(std::string_view name) const {
  for (const Tensor& tensor : tensors_)
    if (tensor.name == name) return &tensor;
  return nullptr;
}

std::string TensorFile::described() const {
  std::string text = tensors_.empty() ? "no tensors" : "tensors ";
  for (size_t k = 0; k < std::min(tensors_.size(), size_t{8}); ++k)
    append({k == 0 ? "" : ", ", tensors_[k].described()}, text);
  return text + (tensors_.size() > 8 ? ", …" : "");
}

const std::string* TensorFile::metadata(std::string_view name) const {
  for (const auto& [key, text] : metadata_)
    if (key == name) return &text;
  return nullptr;
}

Status TensorFile::read(std::string_view bytes, const std::string& doing) {
  if (bytes.size() < kLength)
    return wrong_file(doing, {"cut short: ", bytes.size(), " bytes"}, {"a safetensors file"});
  const uint64_t length = Numbers<uint64_t>(bytes.substr(0, kLength))[0];
  if (length > kMostJsonBytes)
    return wrong_file(doing, {"a header of ", length, " bytes"}, {"at most ", kMostJsonBytes});
  bytes.remove_prefix(kLength);
  if (length > bytes.size())
    return wrong_file(doing, {"cut short: a header of ", length, " bytes, ", bytes.size(), " left"},
                      {"a safetensors file"});
  const auto parsed = parse_json(bytes.substr(0, length), doing + ", header");
  if (!parsed.ok()) return parsed.error();
  const std::string_view data = bytes.substr(length);
  const Json::Object* const header = parsed.value().object();
  if (header == nullptr || bytes[0] != '{')
    return wrong_file(doing, {"a header that is ", parsed.value().kind()}, {"an object, at its start"});
  for (const auto& [name, entry] : *header) {
    if (name != "__metadata__") {
      const Status done = read_tensor(name, entry, data, doing);
      if (!done.ok()) return done;
      continue;
    }
    if (entry.object() == nullptr)
      return wrong_file(doing, {"__metadata__ that is ", entry.kind()}, {"an object of texts"});
    for (const auto& [key, text] : *entry.object()) {
      if (text.text() == nullptr)
        return wrong_file(doing, {"__metadata__ with '", shortened(key, 100), "' ", text.kind()},
                          {"an object of texts"});
      metadata_.emplace_back(key, *text.text());
    }
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const Tensor& one, const Tensor& other) {
    return one.bytes.data() != other.bytes.data() ? one.bytes.data() < other.bytes.data()
                                                  : one.bytes.size() < other.bytes.size();
  });
  const char* end = data.data();
  for (const Tensor& tensor : tensors_) {
    if (tensor.bytes.data() != end)
      return wrong_file(doing, {"bytes of ", tensor.described(), " elsewhere"},
                        {"those of all tensors one after another"});
    end += tensor.bytes.size();
  }
  const auto used = static_cast<size_t>(end - data.data());
  if (used != data.size())
    return wrong_file(doing, {data.size(), " bytes of tensors"}, {used, " by its header"});
  return {};
}

Status TensorFile::read_tensor(const std::string& name, const Json& entry, std::string_view data,
                               const std::string& doing) {
  const auto wrong = [&](Words found, Words expected) {
    const std::string where = joined({doing, ", tensor '", shortened(name, 100), "'"});
    return wrong_file(where, found, expected);
  };
  Tensor tensor;
  tensor.name = name;
  const Json* const dtype = entry.find("dtype");
  if (dtype == nullptr || dtype->text() == nullptr || bytes_of(*dtype->text()) == 0)
    return wrong({"its dtype is ", dtype == nullptr ? "missing" : dtype->kind()},
                 {"one of safetensors, such as F32"});
  tensor.dtype = *dtype->text();
  if (!read_sizes(entry.find("shape"), tensor.shape))
    return wrong({"no shape"}, {"a list of sizes, none below 0"});
  std::vector<int64_t> places;
  if (!read_sizes(entry.find("data_offsets"), places) || places.size() != 2)
    return wrong({"no data_offsets"}, {"two places, none below 0"});
  if (entry.object()->size() != 3)
    return wrong({entry.object()->size(), " keys"}, {"dtype, shape and data_offsets alone"});
  int64_t size = bytes_of(tensor.dtype);
  for (const int64_t axis : tensor.shape)
    if (__builtin_mul_overflow(size, axis, &size))
      return wrong({"more numbers than can be counted"}, {"sizes that a file can have"});
  const int64_t begin = places[0], end = places[1];
  if (end < begin || static_cast<uint64_t>(end) > data.size())
    return wrong({"bytes ", begin, " to ", end}, {"places among the file's ", data.size()});
  if (end - begin != size) return wrong({end - begin, " bytes"}, {size, ", by its dtype and its shape"});
  tensor.bytes = data.substr(static_cast<size_t>(begin), static_cast<size_t>(size));
  tensors_.push_back(std::move(tensor));
  return {};
}

Floats::Floats(const Tensor& tensor) : size_(tensor.bytes.size() / sizeof(float)) {
  if (reinterpret_cast<uintptr_t>(tensor.bytes.data()) % alignof(float) == 0) {
    at_ = reinterpret_cast<const float*>(tensor.bytes.data());
    return;
  }
  copy_.resize(size_);
  std::memcpy(copy_.data(), tensor.bytes.data(), size_ * sizeof(float));
}

bool Floats::are_finite() const {
  const float* const numbers = data();
  const float largest = std::numeric_limits<float>::max();
  bool all = true;  // without an early end, many are compared at once
  for (size_t k = 0; k < size_; ++k) all &= numbers[k] >= -largest && numbers[k] <= largest;
  return all;
}

}  // namespace plc
