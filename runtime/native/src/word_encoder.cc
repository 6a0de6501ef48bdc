#include "word_encoder.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "utf8.h"

namespace plc {
namespace {

constexpr size_t kRemembered = 4096;  // a power of two

// Up to so many symbols it is faster to look at all of them for each merge.
constexpr size_t kFew = 64;

}  // namespace

WordEncoder::WordEncoder(const TokenizerTables& tables) : tables_(tables), remembered_(kRemembered) {}

void WordEncoder::encode(std::string_view word, std::vector<int32_t>& ids, std::vector<uint32_t>* sizes) {
  if (word.empty()) return;
  if (word.size() > Remembered::kMostBytes || sizes != nullptr) return encode_anew(word, ids, sizes);

  Remembered key{};
  std::memcpy(key.bytes, word.data(), word.size());
  key.size = static_cast<uint8_t>(word.size());
  const uint64_t mixed = hash_of_pair(key.size, static_cast<uint32_t>(key.bytes[2])) ^
                         (key.bytes[0] + key.bytes[1] * 3 + (key.bytes[2] >> 32)) * 0x9E3779B97F4A7C15u;
  Remembered& place = remembered_[(mixed ^ mixed >> 32) & (kRemembered - 1)];
  if (place.size == key.size && std::equal(key.bytes, std::end(key.bytes), place.bytes)) {
    ids.insert(ids.end(), place.ids, place.ids + place.count);
    return;
  }
  const size_t before = ids.size();
  encode_anew(word, ids, nullptr);
  const size_t count = ids.size() - before;
  if (count > Remembered::kMostIds) return;
  key.count = static_cast<uint8_t>(count);
  std::copy(ids.end() - static_cast<std::ptrdiff_t>(count), ids.end(), key.ids);
  place = key;
}

void WordEncoder::encode_anew(std::string_view word, std::vector<int32_t>& ids,
                              std::vector<uint32_t>* sizes) {
  if (tables_.ignore_merges) {
    const uint32_t id = tables_.token_of(word);
    if (id != kNoToken) {
      ids.push_back(static_cast<int32_t>(id));
      if (sizes != nullptr) sizes->push_back(static_cast<uint32_t>(word.size()));
      return;
    }
  }
  symbols_.clear();
  if (tables_.byte_level) start_with_bytes(word);
  else start_with_characters(word);
  for (size_t k = 0; k + 1 < symbols_.size(); ++k) symbols_[k].merge = merge_with_next(k, k + 1);
  if (symbols_.size() <= kFew) merge_few();
  else merge_many();
  for (const Symbol& symbol : symbols_) {
    ids.push_back(static_cast<int32_t>(symbol.id));
    if (sizes != nullptr) sizes->push_back(symbol.size);
  }
}

void WordEncoder::start_with_bytes(std::string_view word) {
  for (const char byte : word) {
    const int32_t id = tables_.byte_ids[static_cast<unsigned char>(byte)];
    if (id >= 0) start_with(static_cast<uint32_t>(id), 1);
    else if (tables_.unknown != kNoToken) start_with(tables_.unknown, 1);
  }
}

// A character that is no token is written by its bytes, which all are.
void WordEncoder::start_with_characters(std::string_view word) {
  const char* const end = word.data() + word.size();
  for (const char* at = word.data(); at < end;) {
    const char* const start = at;
    next_code_point(at);
    const std::string_view character(start, static_cast<size_t>(at - start));
    const uint32_t id = tables_.token_of(character);
    if (id != kNoToken) start_with(id, character.size());
    else start_with_bytes(character);
  }
}

Merge WordEncoder::merge_with_next(size_t place, size_t next) const {
  return tables_.merge_of(symbols_[place].id, symbols_[next].id);
}

// Lowest rank first; of equal ones the leftmost.
void WordEncoder::merge_few() {
  const auto is_before = [](const Symbol& a, const Symbol& b) { return a.merge.rank < b.merge.rank; };
  while (symbols_.size() > 1) {
    // The last symbol merges with nothing.
    const auto best = std::min_element(symbols_.begin(), symbols_.end(), is_before);
    if (best->merge.rank == kNoToken) return;
    best->id = best->merge.id;
    best->size += best[1].size;
    symbols_.erase(best + 1);
    const auto place = static_cast<size_t>(best - symbols_.begin());
    const bool is_last = place + 1 == symbols_.size();
    best->merge = is_last ? Merge{kNoToken, kNoToken} : merge_with_next(place, place + 1);
    if (place > 0) symbols_[place - 1].merge = merge_with_next(place - 1, place);
  }
}

// The same with a linked list and a heap: n log n. Symbols that were merged into the one before
// them stay where they are, with the id kNoToken. What waits of a pair that is no more is told by its
// rank.
void WordEncoder::merge_many() {
  const auto count = static_cast<uint32_t>(symbols_.size());
  next_.resize(count);
  previous_.resize(count);
  waiting_.clear();
  for (uint32_t k = 0; k < count; ++k) {
    next_[k] = k + 1 < count ? k + 1 : kNoToken;
    previous_[k] = k > 0 ? k - 1 : kNoToken;
    if (symbols_[k].merge.rank != kNoToken) waiting_.push_back(uint64_t{symbols_[k].merge.rank} << 32 | k);
  }
  std::make_heap(waiting_.begin(), waiting_.end(), std::greater<>());
  while (!waiting_.empty()) {
    std::pop_heap(waiting_.begin(), waiting_.end(), std::greater<>());
    const uint64_t first = waiting_.back();
    waiting_.pop_back();
    const auto place = static_cast<uint32_t>(first);
    const auto rank = static_cast<uint32_t>(first >> 32);
    if (symbols_[place].id != kNoToken && symbols_[place].merge.rank == rank) merge_at(place);
  }
  const auto is_merged = [](const Symbol& symbol) { return symbol.id == kNoToken; };
  symbols_.erase(std::remove_if(symbols_.begin(), symbols_.end(), is_merged), symbols_.end());
}

void WordEncoder::merge_at(uint32_t place) {
  const uint32_t taken = next_[place], after = next_[taken], before = previous_[place];
  const uint32_t size = symbols_[place].size + symbols_[taken].size;
  symbols_[place] = {symbols_[place].merge.id, size, {kNoToken, kNoToken}};
  symbols_[taken] = {kNoToken, 0, {kNoToken, kNoToken}};
  next_[place] = after;
  if (after != kNoToken) {
    previous_[after] = place;
    symbols_[place].merge = merge_with_next(place, after);
    push(place);
  }
  if (before != kNoToken) {
    symbols_[before].merge = merge_with_next(before, place);
    push(before);
  }
}

void WordEncoder::push(size_t place) {
  const uint32_t rank = symbols_[place].merge.rank;
  if (rank == kNoToken) return;
  waiting_.push_back(uint64_t{rank} << 32 | place);
  std::push_heap(waiting_.begin(), waiting_.end(), std::greater<>());
}

}  // namespace plc
