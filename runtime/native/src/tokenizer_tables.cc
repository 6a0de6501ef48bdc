// Reads tokenizer.tables, version 1. All numbers are little-endian.
//
// Header: "PLCTOKEN", u32 version, u32 sections; for each section: 4 bytes tag, u32 0, u64 offset,
// u64 bytes. Sections begin at multiples of 16. Unknown tags are ignored.
//
//     META  8 x u32: vocabulary, flags, classes, splits, added tokens, merges, stripped blanks,
//           unknown token
//     VOFF  u32[vocabulary + 1]: where each token's bytes begin in VBLB
//     VTYP  u8[vocabulary]: TokenKind
//     BYTE  i32[256]: the token of each byte
//     MERG  u32[capacity][4], a hash table with linear probing: left, right, rank, merged
//     CLS1  u16[0x110000 / 128]: where a block of code points has its classes in CLS2, u8[][128]
//     DFAS  for each split: u32 states, u32 width, u16[states][width], padded to 4
//     ADDT  for each added token, the longest first: u32 id, u32 special, u32 bytes, bytes, padded
//     WHOL  nothing, or u32[capacity], a hash table of ids by their bytes
//     NORM  steps: u32 kind, u32 bytes, u32 bytes, both texts
//     POST  u32 trims, u32 tokens in front, u32[trims], u32[tokens in front]
//     NFCT  with NFC: u32 rows, pool, marks, pairs, and these (NormalFormTables)
//
// Whoever made the file, each number is checked before it is used as a place. Beyond the format,
// some sizes that no real tokenizer has are refused: with them a short text could take for ever.
#include "tokenizer_tables.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "utf8.h"
#include "words.h"

namespace plc {
namespace {

constexpr std::string_view kMagic = "PLCTOKEN";
constexpr uint32_t kVersion = 1;
constexpr size_t kHeader = 16, kEntry = 24, kAlignment = 16;

enum Flags : uint32_t {
  kByteLevel = 1,
  kAddPrefixSpace = 2,
  kIgnoreMerges = 4,
  kByteFallback = 8,
  kNfc = 16,
  kAllFlags = 31,
};

// Above what real tokenizers have, by a factor of ten or more.
constexpr uint32_t kMostTokens = 1 << 24, kMostClasses = 256, kMostSplits = 16, kMostSections = 64;
constexpr uint32_t kMostTrims = 16;
constexpr size_t kLongestAdded = 4096, kMostSteps = 32, kMostGrowth = 4096;
// Neighbours in a hash table that is at most half full stay far below.
constexpr size_t kLongestRun = 1024;

constexpr uint32_t kCodePoints = 0x110000, kBlock = 128;

// Reads a section from its start to its end.
class Cursor {
 public:
  explicit Cursor(std::string_view rest) : rest_(rest) {}

  size_t left() const { return rest_.size(); }

  // The next bytes; nothing where the section ends before.
  std::optional<std::string_view> take(uint64_t bytes) {
    if (bytes > rest_.size()) return std::nullopt;
    const std::string_view taken = rest_.substr(0, static_cast<size_t>(bytes));
    rest_.remove_prefix(static_cast<size_t>(bytes));
    return taken;
  }

  // The next bytes, which are padded to a multiple of 4; without the padding.
  std::optional<std::string_view> take_padded(uint64_t bytes) {
    const auto taken = take((bytes + 3) / 4 * 4);
    if (!taken) return std::nullopt;
    return taken->substr(0, static_cast<size_t>(bytes));
  }

 private:
  std::string_view rest_;
};

class Reader {
 public:
  Reader(std::string_view file, const std::string& name) : file_(file), name_(name) {}

  Result<TokenizerTables> read() {
    using Part = Status (Reader::*)();
    for (const Part part : {&Reader::header, &Reader::meta, &Reader::tokens, &Reader::kinds, &Reader::bytes,
                            &Reader::merges, &Reader::classes, &Reader::splits, &Reader::added,
                            &Reader::whole, &Reader::steps, &Reader::post_processor, &Reader::normal_form}) {
      const Status done = (this->*part)();
      if (!done.ok()) return done.error();
    }
    return std::move(tables_);
  }

 private:
  Error wrong(Words found, Words expected, std::string_view fix = "Export the bundle again.") const {
    return wrong_in(tag_.empty() ? "header: " : "section " + tag_ + ": ", found, expected, fix);
  }

  Error wrong_entry(uint64_t place, Words found, Words expected) const {
    return wrong_in(joined({"section ", tag_, ": entry ", place, " "}), found, expected,
                    "Export the bundle again.");
  }

  Error wrong_in(std::string_view where, Words found, Words expected, std::string_view fix) const {
    std::string message = joined({"reading ", name_, ": ", where});
    append(found, message);
    append({"; expected "}, message);
    append(expected, message);
    append({". ", fix}, message);
    return {ErrorCode::kFormat, std::move(message)};
  }

  Error wrong_size(uint64_t found, uint64_t expected) const { return wrong({found, " bytes"}, {expected}); }

  bool is_token(uint32_t id) const {
    return id < tables_.vocabulary && tables_.kind_of(id) != TokenKind::kUnused;
  }

  // The bytes of a section. Errors from here on name it.
  Result<std::string_view> section(const char* tag) {
    tag_ = tag;
    for (const auto& [name, bytes] : sections_)
      if (name == tag) return bytes;
    return wrong({"it is missing"}, {"it in the header"});
  }

  Status header();
  Status meta();
  Status tokens();
  Status kinds();
  Status bytes();
  Status merges();
  Status classes();
  Status splits();
  Status added();
  Status whole();
  Status steps();
  Status post_processor();
  Status normal_form();
  Status capacity(size_t entries) const;
  Status whole_is_complete() const;
  bool is_byte(uint32_t id) const;
  template <typename IsFilled, typename Hash>
  Status probes(size_t capacity, IsFilled is_filled, Hash hash) const;
  Status split(Cursor& rest, uint32_t number);
  Status added_token(Cursor& rest, uint32_t number);
  Status step(Cursor& rest);
  Status scalars(const Numbers<uint32_t>& table, size_t width, size_t column) const;
  Status rising(const Numbers<uint32_t>& table, size_t width, size_t keys) const;

  const std::string_view file_;
  const std::string& name_;
  std::string tag_;
  std::vector<std::pair<std::string_view, std::string_view>> sections_;
  TokenizerTables tables_;
  uint32_t flags_ = 0, count_splits_ = 0, count_added_ = 0, count_merges_ = 0;
};

Status Reader::header() {
  if (file_.size() < kHeader || file_.substr(0, kMagic.size()) != kMagic)
    return wrong({file_.size(), " bytes that do not begin with ", kMagic},
                 {"a file tokenizer.tables of a bundle"});
  const Numbers<uint32_t> head(file_.substr(kMagic.size(), 8));
  const uint32_t version = head[0], count = head[1];
  if (version != kVersion)
    return wrong({"version ", version}, {"version ", kVersion},
                 "Use a library as new as the bundle, or export the bundle again.");
  if (count > kMostSections || file_.size() - kHeader < count * kEntry)
    return wrong({count, " sections in ", file_.size(), " bytes"},
                 {"at most ", kMostSections, ", and 24 bytes for each"});
  for (uint32_t k = 0; k < count; ++k) {
    const std::string_view entry = file_.substr(kHeader + k * kEntry, kEntry);
    const std::string_view tag = entry.substr(0, 4);
    const Numbers<uint64_t> place(entry.substr(8));
    const uint64_t offset = place[0], size = place[1];
    if (offset % kAlignment != 0 || offset > file_.size() || size > file_.size() - offset)
      return wrong({"section number ", k, " is ", size, " bytes at ", offset},
                   {"a multiple of 16, inside the file of ", file_.size(), " bytes"});
    for (const auto& other : sections_)
      if (other.first == tag)
        return wrong({"section number ", k, " has the tag of one before"}, {"each once"});
    sections_.emplace_back(tag, file_.substr(static_cast<size_t>(offset), static_cast<size_t>(size)));
  }
  return {};
}

Status Reader::meta() {
  const auto found = section("META");
  if (!found.ok()) return found.error();
  if (found.value().size() != 32) return wrong_size(found.value().size(), 32);
  const Numbers<uint32_t> numbers(found.value());
  tables_.vocabulary = numbers[0];
  flags_ = numbers[1];
  tables_.classes = numbers[2];
  count_splits_ = numbers[3];
  count_added_ = numbers[4];
  count_merges_ = numbers[5];
  tables_.stripped_blanks = numbers[6];
  tables_.unknown = numbers[7];

  if (tables_.vocabulary == 0 || tables_.vocabulary > kMostTokens)
    return wrong({tables_.vocabulary, " tokens"}, {"1 to ", kMostTokens});
  if ((flags_ & ~uint32_t{kAllFlags}) != 0)
    return wrong({"flags ", flags_}, {"those of version 1, at most 31"});
  if (((flags_ & kByteLevel) != 0) == ((flags_ & kByteFallback) != 0))
    return wrong({"flags ", flags_}, {"either 1 (byte-level) or 8 (byte_fallback)"});
  if (tables_.classes == 0 || tables_.classes > kMostClasses)
    return wrong({tables_.classes, " classes"}, {"1 to ", kMostClasses});
  if (count_splits_ > kMostSplits) return wrong({count_splits_, " splits"}, {"at most ", kMostSplits});
  if (count_added_ > tables_.vocabulary)
    return wrong({count_added_, " added tokens"}, {"at most the vocabulary's size"});
  if (tables_.unknown != kNoToken && tables_.unknown >= tables_.vocabulary)
    return wrong({"the unknown token ", tables_.unknown}, {"ids of tokens, below ", tables_.vocabulary});
  tables_.byte_level = (flags_ & kByteLevel) != 0;
  tables_.add_prefix_space = (flags_ & kAddPrefixSpace) != 0;
  tables_.ignore_merges = (flags_ & kIgnoreMerges) != 0;
  if (tables_.add_prefix_space) ++tables_.prepended;
  return {};
}

Status Reader::tokens() {
  const auto blob = section("VBLB");
  if (!blob.ok()) return blob.error();
  tables_.token_bytes = blob.value();
  const auto offsets = section("VOFF");
  if (!offsets.ok()) return offsets.error();
  const uint64_t expected = 4 * (uint64_t{tables_.vocabulary} + 1);
  if (offsets.value().size() != expected) return wrong_size(offsets.value().size(), expected);
  tables_.token_starts = Numbers<uint32_t>(offsets.value());
  for (uint32_t id = 0; id < tables_.vocabulary; ++id)
    if (tables_.token_starts[id] > tables_.token_starts[id + 1])
      return wrong_entry(id, {"is above the next one"}, {"places in their order"});
  const uint32_t last = tables_.token_starts[tables_.vocabulary];
  if (last > tables_.token_bytes.size())
    return wrong_entry(tables_.vocabulary, {"is ", last},
                       {"at most the ", tables_.token_bytes.size(), " bytes of VBLB"});
  return {};
}

Status Reader::kinds() {
  const auto found = section("VTYP");
  if (!found.ok()) return found.error();
  if (found.value().size() != tables_.vocabulary) return wrong_size(found.value().size(), tables_.vocabulary);
  tables_.token_kinds = Numbers<uint8_t>(found.value());
  for (uint32_t id = 0; id < tables_.vocabulary; ++id) {
    const uint8_t kind = tables_.token_kinds[id];
    const std::string_view bytes = tables_.bytes_of(id);
    if (kind > static_cast<uint8_t>(TokenKind::kUnused))
      return wrong_entry(id, {"is ", kind}, {"a kind of tokens, at most 4"});
    if (kind == static_cast<uint8_t>(TokenKind::kByte)) {
      if (tables_.byte_level || bytes.size() != 1)
        return wrong_entry(id, {"is a byte, but has ", bytes.size(), " bytes"},
                           {"tokens of one byte, where tokens are not bytes by themselves"});
    } else if (!tables_.byte_level && !is_utf8(bytes)) {
      return wrong_entry(id, {"has bytes that are not UTF-8"}, {"text"});
    }
  }
  if (tables_.unknown != kNoToken && !is_token(tables_.unknown))
    return wrong_entry(tables_.unknown, {"is unused, but META names it as unknown"},
                       {"ids of tokens, below ", tables_.vocabulary});
  return {};
}

Status Reader::bytes() {
  const auto found = section("BYTE");
  if (!found.ok()) return found.error();
  if (found.value().size() != 1024) return wrong_size(found.value().size(), 1024);
  tables_.byte_ids = Numbers<int32_t>(found.value());
  for (size_t byte = 0; byte < 256; ++byte) {
    const int32_t id = tables_.byte_ids[byte];
    if (id == -1 && tables_.byte_level) continue;
    if (id < 0 || !is_token(static_cast<uint32_t>(id)))
      return wrong_entry(
          byte, {"is ", id},
          {"ids of tokens, below ", tables_.vocabulary, tables_.byte_level ? ", or -1" : ", for every byte"});
  }
  return {};
}

// How many entries a hash table may have.
Status Reader::capacity(size_t entries) const {
  if (entries >= 2 && (entries & (entries - 1)) == 0) return {};
  return wrong({entries, " entries"}, {"a power of two"});
}

// Whether a hash table's entries are found from where their hashes point to. `is_filled` and `hash`
// are given a place. Bounded runs are what lets each search end, and soon.
template <typename IsFilled, typename Hash>
Status Reader::probes(size_t capacity, IsFilled is_filled, Hash hash) const {
  size_t hole = 0;
  while (hole < capacity && is_filled(hole)) ++hole;
  if (hole == capacity) return wrong({"all entries are full"}, {"empty ones among them"});
  size_t run = 0;  // filled entries before this one
  for (size_t k = 1; k < capacity; ++k) {
    const size_t place = (hole + k) & (capacity - 1);
    if (!is_filled(place)) {
      run = 0;
      continue;
    }
    const size_t distance = (place - static_cast<size_t>(hash(place))) & (capacity - 1);
    if (distance > run) return wrong_entry(place, {"is not where its hash points to"}, {"it there"});
    if (++run > kLongestRun)
      return wrong_entry(place, {"ends a run of ", run, " that are full"},
                         {"a table that is at most half full"});
  }
  return {};
}

Status Reader::merges() {
  const auto found = section("MERG");
  if (!found.ok()) return found.error();
  const size_t entries = found.value().size() / 16;
  if (found.value().size() % 16 != 0) return wrong({found.value().size(), " bytes"}, {"a multiple of 16"});
  if (const Status power = capacity(entries); !power.ok()) return power;
  const Numbers<uint32_t> table(found.value());
  size_t filled = 0;
  for (size_t place = 0; place < entries; ++place) {
    if (table[4 * place] == kNoToken) continue;
    ++filled;
    if (table[4 * place + 2] == kNoToken) return wrong_entry(place, {"has no rank"}, {"one"});
    for (const size_t column : {size_t{0}, size_t{1}, size_t{3}})
      if (!is_token(table[4 * place + column]))
        return wrong_entry(place, {"has the id ", table[4 * place + column]},
                           {"ids of tokens, below ", tables_.vocabulary});
  }
  if (filled != count_merges_) return wrong({filled, " merges"}, {"the ", count_merges_, " of META"});
  tables_.merges = table;
  return probes(
      entries, [&table](size_t place) { return table[4 * place] != kNoToken; },
      [&table](size_t place) { return hash_of_pair(table[4 * place], table[4 * place + 1]); });
}

Status Reader::classes() {
  const auto blocks = section("CLS2");
  if (!blocks.ok()) return blocks.error();
  tables_.block_classes = Numbers<uint8_t>(blocks.value());
  const size_t count = blocks.value().size() / kBlock;
  if (count == 0 || blocks.value().size() % kBlock != 0)
    return wrong({blocks.value().size(), " bytes"}, {"a multiple of 128, and not 0"});
  for (size_t k = 0; k < blocks.value().size(); ++k)
    if (tables_.block_classes[k] >= tables_.classes)
      return wrong_entry(k, {"is ", tables_.block_classes[k]}, {"classes below ", tables_.classes});
  const auto found = section("CLS1");
  if (!found.ok()) return found.error();
  if (found.value().size() != kCodePoints / kBlock * 2)
    return wrong_size(found.value().size(), kCodePoints / kBlock * 2);
  tables_.class_blocks = Numbers<uint16_t>(found.value());
  for (size_t k = 0; k < kCodePoints / kBlock; ++k)
    if (tables_.class_blocks[k] >= count)
      return wrong_entry(k, {"is ", tables_.class_blocks[k]}, {"one of the ", count, " blocks of CLS2"});
  return {};
}

Status Reader::splits() {
  const auto found = section("DFAS");
  if (!found.ok()) return found.error();
  Cursor rest(found.value());
  for (uint32_t k = 0; k < count_splits_; ++k)
    if (const Status done = split(rest, k); !done.ok()) return done;
  if (rest.left() != 0) return wrong({rest.left(), " bytes after the last split"}, {"none"});
  return {};
}

Status Reader::split(Cursor& rest, uint32_t number) {
  const auto head = rest.take(8);
  if (!head) return wrong({"it ends before split ", number}, {"as many as META says"});
  const Numbers<uint32_t> sizes(*head);
  Automaton automaton{sizes[0], sizes[1], {}};
  if (automaton.states < 2 || automaton.states > Automaton::kState + 1u)
    return wrong_entry(number, {"has ", automaton.states, " states"}, {"2 to 32768"});
  if (automaton.width != tables_.classes + 1)
    return wrong_entry(number, {"is ", automaton.width, " wide"},
                       {tables_.classes + 1, " for the classes of META"});
  const size_t cells = size_t{automaton.states} * automaton.width;
  const auto table = rest.take_padded(2 * cells);
  if (!table) return wrong_entry(number, {"is cut off"}, {2 * cells, " bytes"});
  automaton.cells = Numbers<uint16_t>(*table);
  for (size_t k = 0; k < cells; ++k) {
    const uint16_t cell = automaton.cells[k];
    if ((cell & Automaton::kState) >= automaton.states)
      return wrong_entry(number, {"goes to state ", cell & Automaton::kState},
                         {"states below ", automaton.states});
    if (k < automaton.width && cell != 0)
      return wrong_entry(number, {"leaves the dead state"}, {"state 0 to be all zero"});
    if (k / automaton.width == Automaton::kStart && (cell & Automaton::kMatch) != 0)
      return wrong_entry(number, {"matches before it has read"}, {"state 1 to match nothing yet"});
  }
  tables_.splits.push_back(automaton);
  return {};
}

Status Reader::added() {
  const auto found = section("ADDT");
  if (!found.ok()) return found.error();
  Cursor rest(found.value());
  for (uint32_t k = 0; k < count_added_; ++k)
    if (const Status done = added_token(rest, k); !done.ok()) return done;
  if (rest.left() != 0) return wrong({rest.left(), " bytes after the last token"}, {"none"});
  auto& tokens = tables_.added;
  std::sort(tokens.begin(), tokens.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.text < b.text; });
  const auto same = [](const AddedToken& a, const AddedToken& b) { return a.text == b.text; };
  const auto twice = std::adjacent_find(tokens.begin(), tokens.end(), same);
  if (twice != tokens.end()) return wrong({"the text of ", twice->id, " is there twice"}, {"each text once"});
  return {};
}

Status Reader::added_token(Cursor& rest, uint32_t number) {
  const auto head = rest.take(12);
  if (!head) return wrong({"it ends before token ", number}, {"as many as META says"});
  const Numbers<uint32_t> numbers(*head);
  const uint32_t id = numbers[0], special = numbers[1], size = numbers[2];
  const auto text = rest.take_padded(size);
  if (!text) return wrong_entry(number, {"is cut off"}, {size, " bytes of text"});
  if (!is_token(id))
    return wrong_entry(number, {"has the id ", id}, {"ids of tokens, below ", tables_.vocabulary});
  if (special > 1) return wrong_entry(number, {"has the flag ", special}, {"0 or 1"});
  if (text->empty() || text->size() > kLongestAdded || !is_utf8(*text))
    return wrong_entry(number, {"has a text of ", size, " bytes"}, {"UTF-8, 1 to ", kLongestAdded, " bytes"});
  tables_.added.push_back({*text, id, special == 1});
  return {};
}

Status Reader::whole() {
  const auto found = section("WHOL");
  if (!found.ok()) return found.error();
  const bool needed = !tables_.byte_level || tables_.ignore_merges;
  if (found.value().empty() && !needed) return {};
  if (found.value().size() % 4 != 0) return wrong({found.value().size(), " bytes"}, {"a multiple of 4"});
  const Numbers<uint32_t> table(found.value());
  if (const Status power = capacity(table.size()); !power.ok()) return power;
  std::vector<bool> seen(tables_.vocabulary);
  for (size_t place = 0; place < table.size(); ++place) {
    const uint32_t id = table[place];
    if (id == kNoToken) continue;
    if (!is_token(id)) return wrong_entry(place, {"is ", id}, {"ids of tokens, below ", tables_.vocabulary});
    if (seen[id]) return wrong_entry(place, {"is ", id, " again"}, {"each id once"});
    seen[id] = true;
  }
  tables_.whole = table;
  const Status probed = probes(
      table.size(), [&table](size_t place) { return table[place] != kNoToken; },
      [this](size_t place) { return hash_of_bytes(tables_.bytes_of(tables_.whole[place])); });
  return probed.ok() ? whole_is_complete() : probed;
}

// Whether the table has the tokens of single characters, or of single bytes. Without one, a text
// would silently get other tokens.
Status Reader::whole_is_complete() const {
  for (uint32_t id = 0; id < tables_.vocabulary; ++id) {
    const std::string_view bytes = tables_.bytes_of(id);
    if (tables_.kind_of(id) != TokenKind::kOrdinary || bytes.empty()) continue;
    if (tables_.byte_level ? !is_byte(id) : utf8_step(bytes).bytes != bytes.size()) continue;
    if (tables_.token_of(bytes) == kNoToken)
      return wrong({"the token ", id, " is missing"}, {"all of single characters"});
  }
  return {};
}

bool Reader::is_byte(uint32_t id) const {
  const std::string_view bytes = tables_.bytes_of(id);
  if (bytes.size() != 1) return false;
  const int32_t found = tables_.byte_ids[static_cast<unsigned char>(bytes[0])];
  return found >= 0 && static_cast<uint32_t>(found) == id;
}

Status Reader::steps() {
  const auto found = section("NORM");
  if (!found.ok()) return found.error();
  Cursor rest(found.value());
  while (rest.left() != 0)
    if (const Status done = step(rest); !done.ok()) return done;
  const auto is_nfc = [](const NormalStep& each) { return each.kind == NormalStep::Kind::kNfc; };
  if ((flags_ & kNfc) != 0 && std::none_of(tables_.steps.begin(), tables_.steps.end(), is_nfc))
    return wrong({"no step is NFC"}, {"one, by the flags of META"});
  return {};
}

Status Reader::step(Cursor& rest) {
  const size_t number = tables_.steps.size();
  if (number == kMostSteps) return wrong({"more steps"}, {"at most ", kMostSteps});
  const auto head = rest.take(12);
  if (!head) return wrong_entry(number, {"is cut off"}, {"12 bytes, and two texts"});
  const Numbers<uint32_t> numbers(*head);
  const auto kind = static_cast<NormalStep::Kind>(numbers[0]);
  const auto what = rest.take(numbers[1]);
  const auto with = rest.take(numbers[2]);
  if (!what || !with) return wrong_entry(number, {"is cut off"}, {"12 bytes, and two texts"});
  // Valid UTF-8 in valid UTF-8 stands between whole characters, so the text stays valid.
  if (!is_utf8(*what) || !is_utf8(*with)) return wrong_entry(number, {"is not UTF-8"}, {"text"});
  switch (kind) {
    case NormalStep::Kind::kOpen:
    case NormalStep::Kind::kOpenOnce:
    case NormalStep::Kind::kPrepend:
      tables_.prepended += what->size();
      break;
    case NormalStep::Kind::kReplace: {
      if (what->empty()) return wrong_entry(number, {"replaces nothing"}, {"a text to replace"});
      const size_t grows = (with->size() + what->size() - 1) / what->size();
      tables_.growth *= std::max(size_t{1}, grows);
      tables_.prepended *= std::max(size_t{1}, grows);
      break;
    }
    case NormalStep::Kind::kNfc:
      if ((flags_ & kNfc) == 0) return wrong_entry(number, {"is NFC"}, {"META to have its flag"});
      tables_.growth *= 2 * kLongestDecomposition;
      tables_.prepended *= 2 * kLongestDecomposition;
      break;
    default:
      return wrong_entry(number, {"is of kind ", numbers[0]}, {"1 to 5"});
  }
  if (tables_.growth > kMostGrowth || tables_.prepended > kMostGrowth)
    return wrong_entry(number, {"lets a text grow without bounds"},
                       {"at most to ", kMostGrowth, " times its size"});
  tables_.steps.push_back({kind, *what, *with});
  return {};
}

Status Reader::post_processor() {
  const auto found = section("POST");
  if (!found.ok()) return found.error();
  const Numbers<uint32_t> numbers(found.value());
  if (found.value().size() < 8) return wrong_size(found.value().size(), 8);
  const uint32_t trims = numbers[0], front = numbers[1];
  const uint64_t expected = 4 * (uint64_t{2} + trims + front);
  if (found.value().size() != expected) return wrong_size(found.value().size(), expected);
  if (trims > kMostTrims) return wrong({trims, " trims"}, {"at most ", kMostTrims});
  for (size_t k = 2; k < numbers.size(); ++k) {
    if (k < 2 + size_t{trims}) {
      if (numbers[k] > 1) return wrong_entry(k, {"is ", numbers[k]}, {"0 or 1"});
      tables_.trims.push_back(numbers[k] == 1);
    } else {
      if (!is_token(numbers[k]))
        return wrong_entry(k, {"has the id ", numbers[k]}, {"ids of tokens, below ", tables_.vocabulary});
      tables_.front.push_back(static_cast<int32_t>(numbers[k]));
    }
  }
  return {};
}

Status Reader::normal_form() {
  if ((flags_ & kNfc) == 0) return {};
  const auto found = section("NFCT");
  if (!found.ok()) return found.error();
  Cursor rest(found.value());
  const auto head = rest.take(16);
  if (!head) return wrong_size(found.value().size(), 16);
  const Numbers<uint32_t> counts(*head);
  const auto rows = rest.take(uint64_t{8} * counts[0]), pool = rest.take(uint64_t{4} * counts[1]);
  const auto marks = rest.take(uint64_t{8} * counts[2]);
  const auto pairs = rest.take(uint64_t{12} * counts[3]);
  if (!rows || !pool || !marks || !pairs || rest.left() != 0)
    return wrong({found.value().size(), " bytes"}, {"the sizes at its start to add up"});
  tables_.normal_form = {Numbers<uint32_t>(*rows), Numbers<uint32_t>(*pool), Numbers<uint32_t>(*marks),
                         Numbers<uint32_t>(*pairs)};
  const NormalFormTables& form = tables_.normal_form;
  for (size_t row = 0; row < form.decomposed.size() / 2; ++row) {
    const uint32_t place = form.decomposed[2 * row + 1], count = place & 255;
    if (count == 0 || count > kLongestDecomposition || (place >> 8) + count > form.pool.size())
      return wrong_entry(row, {"of the decompositions is outside the pool"},
                         {"1 to 4 code points inside it"});
  }
  for (size_t row = 0; row < form.marks.size() / 2; ++row)
    if (form.marks[2 * row + 1] > 255)
      return wrong_entry(row, {"of the marks has a class above 255"}, {"a combining class"});
  for (const Status& checked :
       {rising(form.decomposed, 2, 1), rising(form.marks, 2, 1), rising(form.pairs, 3, 2),
        scalars(form.pool, 1, 0), scalars(form.pairs, 3, 2)})
    if (!checked.ok()) return checked;
  return {};
}

// Whether a column's numbers are code points.
Status Reader::scalars(const Numbers<uint32_t>& table, size_t width, size_t column) const {
  for (size_t k = column; k < table.size(); k += width)
    if (!is_scalar(table[k])) return wrong_entry(k / width, {"is no character"}, {"code points"});
  return {};
}

// Whether a table is sorted by its first columns, without equal rows.
Status Reader::rising(const Numbers<uint32_t>& table, size_t width, size_t keys) const {
  for (size_t row = 1; row < table.size() / width; ++row) {
    size_t key = 0;
    while (key < keys && table[(row - 1) * width + key] == table[row * width + key]) ++key;
    if (key == keys || table[(row - 1) * width + key] > table[row * width + key])
      return wrong_entry(row, {"is not above the one before"}, {"sorted rows"});
  }
  return {};
}

}  // namespace

uint64_t hash_of_pair(uint32_t left, uint32_t right) {
  const uint64_t mixed = (uint64_t{left} << 32 | right) * 0x9E3779B97F4A7C15u;
  return mixed ^ mixed >> 32;
}

// FNV-1a, folded.
uint64_t hash_of_bytes(std::string_view bytes) {
  uint64_t hash = 0xCBF29CE484222325u;
  for (const char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001B3u;
  return hash ^ hash >> 32;
}

Merge TokenizerTables::merge_of(uint32_t left, uint32_t right) const {
  const size_t mask = merges.size() / 4 - 1;
  for (size_t place = static_cast<size_t>(hash_of_pair(left, right)) & mask;; place = (place + 1) & mask) {
    const uint32_t found = merges[4 * place];
    if (found == kNoToken) return {kNoToken, kNoToken};
    if (found == left && merges[4 * place + 1] == right)
      return {merges[4 * place + 2], merges[4 * place + 3]};
  }
}

uint32_t TokenizerTables::token_of(std::string_view bytes) const {
  const size_t mask = whole.size() - 1;
  for (size_t place = static_cast<size_t>(hash_of_bytes(bytes)) & mask;; place = (place + 1) & mask) {
    const uint32_t id = whole[place];
    if (id == kNoToken || bytes_of(id) == bytes) return id;
  }
}

Result<TokenizerTables> read_tokenizer_tables(std::string_view file, const std::string& name) {
  return Reader(file, name).read();
}

}  // namespace plc
