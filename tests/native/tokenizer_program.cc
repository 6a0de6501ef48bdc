// The tokenizer as a program, for the tests beside it.
//
//     tokenizer_program TABLES [threads]
//
// Reads lines from standard input, and answers each with a line. Texts and bytes are hexadecimal;
// numbers stand between commas.
//
//     encode KIND OPENS TEXT  ids. KIND: characters, not_special, all. OPENS: 0 or 1
//     decode SKIP IDS         text. SKIP: 1 leaves special tokens out
//     stream SKIP IDS         for each id what is pushed, what is pending, the same of the last two
//                             tokens, and a peek at the id; then what finishing gives
//     bytes ID                bytes
//     patch PLACE BYTES       loads the file with other bytes there, and uses it: "refused" and
//                             why, or "loaded" and the ids of a text
//     cut SIZE                the same with the file's first bytes alone
//     count TEXT              how many ids
//
// With `threads`, two threads with one tokenizer answer all lines, and must agree.
// Exits with 1 and a message where the file is refused, with 2 where a line is wrong.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "hex.h"
#include "text_stream.h"
#include "tokenizer.h"
#include "utf8.h"

namespace {

using plc::AddedTokens;
using plc::EncodeOptions;
using plc::Encoder;
using plc::TextStream;
using plc::Tokenizer;
using Ids = std::vector<int32_t>;
using Shared = std::shared_ptr<const Tokenizer>;

[[noreturn]] void refuse(const std::string& message, int code) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(code);
}

Ids to_ids(const std::string& text) {
  Ids ids;
  std::istringstream in(text);
  for (std::string each; std::getline(in, each, ',');) ids.push_back(std::stoi(each));
  return ids;
}

std::string from_ids(const Ids& ids) {
  std::string text;
  for (const int32_t id : ids) text += (text.empty() ? "" : ",") + std::to_string(id);
  return text;
}

AddedTokens to_added(const std::string& kind) {
  if (kind == "characters") return AddedTokens::kAsCharacters;
  if (kind == "not_special") return AddedTokens::kNotSpecial;
  if (kind == "all") return AddedTokens::kAll;
  refuse("no kind of added tokens: " + kind, 2);
}

Ids encoded(Encoder& encoder, const std::string& text, const EncodeOptions& options) {
  Ids ids;
  const plc::Status done = encoder.encode(text, options, ids);
  if (!done.ok()) refuse(done.error().message, 1);
  return ids;
}

std::string streamed(const Shared& tokenizer, bool skip, const Ids& ids) {
  TextStream stream(tokenizer, skip);
  std::string all;
  for (const int32_t id : ids) {
    std::string peeked, pushed, pending, last;
    stream.peek(id, peeked);
    stream.push(id, pushed);
    stream.pending(pending);
    stream.pending(last, 2);
    for (const std::string& each : {pushed, pending, last, peeked}) all += to_hex(each) + ",";
  }
  std::string rest;
  stream.finish(rest);
  return all + to_hex(rest);
}

// Whatever a file holds: it is refused, or what is done with it ends.
std::string used(const std::string& file) {
  const auto opened = Tokenizer::from_memory(file, "changed");
  if (!opened.ok()) return "refused " + opened.error().message;
  Encoder encoder(opened.value());
  const std::string text =
      "\u00c0\u00c1e\u0301\u0327 \uac00\u11a8 Hello <|im_end|><|start|> wor'ld 123\U0001F600 \n\n x\xff" +
      std::string(200, 'a') + std::string(100, ' ');
  Ids ids;
  for (const AddedTokens added :
       {AddedTokens::kAsCharacters, AddedTokens::kNotSpecial, AddedTokens::kAll})
    for (const bool opens : {false, true})
      if (const plc::Status done = encoder.encode(text, {added, opens}, ids); !done.ok())
        return "refused " + done.error().message;
  Ids shown = ids;
  shown.insert(shown.end(), {-1, 0, 1, 2, 3, 60, 61, 1 << 30});
  const std::string whole = plc::decode(opened.value(), shown, true);
  if (!plc::is_utf8(whole)) refuse("decoding gave what is not UTF-8", 1);
  streamed(opened.value(), false, shown);
  return "loaded " + from_ids(ids);
}

struct Worker {
  Shared tokenizer;
  std::string file;
  Encoder encoder{tokenizer};

  std::string answer(const std::string& line) {
    std::istringstream in(line);
    std::string mode, first, second, third;
    in >> mode >> first >> second >> third;
    if (mode == "encode")
      return from_ids(encoded(encoder, from_hex(third), {to_added(first), second == "1"}));
    if (mode == "decode") return to_hex(plc::decode(tokenizer, to_ids(second), first == "1"));
    if (mode == "stream") return streamed(tokenizer, first == "1", to_ids(second));
    if (mode == "bytes") return to_hex(std::string(tokenizer->bytes(std::stoi(first))));
    if (mode == "patch") {
      const std::string bytes = from_hex(second);
      return used(std::string(file).replace(std::stoul(first), bytes.size(), bytes));
    }
    if (mode == "cut") return used(file.substr(0, std::stoul(first)));
    if (mode == "count") return std::to_string(encoded(encoder, from_hex(first), {}).size());
    refuse("no such line: " + line, 2);
  }
};

std::vector<std::string> answers(const Shared& tokenizer, const std::string& file,
                                 const std::vector<std::string>& lines) {
  Worker worker{tokenizer, file};
  std::vector<std::string> found;
  for (const std::string& line : lines) found.push_back(worker.answer(line));
  return found;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) refuse("tokenizer_program TABLES [threads]", 2);
  const auto opened = Tokenizer::open(arguments[1]);
  if (!opened.ok()) refuse(opened.error().message, 1);
  const auto mapped = plc::MappedFile::open(arguments[1]);
  const std::string file(mapped.value().bytes());
  std::vector<std::string> lines;
  for (std::string line; std::getline(std::cin, line);) lines.push_back(line);

  std::vector<std::string> found, others;
  if (count > 2) {
    std::thread other([&] { others = answers(opened.value(), file, lines); });
    found = answers(opened.value(), file, lines);
    other.join();
    if (found != others) refuse("two threads differ", 1);
  } else {
    found = answers(opened.value(), file, lines);
  }
  for (const std::string& each : found) std::printf("%s\n", each.c_str());
  return 0;
}
