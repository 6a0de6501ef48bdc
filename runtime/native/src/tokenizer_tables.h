// The file tokenizer.tables: all that a tokenizer knows, as flat tables (see tokenizer_tables.cc).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "normal_form.h"
#include "numbers.h"
#include "result.h"

namespace plc {

// In hash tables and for ids: none.
constexpr uint32_t kNoToken = 0xFFFFFFFF;

enum class TokenKind : uint8_t { kOrdinary, kSpecial, kAdded, kByte, kUnused };

// A pattern that divides text, as a deterministic automaton. The format's entries: the low 15 bits
// are the next state, the high bit says that what was read before this code point is a match.
struct Automaton {
  static constexpr uint32_t kDead = 0, kStart = 1;
  static constexpr uint16_t kMatch = 0x8000, kState = 0x7FFF;

  uint32_t states, width;   // width: classes of code points, and the end of the text
  Numbers<uint16_t> cells;  // [states][width]
};

struct AddedToken {
  std::string_view text;
  uint32_t id;
  bool special;
};

struct NormalStep {
  // kOpen prepends to what does not begin with the text; kOpenOnce only at the whole text's start.
  enum class Kind : uint32_t { kPrepend = 1, kReplace = 2, kNfc = 3, kOpen = 4, kOpenOnce = 5 };
  Kind kind;
  std::string_view what, with;  // `with`: of a replacement
};

struct Merge {
  uint32_t rank, id;  // rank: kNoToken where two tokens do not merge
};

uint64_t hash_of_pair(uint32_t left, uint32_t right);
uint64_t hash_of_bytes(std::string_view bytes);

// Views of the file's memory, which outlives them. All that is used as a place or an id was
// checked: whatever the file, nothing here reads outside it or goes on for ever.
struct TokenizerTables {
  uint32_t vocabulary = 0;  // the largest id + 1
  bool byte_level = false, add_prefix_space = false, ignore_merges = false;
  uint32_t classes = 0;          // of code points; this number is the class of the text's end
  uint32_t stripped_blanks = 0;  // leading ones, which decoding leaves out
  uint32_t unknown = kNoToken;   // the token for what has none

  Numbers<uint32_t> token_starts;  // [vocabulary + 1]
  std::string_view token_bytes;
  Numbers<uint8_t> token_kinds;
  Numbers<int32_t> byte_ids;  // [256], -1 for none

  Numbers<uint32_t> merges;        // [capacity][4]: left, right, rank, merged
  Numbers<uint32_t> whole;         // [capacity]: ids by their bytes; empty if not needed
  Numbers<uint16_t> class_blocks;  // [0x110000 / 128]
  Numbers<uint8_t> block_classes;  // [blocks][128]
  std::vector<Automaton> splits;
  std::vector<AddedToken> added;  // sorted by text
  std::vector<NormalStep> steps;
  NormalFormTables normal_form;
  std::vector<int32_t> front;  // the ids that the tokenizer puts before a whole text
  std::vector<bool> trims;     // of the places of tokens: whether each keeps a blank at the start
  size_t growth = 1;           // normalized text has at most so many times as many bytes,
  size_t prepended = 0;        // and so many more

  TokenKind kind_of(uint32_t id) const { return static_cast<TokenKind>(token_kinds[id]); }

  std::string_view bytes_of(uint32_t id) const {
    return token_bytes.substr(token_starts[id], token_starts[id + 1] - token_starts[id]);
  }

  uint32_t class_of(uint32_t point) const {
    return block_classes[static_cast<size_t>(class_blocks[point >> 7]) << 7 | (point & 127)];
  }

  // What two tokens become.
  Merge merge_of(uint32_t left, uint32_t right) const;

  // The token with these bytes; kNoToken if `whole` has none.
  uint32_t token_of(std::string_view bytes) const;
};

// Reads and checks a file in memory, which must outlive the tables. `name` is for messages.
Result<TokenizerTables> read_tokenizer_tables(std::string_view file, const std::string& name);

}  // namespace plc
