#include "tokenizer.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "unicode.h"
#include "utf8.h"
#include "words.h"

namespace plc {
namespace {

// Places in a text are 31 bits.
constexpr size_t kMostBytes = std::numeric_limits<int32_t>::max();

// The end of the leftmost-first match at the start of [at, end); `at` where there is none.
const char* match_end(const TokenizerTables& tables, const Automaton& automaton, const char* at,
                      const char* end) {
  const char* match = at;
  uint32_t state = Automaton::kStart;
  for (const char* next = at;;) {
    const char* const here = next;
    const bool is_over = here == end;
    const uint32_t kind = is_over ? tables.classes : tables.class_of(next_code_point(next));
    const uint16_t cell = automaton.cells[size_t{state} * automaton.width + kind];
    if ((cell & Automaton::kMatch) != 0) match = here;
    state = cell & Automaton::kState;
    if (state == Automaton::kDead || is_over) return match;
  }
}

std::string_view between(const char* begin, const char* end) {
  return {begin, static_cast<size_t>(end - begin)};
}

void append_with_replacements(std::string_view text, std::string_view what, std::string_view with,
                              std::string& out) {
  for (size_t at = 0;;) {
    const size_t found = text.find(what, at);
    out.append(text.substr(at, found - at));
    if (found == std::string_view::npos) return;
    out.append(with);
    at = found + what.size();
  }
}

// The blanks that a token's name begins with: those that a trim takes off its place.
size_t blanks_at_start(std::string_view name) {
  size_t count = 0;
  for (const char* at = name.data(); at < name.data() + name.size(); ++count)
    if (const uint32_t point = next_code_point(at); point != 0x120 && !is_white_space(point)) break;
  return count;
}

size_t blanks_at_end(std::string_view name) {
  size_t count = 0;
  for (const char* at = name.data(); at < name.data() + name.size();) {
    const uint32_t point = next_code_point(at);
    count = point == 0x120 || is_white_space(point) ? count + 1 : 0;
  }
  return count;
}

// What stands for the name of a token in the two functions above. In a byte-level vocabulary "Ġ"
// is the one blank; it was written as the byte 0x20.
std::string blanks_of(const TokenizerTables& tables, int32_t id) {
  const auto key = static_cast<uint32_t>(id);
  const TokenKind kind = tables.kind_of(key);
  if (kind == TokenKind::kByte) return {};
  if (kind == TokenKind::kSpecial || kind == TokenKind::kAdded)
    for (const AddedToken& token : tables.added)
      if (token.id == key) return std::string(token.text);
  std::string name(tables.bytes_of(key));
  if (tables.byte_level)
    for (char& byte : name)
      if (byte != ' ') byte = 'a';
  return name;
}

bool starts_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) != 0x80; }

}  // namespace

Result<std::shared_ptr<const Tokenizer>> Tokenizer::open(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file.ok()) return file.error();
  auto tables = read_tokenizer_tables(file.value().bytes(), path);
  if (!tables.ok()) return tables.error();
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(file.value()), std::move(tables.value())));
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::from_memory(std::string_view file,
                                                                const std::string& name) {
  auto tables = read_tokenizer_tables(file, name);
  if (!tables.ok()) return tables.error();
  return std::shared_ptr<const Tokenizer>(new Tokenizer(MappedFile(), std::move(tables.value())));
}

Tokenizer::Tokenizer(MappedFile file, TokenizerTables tables)
    : file_(std::move(file)), tables_(std::move(tables)) {
  for (const AddedToken& token : tables_.added)
    begins_added_[static_cast<unsigned char>(token.text[0])] = true;
  for (size_t byte = 0; byte < 256; ++byte)
    if (tables_.byte_ids[byte] < 0 && !tables_.byte_level) has_places_ = false;
}

// Byte by byte, the range of tokens that begin like the text; they are sorted, the shorter first.
const AddedToken* Tokenizer::added_at_start_of(std::string_view text) const {
  if (text.empty() || !begins_added_[static_cast<unsigned char>(text[0])]) return nullptr;
  const AddedToken *first = tables_.added.data(), *last = first + tables_.added.size();
  const AddedToken* longest = nullptr;
  for (size_t at = 0; at < text.size() && first != last; ++at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    const auto byte_of = [at](const AddedToken& token) { return static_cast<unsigned char>(token.text[at]); };
    first = std::partition_point(first, last, [&](const auto& t) { return byte_of(t) < byte; });
    last = std::partition_point(first, last, [&](const auto& t) { return byte_of(t) == byte; });
    if (first != last && first->text.size() == at + 1) longest = first++;
  }
  return longest;
}

Encoder::Encoder(std::shared_ptr<const Tokenizer> tokenizer)
    : tokenizer_(std::move(tokenizer)),
      tables_(tokenizer_->tables()),
      words_(tables_),
      normal_form_(tables_.normal_form) {}

Status Encoder::encode(std::string_view text, const EncodeOptions& options, std::vector<int32_t>& ids,
                       std::vector<Place>* places) {
  if (places != nullptr && !tokenizer_->has_places())
    return Error{ErrorCode::kArgument,
                 "finding the places of tokens in a text: the base's tokenizer leaves out characters that "
                 "it has no token for; expected a token for each byte, or one for unknown ones. "
                 "Serve this task with the Python runtime."};
  const size_t most = (kMostBytes - tables_.prepended) / tables_.growth;
  if (text.size() <= most && !is_utf8(text)) {
    valid_.clear();
    append_replaced(text, valid_);
    text = valid_;
  }
  if (text.size() > most)
    return Error{ErrorCode::kArgument, joined({"tokenising a text: it has ", text.size(),
                                               " bytes; expected at most ", most, ". Divide it."})};
  places_ = places;
  text_ = text;
  const size_t first_id = ids.size(), first_place = places == nullptr ? 0 : places->size();
  const auto behind = [&options](size_t start) {
    if (!options.opens) return Behind::kText;
    return start == 0 ? Behind::kNothing : Behind::kToken;
  };
  size_t start = 0;
  for (size_t at = 0; options.added != AddedTokens::kAsCharacters && at < text.size();) {
    const AddedToken* const token = tokenizer_->added_at_start_of(text.substr(at));
    const size_t end = at + (token == nullptr ? 1 : token->text.size());
    // A special token that stays characters still hides those inside it, as in `tokenizers`.
    if (token != nullptr && (options.added == AddedTokens::kAll || !token->special)) {
      section(text.substr(start, at - start), behind(start), ids);
      ids.push_back(static_cast<int32_t>(token->id));
      if (places != nullptr) places->push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(end)});
      start = end;
    }
    at = end;
  }
  section(text.substr(start), behind(start), ids);
  if (places != nullptr)
    for (const bool keeps_blank : tables_.trims) trim(text, keeps_blank, ids, first_id, first_place);
  return {};
}

// Takes the blanks of tokens off their places.
void Encoder::trim(std::string_view text, bool keeps_blank, const std::vector<int32_t>& ids, size_t first_id,
                   size_t first_place) {
  for (size_t k = first_id; k < ids.size(); ++k) {
    const std::string name = blanks_of(tables_, ids[k]);
    Place& place = (*places_)[first_place + k - first_id];
    const bool is_first = k == first_id || place.begin == 0;
    size_t left = blanks_at_start(name);
    if (keeps_blank && is_first && left == 1) left = 0;
    for (; left > 0 && place.begin < place.end; --left) do
        ++place.begin;
      while (place.begin < place.end && !starts_character(text[place.begin]));
    size_t right = blanks_at_end(name);
    uint32_t end = place.end;
    for (; right > 0 && end > 0; --right) do
        --end;
      while (end > 0 && !starts_character(text[end]));
    if (right == 0) place.end = std::max(end, place.begin);
  }
}

// A text between added tokens.
void Encoder::section(std::string_view text, Behind behind, std::vector<int32_t>& ids) {
  if (text.empty()) return;
  if (places_ != nullptr) place_characters(text);
  const std::string_view whole = normalized(text, behind);
  section_ = whole.data();
  split(0, whole, ids);
}

void Encoder::place_characters(std::string_view text) {
  sources_.clear();
  const char* at = text.data();
  while (at < text.data() + text.size()) {
    const auto begin = static_cast<uint32_t>(at - text_.data());
    next_code_point(at);
    const auto end = static_cast<uint32_t>(at - text_.data());
    sources_.insert(sources_.end(), end - begin, Place{begin, end});
  }
}

std::string_view Encoder::normalized(std::string_view text, Behind behind) {
  for (const NormalStep& step : tables_.steps)
    if (is_taken(step, text, behind)) {
      apply(step, text);
      text = normalized_;
    }
  if (const NormalStep blank{NormalStep::Kind::kOpen, " ", {}};
      tables_.add_prefix_space && is_taken(blank, text, behind)) {
    apply(blank, text);
    text = normalized_;
  }
  return text;
}

// Whether a step changes a text that stands there.
bool Encoder::is_taken(const NormalStep& step, std::string_view text, Behind behind) {
  switch (step.kind) {
    case NormalStep::Kind::kPrepend:
      return behind != Behind::kText;
    case NormalStep::Kind::kOpen:
      return behind != Behind::kText && text.substr(0, step.what.size()) != step.what;
    case NormalStep::Kind::kOpenOnce:
      return behind == Behind::kNothing && text.substr(0, step.what.size()) != step.what;
    default:
      return true;
  }
}

// Leaves the result in `normalized_`, which may be where the text is.
void Encoder::apply(const NormalStep& step, std::string_view text) {
  if (text.data() == normalized_.data()) {
    std::swap(normalized_, before_step_);
    text = before_step_;
  }
  normalized_.clear();
  switch (step.kind) {
    case NormalStep::Kind::kPrepend:
    case NormalStep::Kind::kOpen:
    case NormalStep::Kind::kOpenOnce:
      if (text.empty()) return;
      normalized_.append(step.what).append(text);
      if (places_ != nullptr) sources_.insert(sources_.begin(), step.what.size(), Place(sources_[0]));
      return;
    case NormalStep::Kind::kReplace:
      if (places_ != nullptr) replace_places(step, text);
      return append_with_replacements(text, step.what, step.with, normalized_);
    case NormalStep::Kind::kNfc:
      changes_.clear();
      normal_form_.append(text, normalized_, places_ == nullptr ? nullptr : &changes_);
      if (!changes_.empty()) normalize_places(text);
  }
}

// What was written has the place of the last character that was replaced.
void Encoder::replace_places(const NormalStep& step, std::string_view text) {
  std::swap(sources_, sources_before_step_);
  sources_.clear();
  const auto before = sources_before_step_.begin();
  for (size_t at = 0;;) {
    const size_t found = std::min(text.find(step.what, at), text.size());
    sources_.insert(sources_.end(), before + static_cast<std::ptrdiff_t>(at),
                    before + static_cast<std::ptrdiff_t>(found));
    if (found == text.size()) return;
    at = found + step.what.size();
    sources_.insert(sources_.end(), step.with.size(), sources_before_step_[at - 1]);
  }
}

// The places of what NFC wrote, by its changes.
void Encoder::normalize_places(std::string_view text) {
  std::swap(sources_, sources_before_step_);
  sources_.clear();
  std::vector<Place> characters;
  for (size_t k = 0; k < text.size(); ++k)
    if (starts_character(text[k])) characters.push_back(sources_before_step_[k]);
  size_t at = 0;
  const char* written = normalized_.data();
  for (const int32_t change : changes_) {
    const char* const start = written;
    next_code_point(written);
    const size_t from = change > 0 ? std::max<size_t>(at, 1) - 1 : at;
    sources_.insert(sources_.end(), static_cast<size_t>(written - start),
                    characters[std::min(from, characters.size() - 1)]);
    if (change <= 0) at += static_cast<size_t>(1 - change);
  }
}

void Encoder::encode_piece(std::string_view text, std::vector<int32_t>& ids) {
  if (places_ == nullptr) return words_.encode(text, ids);
  sizes_.clear();
  words_.encode(text, ids, &sizes_);
  size_t at = static_cast<size_t>(text.data() - section_);
  if (std::accumulate(sizes_.begin(), sizes_.end(), size_t{0}) < text.size())
    return place_with_gaps(text, at);
  for (const uint32_t size : sizes_) {
    places_->push_back({sources_[at].begin, sources_[at + size - 1].end});
    at += size;
  }
}

// Bytes that are no token are left out, and `tokenizers` counts on as if they were not there. It counts the
// characters that stand for bytes: those of visible ASCII take one byte, all others two.
void Encoder::place_with_gaps(std::string_view text, size_t at) {
  std::vector<Place> counted;
  std::vector<uint8_t> widths;  // of bytes that are tokens
  for (size_t k = 0; k < text.size(); ++k) {
    const auto byte = static_cast<unsigned char>(text[k]);
    const uint8_t width = byte > ' ' && byte < 0x7f ? 1 : 2;
    counted.insert(counted.end(), width, sources_[at + k]);
    if (tables_.byte_ids[byte] >= 0) widths.push_back(width);
  }
  size_t begin = 0, next = 0;
  for (const uint32_t size : sizes_) {
    size_t end = begin;
    for (const size_t last = next + size; next < last; ++next) end += widths[next];
    places_->push_back({counted[begin].begin, counted[end - 1].end});
    begin = end;
  }
}

// Matches of a stage's pattern, and what lies between them, go on to the next stage.
void Encoder::split(size_t stage, std::string_view text, std::vector<int32_t>& ids) {
  if (stage == tables_.splits.size()) return encode_piece(text, ids);
  const Automaton& automaton = tables_.splits[stage];
  const char* const end = text.data() + text.size();
  const char *at = text.data(), *rest = at;
  while (at < end) {
    const char* const match = match_end(tables_, automaton, at, end);
    if (match == at) {
      next_code_point(at);
      continue;
    }
    if (rest < at) split(stage + 1, between(rest, at), ids);
    split(stage + 1, between(at, match), ids);
    at = rest = match;
  }
  if (rest < end) split(stage + 1, between(rest, end), ids);
}

}  // namespace plc
