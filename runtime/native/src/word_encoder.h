// Byte-pair encoding of one word: https://arxiv.org/abs/1508.07909
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "tokenizer_tables.h"

namespace plc {

// Has scratch memory and remembers words, so it is for one thread; its tables are for all.
class WordEncoder {
 public:
  // The tables must outlive it.
  explicit WordEncoder(const TokenizerTables& tables);

  // Appends the ids of a word: a piece between splits, in valid UTF-8, of less than 2^31 bytes.
  // To `sizes`, for each id how many bytes of the word it stands for; that takes longer.
  void encode(std::string_view word, std::vector<int32_t>& ids, std::vector<uint32_t>* sizes = nullptr);

 private:
  // A short word that was encoded before. One of 0 bytes: none.
  struct Remembered {
    static constexpr size_t kMostBytes = 24, kMostIds = 8;
    uint64_t bytes[kMostBytes / 8];
    uint8_t size, count;
    int32_t ids[kMostIds];
  };

  // A token of the word, and how it merges with the next one.
  struct Symbol {
    uint32_t id, size;  // size: bytes of the word
    Merge merge;
  };

  void encode_anew(std::string_view word, std::vector<int32_t>& ids, std::vector<uint32_t>* sizes);
  void start_with_bytes(std::string_view word);
  void start_with_characters(std::string_view word);
  void start_with(uint32_t id, size_t size) {
    symbols_.push_back({id, static_cast<uint32_t>(size), {kNoToken, kNoToken}});
  }
  Merge merge_with_next(size_t place, size_t next) const;
  void merge_few();
  void merge_many();
  void push(size_t place);
  void merge_at(uint32_t place);

  const TokenizerTables& tables_;
  std::vector<Remembered> remembered_;
  std::vector<Symbol> symbols_;
  // For long words: neighbours, and the merges that are possible, the first one on top.
  std::vector<uint32_t> next_, previous_;
  std::vector<uint64_t> waiting_;  // rank << 32 | place
};

}  // namespace plc
