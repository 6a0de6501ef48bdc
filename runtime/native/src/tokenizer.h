// Text to token ids by the tables that the compiler made of a base's tokenizer.json.
//
//     auto opened = plc::Tokenizer::open("bundle/tokenizer.tables");
//     if (!opened.ok()) return report(opened.error().message);
//     plc::Encoder encoder(opened.value());
//     std::vector<int32_t> ids;
//     plc::Status done = encoder.encode("a text", {}, ids);
//
// A Tokenizer never changes: threads share it. An Encoder has scratch memory: each thread has its
// own. Ids become text in text_stream.h.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "mapped_file.h"
#include "normal_form.h"
#include "result.h"
#include "tokenizer_tables.h"
#include "word_encoder.h"

namespace plc {

class Tokenizer {
 public:
  // A file tokenizer.tables. It stays mapped (see MappedFile) as long as the tokenizer lives.
  static Result<std::shared_ptr<const Tokenizer>> open(const std::string& path);

  // The content of such a file, which must outlive the tokenizer. `name` is for messages.
  static Result<std::shared_ptr<const Tokenizer>> from_memory(std::string_view file, const std::string& name);

  // The largest id + 1.
  size_t vocabulary() const { return tables_.vocabulary; }

  // The bytes of a token; empty where there is none with this id. A blank is U+2581 where the
  // tokenizer writes it so.
  std::string_view bytes(int32_t id) const {
    return has(id) ? tables_.bytes_of(static_cast<uint32_t>(id)) : std::string_view();
  }

  bool has(int32_t id) const {
    return id >= 0 && static_cast<uint32_t>(id) < tables_.vocabulary &&
           tables_.kind_of(static_cast<uint32_t>(id)) != TokenKind::kUnused;
  }

  // Whether it is a control token, which is no text.
  bool is_special(int32_t id) const {
    return has(id) && tables_.kind_of(static_cast<uint32_t>(id)) == TokenKind::kSpecial;
  }

  const TokenizerTables& tables() const { return tables_; }

  // Whether it can tell which part of a text a token writes. It cannot where tokens are of characters
  // and the vocabulary lacks bytes.
  bool has_places() const { return has_places_; }

  // The longest added token that the text begins with; null if none.
  const AddedToken* added_at_start_of(std::string_view text) const;

 private:
  Tokenizer(MappedFile file, TokenizerTables tables);

  const MappedFile file_;  // empty where the memory is the caller's
  const TokenizerTables tables_;
  std::array<bool, 256> begins_added_{};  // whether an added token begins with this byte
  bool has_places_ = true;
};

// Which added tokens in a text become tokens. The others are characters.
enum class AddedTokens {
  kAsCharacters,  // none: for data, whatever they hold
  kNotSpecial,    // as `tokenizers` does with encode_special_tokens
  kAll,           // for templates
};

struct EncodeOptions {
  AddedTokens added = AddedTokens::kAsCharacters;
  // Whether the text is the first of its sequence. Some tokenizers put a blank before that; before
  // one that continues a sequence it would be wrong.
  bool opens = true;
};

// What a token writes of a text: the bytes from `begin` to before `end`, as `tokenizers` tells it
// (docs/tokenizer-tables.md, "Places of tokens"). Tokens of one character have equal places.
struct Place {
  uint32_t begin, end;
};

// For one thread at a time. Its memory grows with the longest text.
class Encoder {
 public:
  explicit Encoder(std::shared_ptr<const Tokenizer> tokenizer);
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  // Appends the ids of a text; no BOS or EOS. Bytes that are not UTF-8 are read as U+FFFD, one for
  // each maximal subpart. `text` is no part of `ids`. An error (and no ids) where the text is too
  // long: above 2 GiB, less where normalizing makes it longer. `places` gets one for each id, in the
  // text as it was read; an error where the tokenizer has none.
  Status encode(std::string_view text, const EncodeOptions& options, std::vector<int32_t>& ids,
                std::vector<Place>* places = nullptr);

  const Tokenizer& tokenizer() const { return *tokenizer_; }

 private:
  // What a section stands behind: text of its sequence, an added token, or nothing.
  enum class Behind { kText, kToken, kNothing };

  void section(std::string_view text, Behind behind, std::vector<int32_t>& ids);
  std::string_view normalized(std::string_view text, Behind behind);
  static bool is_taken(const NormalStep& step, std::string_view text, Behind behind);
  void apply(const NormalStep& step, std::string_view text);
  void split(size_t stage, std::string_view text, std::vector<int32_t>& ids);
  void encode_piece(std::string_view text, std::vector<int32_t>& ids);
  void place_with_gaps(std::string_view text, size_t at);
  void place_characters(std::string_view text);
  void replace_places(const NormalStep& step, std::string_view text);
  void normalize_places(std::string_view text);
  void trim(std::string_view text, bool keeps_blank, const std::vector<int32_t>& ids, size_t first_id,
            size_t first_place);

  // This order: what follows refers to the tables of the first.
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const TokenizerTables& tables_;
  WordEncoder words_;
  NormalForm normal_form_;
  std::string valid_, normalized_, before_step_;
  // Only where places are wanted: the place of each byte of the section that is being encoded.
  std::vector<Place>* places_ = nullptr;
  std::string_view text_{};
  std::vector<Place> sources_{}, sources_before_step_{};
  std::vector<int32_t> changes_{};
  std::vector<uint32_t> sizes_{};
  const char* section_ = nullptr;
};

}  // namespace plc
