// The rendering of requests as a program, for the tests beside it.
//
//     rendering_program TABLES
//
// Reads lines from standard input, and answers each with a line. Its words stand between blanks, and
// the items of a list between commas. A text is "x" and its bytes in hexadecimal; "-" is none.
//
//     task VOCAB WHITESPACE BOS EOS ENDS TRUNCATED COPIED CHOICES ANSWER ANSWER_INDEX INPUTS SEGMENTS
//         renders this task from now on. WHITESPACE: keep, nemo, transformers. Of SEGMENTS: T and a
//         text, F and a name, V and start:count
//     prompt MOST FIELDS    ids and rows. Of FIELDS: a name, and t and a text, w and a whole number,
//                           or r and the bits of a double; all between colons
//     choices MOST FIELDS   the same, and the tree
//     tree FIELDS           the tree; "empty" for empty fields
//     opening               ids, rows, the layout of its identity, and ids of a graph
//     spans MOST SEED FIELDS  the prompt; then a walk through the spans, by a rule from the seed
//     places KIND OPENS TEXT  ids and places, in bytes. KIND: data, template
//     number BITS           a double, as it is written
//     words TEXT            places of its words
//     parts LABELS PARENTS TOKENS ENDS FIXED  the tree
//
// An error is "error" and its message as a text. Exits with 2 where a line is wrong.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "renderer.h"

namespace {

using plc::Error;
using Texts = std::vector<std::string>;

[[noreturn]] void refuse(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(2);
}

std::string to_text(const std::string& word) {
  std::string bytes;
  for (size_t k = 1; k + 1 < word.size(); k += 2)
    bytes += static_cast<char>(std::stoi(word.substr(k, 2), nullptr, 16));
  return bytes;
}

std::string from_text(std::string_view bytes) {
  std::string text = "x";
  for (const char byte : bytes) {
    const unsigned bits = static_cast<unsigned char>(byte);
    text += "0123456789abcdef"[bits >> 4];
    text += "0123456789abcdef"[bits & 15];
  }
  return text;
}

Texts parts(const std::string& text, char between = ',') {
  Texts found;
  if (text == "-") return found;
  std::istringstream in(text);
  for (std::string each; std::getline(in, each, between);) found.push_back(each);
  return found;
}

template <typename Numbers>
std::string list(const Numbers& numbers) {
  std::string text;
  for (const auto each : numbers) text += (text.empty() ? "" : ",") + std::to_string(each);
  return text.empty() ? "-" : text;
}

std::vector<int32_t> to_numbers(const std::string& text) {
  std::vector<int32_t> numbers;
  for (const std::string& each : parts(text)) numbers.push_back(std::stoi(each));
  return numbers;
}

Texts to_texts(const std::string& text) {
  Texts found;
  for (const std::string& each : parts(text)) found.push_back(to_text(each));
  return found;
}

std::optional<size_t> to_most(const std::string& word) {
  if (word == "-") return {};
  return std::stoul(word);
}

double to_double(const std::string& bits) {
  const uint64_t number = std::stoull(bits, nullptr, 16);
  double value;
  std::memcpy(&value, &number, sizeof value);
  return value;
}

std::string of(const Error& error) { return "error " + from_text(error.message); }

std::string of(const plc::Rendered& made) {
  return list(made.token_ids) + " " + list(made.virtual_rows);
}

struct InnerNodes final : plc::NodeOrder {
  explicit InnerNodes(const plc::LabelTrie& given) : trie(given) {}
  int32_t next() override {
    return at < trie.inner_nodes().size() ? trie.inner_nodes()[at++] : -1;
  }
  const plc::LabelTrie& trie;
  size_t at = 0;
};

std::string of(const plc::LabelTrie& trie) {
  std::string texts, groups;
  for (size_t node = 0; node < trie.nodes(); ++node)
    texts += (node == 0 ? "" : ",") + from_text(trie.text(static_cast<int32_t>(node)));
  if (!trie.inner_nodes().empty()) {
    InnerNodes order(trie);
    const plc::Branches group = trie.group(order, 3);
    groups = list(group.nodes) + ";" + list(group.wanted);
  }
  return list(trie.parents()) + " " + list(trie.tokens()) + " " + list(trie.ends()) + " " +
         std::to_string(trie.fixed()) + " " + std::to_string(trie.longest()) + " " +
         list(trie.inner_nodes()) + " " + texts + " " + groups;
}

// What a walk allows and says, from the first token to the end.
std::string walked(plc::SpanWalk& walk, uint32_t seed) {
  std::string said;
  for (uint32_t step = 0; step < 40; ++step) {
    const std::vector<int32_t> allowed = walk.allowed();
    said += " " + list(allowed) + ";" + std::to_string(walk.is_span()) + ";" +
            std::to_string(walk.places());
    if (step % 3 == 1) said += ";" + list(walk.ahead(seed % 7));
    seed = seed * 1103515245u + 12345u;
    if (allowed.empty() || (walk.is_span() && seed >> 28 == 0)) break;
    const int32_t id = allowed[(seed >> 16) % allowed.size()];
    std::string peeked, pushed, pending;
    walk.peek(id, peeked);
    walk.push(id, pushed);
    walk.pending(pending);
    said += ";" + from_text(peeked) + ";" + from_text(pushed) + ";" + from_text(pending);
  }
  std::string rest;
  walk.finish(rest);
  return said + " " + from_text(rest);
}

class Program {
 public:
  explicit Program(std::shared_ptr<const plc::Tokenizer> tokenizer) : encoder_(std::move(tokenizer)) {}

  std::string answer(const std::string& line) {
    const Texts words = parts(line, ' ');
    const std::string& mode = words[0];
    if (mode == "task") return task(words);
    if (mode == "prompt") return prompt(words);
    if (mode == "choices") return choices(words);
    if (mode == "tree") return tree(words);
    if (mode == "opening") return opening();
    if (mode == "spans") return spans(words);
    if (mode == "places") return places(words);
    if (mode == "number") return plc::written(to_double(words[1]));
    if (mode == "words") {
      std::vector<size_t> found;
      for (const plc::WordOfText& word : plc::words_of(to_text(words[1])))
        found.insert(found.end(), {word.begin, word.end});
      return list(found);
    }
    if (mode == "parts") {
      const auto made = plc::LabelTrie::of_parts(to_texts(words[1]), to_numbers(words[2]),
                                                 to_numbers(words[3]), to_numbers(words[4]),
                                                 words[5] == "1");
      return made.ok() ? of(made.value()) : of(made.error());
    }
    refuse("no such line: " + line);
  }

 private:
  std::string task(const Texts& words) {
    renderer_.reset();
    task_ = {};
    template_ = {};
    task_.taskname = "mood";
    task_.whitespace = words[2] == "nemo"           ? plc::WhiteSpace::kNemo
                       : words[2] == "transformers" ? plc::WhiteSpace::kTransformers
                                                    : plc::WhiteSpace::kKeep;
    if (words[3] != "-") task_.rules.bos_id = std::stoi(words[3]);
    if (words[4] != "-") task_.rules.eos_id = std::stoi(words[4]);
    task_.rules.end_ids = to_numbers(words[5]);
    if (words[6] != "-") task_.truncate_field = to_text(words[6]);
    if (words[7] != "-") task_.copied_from = to_text(words[7]);
    task_.choices = to_texts(words[8]);
    if (words[9] != "-") template_.answer_field = to_text(words[9]);
    template_.answer_index = std::stoul(words[10]);
    template_.input_fields = to_texts(words[11]);
    for (const std::string& each : parts(words[12])) {
      plc::Segment segment;
      if (each[0] == 'V') {
        segment.kind = plc::Segment::Kind::kVirtual;
        segment.start = std::stoul(each.substr(1));
        segment.count = std::stoul(each.substr(each.find(':') + 1));
      } else {
        segment.kind = each[0] == 'T' ? plc::Segment::Kind::kText : plc::Segment::Kind::kField;
        segment.text = to_text(each.substr(1));
      }
      template_.segments.push_back(segment);
    }
    auto made = plc::Renderer::of(task_, template_, encoder_, std::stoul(words[1]));
    if (!made.ok()) return of(made.error());
    renderer_ = std::make_unique<plc::Renderer>(std::move(made.value()));
    return "ok";
  }

  plc::Fields fields(const std::string& word) {
    kept_.clear();
    for (const std::string& each : parts(word)) {
      const Texts items = parts(each, ':');
      kept_.push_back(to_text(items[0]));
      kept_.push_back(items[1][0] == 't' ? to_text(items[1].substr(1)) : items[1].substr(1));
    }
    plc::Fields made;
    const Texts all = parts(word);
    for (size_t k = 0; k < all.size(); ++k) {
      const char kind = parts(all[k], ':')[1][0];
      const std::string& text = kept_[2 * k + 1];
      made.push_back({kept_[2 * k], kind == 't'   ? plc::FieldValue(text)
                                    : kind == 'w' ? plc::FieldValue::of_whole(std::stoll(text))
                                                  : plc::FieldValue::of_real(to_double(text))});
    }
    return made;
  }

  std::string prompt(const Texts& words) {
    const auto made = renderer_->prompt(fields(words[2]), to_most(words[1]));
    return made.ok() ? of(made.value()) : of(made.error());
  }

  std::string choices(const Texts& words) {
    const auto made = renderer_->prompt_and_choices(fields(words[2]), *to_most(words[1]));
    if (!made.ok()) return of(made.error());
    return of(made.value().prompt) + " " + of(*made.value().choices);
  }

  std::string tree(const Texts& words) {
    const auto made = words[1] == "empty" ? renderer_->label_trie() : renderer_->label_trie(fields(words[1]));
    if (!made.ok()) return of(made.error());
    // What a file would say is the same tree, and each label is written token by token.
    const plc::LabelTrie& trie = *made.value();
    const auto again = plc::LabelTrie::of_parts(trie.labels(), trie.parents(), trie.tokens(),
                                                trie.ends(), trie.fixed());
    if (again.ok() && !(again.value() == trie)) refuse("the parts of a tree make another one");
    for (const int32_t end : trie.ends()) {
      plc::TrieWalk walk(made.value());
      for (const int32_t id : trie.path(end)) {
        const std::vector<int32_t> allowed = walk.allowed();
        if (std::find(allowed.begin(), allowed.end(), id) == allowed.end()) break;
        if (!walk.push(id)) refuse("an allowed token is refused");
      }
      if (walk.push(-1)) refuse("a token that is none is taken");
    }
    return of(trie);
  }

  std::string opening() {
    const auto made = renderer_->opening();
    if (!made.ok()) return of(made.error());
    const plc::Rendered& opened = made.value();
    return of(opened) + " " + from_text(plc::layout_of(opened)) + " " +
           list(opened.input_ids(100000)) + " " + of(opened.without_virtual()) + " " +
           of(opened.after(2));
  }

  std::string spans(const Texts& words) {
    auto made = renderer_->prompt_and_spans(fields(words[3]), to_most(words[1]));
    if (!made.ok()) return of(made.error());
    const auto seed = static_cast<uint32_t>(std::stoul(words[2]));
    return of(made.value().prompt) + walked(*made.value().spans, seed);
  }

  std::string places(const Texts& words) {
    const bool is_data = words[1] == "data";
    const plc::EncodeOptions options{is_data ? plc::AddedTokens::kAsCharacters : plc::AddedTokens::kAll,
                                     words[2] == "1"};
    std::vector<int32_t> ids;
    std::vector<plc::Place> found;
    const plc::Status done = encoder_.encode(to_text(words[3]), options, ids, &found);
    if (!done.ok()) return of(done.error());
    std::vector<uint32_t> numbers;
    for (const plc::Place& each : found) numbers.insert(numbers.end(), {each.begin, each.end});
    return list(ids) + " " + list(numbers);
  }

  plc::Encoder encoder_;
  plc::TaskRecord task_{};
  plc::Template template_{};
  std::unique_ptr<plc::Renderer> renderer_{};
  Texts kept_{};
};

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) refuse("rendering_program TABLES");
  auto opened = plc::Tokenizer::open(arguments[1]);
  if (!opened.ok()) refuse(opened.error().message);
  Program program(opened.value());
  for (std::string line; std::getline(std::cin, line);)
    std::printf("%s\n", program.answer(line).c_str());
  return 0;
}
