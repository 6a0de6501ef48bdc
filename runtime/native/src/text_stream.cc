#include "text_stream.h"

#include <algorithm>

#include "utf8.h"

namespace plc {
namespace {

// How such tokenizers write a blank.
constexpr std::string_view kBlank = "\xE2\x96\x81";

bool continues_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

void remove_replacements_at_end(std::string& text, size_t start) {
  const size_t size = kReplacement.size();
  while (text.size() >= start + size && text.compare(text.size() - size, size, kReplacement) == 0)
    text.resize(text.size() - size);
}

}  // namespace

void TextStream::push(int32_t id, std::string& text) {
  if (!is_text(id)) return;
  const std::string_view bytes = tokenizer_->bytes(id);
  const TokenizerTables& tables = tokenizer_->tables();
  if (tables.byte_level) return push_bytes(bytes, text);
  if (tables.kind_of(static_cast<uint32_t>(id)) == TokenKind::kByte) {
    held_.append(bytes);
    return;
  }
  end_run(text);
  for (size_t at = 0; at < bytes.size();) {
    const size_t blank = std::min(bytes.find(kBlank, at), bytes.size());
    write(bytes.substr(at, blank - at), text);
    if (blank < bytes.size()) write(" ", text);
    at = blank + kBlank.size();
  }
}

void TextStream::peek(int32_t id, std::string& text) const {
  TextStream copy = *this;
  copy.push(id, text);
  if (!tokenizer_->tables().byte_level) copy.finish(text);
}

void TextStream::pending(std::string& text, size_t last) const {
  if (tokenizer_->tables().byte_level || held_.empty()) return;
  const size_t before = text.size();
  TextStream copy = *this;
  if (last < held_.size()) {
    // Not inside a character: at most three bytes continue it.
    size_t start = held_.size() - last;
    for (size_t back = 0; back < 4 && back <= held_.size() - last; ++back) {
      if (continues_character(held_[held_.size() - last - back])) continue;
      start = held_.size() - last - back;
      break;
    }
    copy.held_.erase(0, start);
    copy.to_strip_ = tokenizer_->tables().stripped_blanks;
  }
  copy.finish(text);
  remove_replacements_at_end(text, before);
}

void TextStream::finish(std::string& text) {
  if (!tokenizer_->tables().byte_level) return end_run(text);
  append_replaced(held_, text);
  held_.clear();
}

bool TextStream::is_text(int32_t id) const {
  return tokenizer_->has(id) && !(skip_special_ && tokenizer_->is_special(id));
}

void TextStream::push_bytes(std::string_view bytes, std::string& text) {
  held_.append(bytes);
  std::string_view rest = held_;
  while (!rest.empty()) {
    const Utf8Step step = utf8_step(rest);
    if (step.cut_off) break;
    text.append(step.valid ? rest.substr(0, step.bytes) : kReplacement);
    rest.remove_prefix(step.bytes);
  }
  held_.erase(0, held_.size() - rest.size());
}

// Appends a part of the text, without the blanks at the start of the whole.
void TextStream::write(std::string_view bytes, std::string& text) {
  if (bytes.empty()) return;
  while (to_strip_ > 0 && !bytes.empty() && bytes[0] == ' ') {
    bytes.remove_prefix(1);
    --to_strip_;
  }
  if (!bytes.empty()) to_strip_ = 0;
  text.append(bytes);
}

void TextStream::end_run(std::string& text) {
  if (is_utf8(held_)) write(held_, text);
  else
    for (size_t k = 0; k < held_.size(); ++k) write(kReplacement, text);
  held_.clear();
}

std::string decode(std::shared_ptr<const Tokenizer> tokenizer, const std::vector<int32_t>& ids,
                   bool skip_special) {
  TextStream stream(std::move(tokenizer), skip_special);
  std::string text;
  for (const int32_t id : ids) stream.push(id, text);
  stream.finish(text);
  return text;
}

}  // namespace plc
