#include "tokenizer.h"

#include <algorithm>
#include <limits>

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

}  // namespace

Result<std::shared_ptr<const Tokenizer>> Tokenizer::open(const std::string& path) {
  auto file = MappedFile::open(path);
  if (!file.ok()) return file.error();
  auto tables = read_tokenizer_tables(file.value().bytes(), path);
  if (!tables.ok()) return tables.error();
  return std::shared_ptr<const Tokenizer>(
      new Tokenizer(std::move(file.value()), std::move(tables.value())));
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
}

// Byte by byte, the range of tokens that begin like the text; they are sorted, the shorter first.
const AddedToken* Tokenizer::added_at_start_of(std::string_view text) const {
  if (text.empty() || !begins_added_[static_cast<unsigned char>(text[0])]) return nullptr;
  const AddedToken *first = tables_.added.data(), *last = first + tables_.added.size();
  const AddedToken* longest = nullptr;
  for (size_t at = 0; at < text.size() && first != last; ++at) {
    const auto byte = static_cast<unsigned char>(text[at]);
    const auto byte_of = [at](const AddedToken& token) {
      return static_cast<unsigned char>(token.text[at]);
    };
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

Status Encoder::encode(std::string_view text, const EncodeOptions& options,
                       std::vector<int32_t>& ids) {
  const size_t most = (kMostBytes - tables_.prepended) / tables_.growth;
  if (text.size() <= most && !is_utf8(text)) {
    valid_.clear();
    append_replaced(text, valid_);
    text = valid_;
  }
  if (text.size() > most)
    return Error{ErrorCode::kArgument,
                 joined({"tokenising a text: it has ", text.size(), " bytes; expected at most ",
                         most, ". Divide it."})};
  size_t start = 0;
  for (size_t at = 0; options.added != AddedTokens::kAsCharacters && at < text.size();) {
    const AddedToken* const token = tokenizer_->added_at_start_of(text.substr(at));
    const size_t end = at + (token == nullptr ? 1 : token->text.size());
    // A special token that stays characters still hides those inside it, as in `tokenizers`.
    if (token != nullptr && (options.added == AddedTokens::kAll || !token->special)) {
      section(text.substr(start, at - start), options.opens, ids);
      ids.push_back(static_cast<int32_t>(token->id));
      start = end;
    }
    at = end;
  }
  section(text.substr(start), options.opens, ids);
  return {};
}

// A text between added tokens.
void Encoder::section(std::string_view text, bool opens, std::vector<int32_t>& ids) {
  if (!text.empty()) split(0, normalized(text, opens), ids);
}

std::string_view Encoder::normalized(std::string_view text, bool opens) {
  for (const NormalStep& step : tables_.steps) {
    if (step.kind == NormalStep::Kind::kPrepend && !opens) continue;
    apply(step, text);
    text = normalized_;
  }
  if (tables_.add_prefix_space && opens && !text.empty() && text[0] != ' ') {
    apply({NormalStep::Kind::kPrepend, " ", {}}, text);
    text = normalized_;
  }
  return text;
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
      if (!text.empty()) normalized_.append(step.what).append(text);
      return;
    case NormalStep::Kind::kReplace:
      return append_with_replacements(text, step.what, step.with, normalized_);
    case NormalStep::Kind::kNfc:
      return normal_form_.append(text, normalized_);
  }
}

// Matches of a stage's pattern, and what lies between them, go on to the next stage.
void Encoder::split(size_t stage, std::string_view text, std::vector<int32_t>& ids) {
  if (stage == tables_.splits.size()) return words_.encode(text, ids);
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
