// Answers the conformance vectors, for the test beside it.
//
//     conformance_program TABLES FILE...
//
// TABLES is the folder of NAME.tables for each tokenizer NAME. Says for each file how many cases
// there are, and for each that is answered otherwise its number and what differs. Exits with 1 then.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "answer_text.h"
#include "json.h"
#include "renderer.h"
#include "sampling.h"
#include "task_files.h"
#include "template.h"
#include "text_stream.h"

namespace {

using plc::Json;
using Ids = std::vector<int32_t>;
using Texts = std::vector<std::string>;
using Shared = std::shared_ptr<const plc::Tokenizer>;

[[noreturn]] void refuse(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(2);
}

const Json& at(const Json& object, const char* key) {
  const Json* found = object.find(key);
  if (found == nullptr) refuse(std::string("a case has no ") + key);
  return *found;
}

double real(const Json& value) {
  if (value.whole() != nullptr) return static_cast<double>(*value.whole());
  if (value.number() == nullptr) refuse("a number is missing");
  return *value.number();
}

int64_t whole(const Json& value) {
  if (value.whole() == nullptr) refuse("a whole number is missing");
  return *value.whole();
}

bool truth(const Json& value) { return value.truth() != nullptr && *value.truth(); }

Ids ids_of(const Json& value) {
  Ids ids;
  for (const Json& each : *value.list()) ids.push_back(static_cast<int32_t>(whole(each)));
  return ids;
}

Texts texts_of(const Json& value) {
  Texts texts;
  for (const Json& each : *value.list()) texts.push_back(*each.text());
  return texts;
}

// As a file has it.
std::string written(const Json& value) {
  if (value.is_null()) return "null";
  if (value.truth() != nullptr) return *value.truth() ? "true" : "false";
  if (value.whole() != nullptr) return std::to_string(*value.whole());
  if (value.number() != nullptr) return plc::written(*value.number());
  std::string text;
  if (value.text() != nullptr) {
    plc::append_json_text(*value.text(), text);
    return text;
  }
  if (value.list() != nullptr) {
    for (const Json& each : *value.list()) text += (text.empty() ? "" : ",") + written(each);
    return "[" + text + "]";
  }
  for (const auto& [key, each] : *value.object()) {
    if (!text.empty()) text += ",";
    plc::append_json_text(key, text);
    text += ":" + written(each);
  }
  return "{" + text + "}";
}

template <typename Number>
Json list_of(const std::vector<Number>& numbers) {
  Json::List list;
  for (const Number number : numbers) list.emplace_back(int64_t{number});
  return Json(list);
}

Json list_of(const Texts& texts) {
  Json::List list;
  for (const std::string& text : texts) list.emplace_back(text);
  return Json(list);
}

Json answer_of(const plc::Rendered& made, Json::Object more = {}) {
  more.insert(more.begin(), {"virtual_rows", list_of(made.virtual_rows)});
  more.insert(more.begin(), {"token_ids", list_of(made.token_ids)});
  return Json(more);
}

Json refused() { return Json(Json::Object{{"refused", Json(true)}}); }

class Runtime {
 public:
  explicit Runtime(std::string folder) : folder_(std::move(folder)) {}

  Json answer(const std::string& kind, const Json& given) {
    if (kind == "draws") return draws(given);
    const Shared tokenizer = tokenizer_of(*at(given, "tokenizer").text());
    plc::Encoder encoder(tokenizer);
    if (kind == "tokens") return tokens(given, encoder);
    if (kind == "answer") return answered(given, tokenizer);
    return rendered(kind, given, encoder);
  }

 private:
  Shared tokenizer_of(const std::string& name) {
    Shared& held = tokenizers_[name];
    if (held != nullptr) return held;
    auto opened = plc::Tokenizer::open(folder_ + "/" + name + ".tables");
    if (!opened.ok()) refuse(opened.error().message);
    return held = opened.value();
  }

  static Json tokens(const Json& given, plc::Encoder& encoder) {
    plc::EncodeOptions options;
    options.added = truth(at(given, "markup")) ? plc::AddedTokens::kAll : plc::AddedTokens::kAsCharacters;
    options.opens = truth(at(given, "opens"));
    Ids ids;
    if (!encoder.encode(*at(given, "text").text(), options, ids).ok()) return refused();
    return Json(Json::Object{{"ids", list_of(ids)}});
  }

  static Json answered(const Json& given, const Shared& tokenizer) {
    plc::AnswerText text(plc::source_of(tokenizer), texts_of(at(given, "stops")));
    Texts pieces;
    const Ids ids = ids_of(at(given, "ids"));
    for (const int32_t id : ids) {
      pieces.push_back(text.push(id));
      if (text.stopped()) break;
    }
    pieces.push_back(text.finish());
    return Json(Json::Object{{"pieces", list_of(pieces)},
                             {"stopped", Json(text.stopped())},
                             {"whole", Json(plc::decode(tokenizer, ids, true))}});
  }

  static Json rendered(const std::string& kind, const Json& given, plc::Encoder& encoder) {
    const size_t vocab = encoder.tokenizer().vocabulary();
    auto record = plc::read_task_record(written(at(given, "record")), "mood", static_cast<int64_t>(vocab),
                                        "reading a vector");
    if (!record.ok()) refuse(record.error().message);
    auto parsed = plc::parse_template(record.value());
    if (!parsed.ok()) return refused();
    auto made = plc::Renderer::of(record.value(), parsed.value(), encoder, vocab);
    if (!made.ok()) return refused();
    plc::Renderer& renderer = made.value();
    if (kind == "opening") {
      const auto opening = renderer.opening();
      return opening.ok() ? answer_of(opening.value()) : refused();
    }
    plc::Fields fields;
    for (const auto& [name, value] : *at(given, "fields").object()) {
      plc::FieldValue field = value.text() != nullptr    ? plc::FieldValue(*value.text())
                              : value.whole() != nullptr ? plc::FieldValue::of_whole(*value.whole())
                                                         : plc::FieldValue::of_real(real(value));
      fields.push_back({name, field});
    }
    std::optional<size_t> most;
    if (!at(given, "most").is_null()) most = static_cast<size_t>(whole(at(given, "most")));
    if (kind == "prompt") {
      const auto prompt = renderer.prompt(fields, most);
      return prompt.ok() ? answer_of(prompt.value()) : refused();
    }
    if (kind == "choices") {
      const auto both = renderer.prompt_and_choices(fields, most.value());
      return both.ok() ? answer_of(both.value().prompt, tree_of(*both.value().choices)) : refused();
    }
    if (kind != "spans") refuse("there is no kind " + kind);
    const auto both = renderer.prompt_and_spans(fields, most);
    if (!both.ok()) return refused();
    return answer_of(both.value().prompt, walked(*both.value().spans, ids_of(at(given, "walk"))));
  }

  static Json::Object tree_of(const plc::LabelTrie& trie) {
    Texts texts;
    Json::List allowed;
    for (int32_t node = 0; node < static_cast<int32_t>(trie.nodes()); ++node) {
      texts.emplace_back(trie.text(node));
      Ids next;
      for (const int32_t child : trie.children(node)) next.push_back(trie.tokens()[static_cast<size_t>(child)]);
      allowed.push_back(list_of(next));
    }
    return {{"parents", list_of(trie.parents())}, {"tokens", list_of(trie.tokens())},
            {"ends", list_of(trie.ends())},       {"fixed", Json(trie.fixed())},
            {"texts", list_of(texts)},            {"allowed", Json(allowed)}};
  }

  static Json::Object walked(plc::SpanWalk& walk, const Ids& chosen) {
    Json::List steps;
    Texts texts;
    const auto look = [&] {
      steps.push_back(
          Json(Json::Object{{"allowed", list_of(walk.allowed())}, {"is_span", Json(walk.is_span())}}));
    };
    for (const int32_t id : chosen) {
      look();
      walk.push(id, texts.emplace_back());
    }
    look();
    walk.finish(texts.emplace_back());
    return {{"steps", Json(steps)}, {"texts", list_of(texts)}};
  }

  static Json draws(const Json& given) {
    plc::Sampling sampling;
    for (const auto& [name, value] : *at(given, "sampling").object()) {
      if (name == "seed") sampling.seed = plc::Seed(static_cast<uint64_t>(whole(value)));
      if (name == "temperature") sampling.temperature = real(value);
      if (name == "top_k") sampling.top_k = whole(value);
      if (name == "top_p") sampling.top_p = real(value);
      if (name == "min_p") sampling.min_p = real(value);
      if (name == "repetition_penalty") sampling.repetition_penalty = real(value);
    }
    if (!sampling.check().ok()) return refused();
    std::vector<float> logits;
    for (const Json& each : *at(given, "logits").list()) logits.push_back(static_cast<float>(real(each)));
    std::vector<plc::TokenBias> bias;
    for (const Json& pair : *at(given, "bias").list())
      bias.push_back({static_cast<int32_t>(whole((*pair.list())[0])), static_cast<float>(real((*pair.list())[1]))});
    const Ids seen = ids_of(at(given, "seen")), blocked = ids_of(at(given, "blocked"));
    const Json& only = at(given, "allowed");
    const Ids allowed = only.is_null() ? Ids() : ids_of(only);
    const plc::TokenLimits limits{&bias, &seen, &blocked, only.is_null() ? nullptr : &allowed};
    plc::Random random(sampling.seed);
    Json::List tokens;
    for (int64_t left = whole(at(given, "count")); left > 0; --left) {
      const auto token = plc::next_token(logits.data(), logits.size(), sampling, random, limits);
      tokens.push_back(token ? Json(int64_t{*token}) : Json());
    }
    return Json(Json::Object{{"tokens", Json(tokens)}});
  }

  std::string folder_;
  std::map<std::string, Shared> tokenizers_{};
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) refuse("usage: conformance_program TABLES FILE...");
  Runtime runtime(arguments[1]);
  int differing = 0;
  for (int place = 2; place < count; ++place) {
    std::ifstream in(arguments[place], std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    const auto file = plc::parse_json_file(bytes, std::string("reading ") + arguments[place]);
    if (!file.ok()) refuse(file.error().message);
    if (*at(file.value(), "format").text() != "plc-conformance" || whole(at(file.value(), "version")) != 1)
      refuse("expected version 1 of plc-conformance");
    const Json::List& cases = *at(file.value(), "cases").list();
    for (size_t number = 0; number < cases.size(); ++number) {
      const Json& each = cases[number];
      const std::string found = written(runtime.answer(*at(each, "kind").text(), at(each, "given")));
      const std::string expected = written(at(each, "expected"));
      if (found == expected) continue;
      ++differing;
      std::cout << arguments[place] << ", case " << number << ": found " << found << "; expected " << expected
                << "\n";
    }
    std::cout << arguments[place] << ": " << cases.size() << " cases\n";
  }
  return differing != 0;
}
