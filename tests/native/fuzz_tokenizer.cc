// A target for libFuzzer. PLC_TABLES names a good file. An input's first byte says what the rest
// is:
//
//     0 modulo 4  changes of the good file: 4 bytes a place (modulo its size), 1 byte what to put
//     1 modulo 4  a whole file
//     others      a text for the good file; by 4, 8: which added tokens are parsed
//
// Whatever the input: nothing crashes or hangs, and text that is decoded is UTF-8. With the good
// file also: streams and `decode` agree, what an encoder remembers changes no ids, and byte-level
// tokens without normalizing write the text that they were made of.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "text_stream.h"
#include "tokenizer.h"
#include "utf8.h"

namespace {

using plc::AddedTokens;
using plc::Encoder;
using plc::Tokenizer;
using Shared = std::shared_ptr<const Tokenizer>;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

struct Good {
  plc::MappedFile file;
  Shared tokenizer;
};

const Good& good() {
  static const Good loaded = [] {
    const char* const path = std::getenv("PLC_TABLES");
    expect(path != nullptr, "PLC_TABLES names a file");
    auto file = plc::MappedFile::open(path);
    auto opened = Tokenizer::open(path);
    expect(file.ok() && opened.ok(), "the file of PLC_TABLES is good");
    return Good{std::move(file.value()), opened.value()};
  }();
  return loaded;
}

std::vector<int32_t> encoded(Encoder& encoder, std::string_view text, AddedTokens added) {
  std::vector<int32_t> ids;
  expect(encoder.encode(text, {added, true}, ids).ok() || text.size() > 1000, "it is encoded");
  return ids;
}

void use(std::string_view file) {
  const auto opened = Tokenizer::from_memory(file, "changed");
  if (!opened.ok()) return;
  Encoder encoder(opened.value());
  const std::string text =
      "e\u0301\u0327 \uac00\u11a8 the<think>s>x\u00e9 it's 123\U0001F600\n x\xff" +
      std::string(100, 'a');
  const std::vector<int32_t> ids = encoded(encoder, text, AddedTokens::kAll);
  expect(plc::is_utf8(plc::decode(opened.value(), ids, false)), "decoded text is UTF-8");
}

void use_changed(std::string_view changes) {
  std::string file(good().file.bytes());
  for (; changes.size() >= 5; changes.remove_prefix(5)) {
    uint32_t place;
    std::memcpy(&place, changes.data(), sizeof place);
    file[place % file.size()] = changes[4];
  }
  use(file);
}

void read(std::string_view text, AddedTokens added) {
  static Encoder used(good().tokenizer);
  Encoder fresh(good().tokenizer);
  const std::vector<int32_t> ids = encoded(used, text, added);
  expect(ids == encoded(fresh, text, added), "what is remembered changes no ids");

  const std::string whole = plc::decode(good().tokenizer, ids, false);
  plc::TextStream stream(good().tokenizer, false);
  std::string pieces;
  for (const int32_t id : ids) {
    stream.push(id, pieces);
    expect(plc::is_utf8(pieces), "pieces are whole characters");
  }
  stream.finish(pieces);
  expect(pieces == whole, "pieces make the decoded text");

  std::string replaced;
  plc::append_replaced(text, replaced);
  const plc::TokenizerTables& tables = good().tokenizer->tables();
  if (tables.byte_level && tables.steps.empty() && !tables.add_prefix_space &&
      added == AddedTokens::kAsCharacters)
    expect(whole == replaced, "ids write the text that they were made of");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  constexpr AddedTokens kinds[] = {AddedTokens::kAsCharacters, AddedTokens::kNotSpecial,
                                   AddedTokens::kAll};
  switch (data[0] % 4) {
    case 0:
      use_changed(rest);
      break;
    case 1:
      use(rest);
      break;
    default:
      read(rest, kinds[data[0] / 4 % 3]);
  }
  return 0;
}
