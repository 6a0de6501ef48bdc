// Engines and their parts as a program, for the tests beside it.
//
//     engine_program [OPTION=VALUE]...
//
// The options are those of a graph and of an engine, see `read_option`. Reads lines from standard
// input, and answers each with a line; one that is refused is answered with "refused" and why.
// Numbers stand between commas, floats and int64 in memory are hexadecimal.
//
//     open [MODEL]                            the engine: its piece, branches, together
//     prompt NAME TASK ROWS LENGTH PREFIX     a prompt, "-" for no rows or no prefix
//     forget NAME                             ends the memory of a prompt's numbers
//     admit SLOT NAME                         entries of the row
//     share SLOT IDS                          how many of the ids it holds
//     alike SLOT OTHER                        0 or 1
//     step FEED...                            for each feed its token and logits. FEED:
//                                             SLOT:PAST:IDS:WANTED:PARENTS:LOOKED_AT:DRAW, "-" for
//                                             what is left out; "none" looks at no logits. DRAW:
//                                             TEMPERATURE/TOP_K/TOP_P/MIN_P/NOISE
//     clear SLOTS, retire SLOTS               "done"
//     pool COUNT KEEP                         a pool of blocks, for the lines below
//     take | find KEY | name BLOCK KEY | forgetblocks BLOCKS | giveback BLOCKS | idle | counts
//     hash KEY1 KEY2 WORDS                    the sum
//     half FLOATS, bfloat FLOATS              as caches of 16 bits have them
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "block_pool.h"
#include "cache_numbers.h"
#include "keyed_hash.h"
#include "open_engine.h"

namespace {

using plc::BlockKey;
using plc::Feed;

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, at);) parts.push_back(part);
  return parts;
}

template <typename Number = int64_t>
std::vector<Number> numbers(const std::string& text) {
  std::vector<Number> found;
  for (const std::string& part : split(text, ','))
    if (part != "-") found.push_back(static_cast<Number>(std::stoull(part)));
  return found;
}

std::vector<int64_t> places(const std::string& text) {
  std::vector<int64_t> found;
  if (text == "-") return found;
  for (const std::string& part : split(text, ',')) found.push_back(std::stoll(part));
  return found;
}

template <typename Number>
std::vector<Number> memory_of(const std::string& hex) {
  std::vector<unsigned char> bytes;
  if (hex != "-")
    for (size_t k = 0; k + 1 < hex.size(); k += 2)
      bytes.push_back(static_cast<unsigned char>(std::stoi(hex.substr(k, 2), nullptr, 16)));
  std::vector<Number> found(bytes.size() / sizeof(Number));
  if (!found.empty()) std::memcpy(found.data(), bytes.data(), found.size() * sizeof(Number));
  return found;
}

std::string to_hex(const void* memory, size_t size) {
  std::string text;
  for (size_t k = 0; k < size; ++k) {
    const unsigned byte = static_cast<const unsigned char*>(memory)[k];
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

std::string listed(const std::vector<size_t>& all) {
  std::string text;
  for (const size_t each : all) text += (text.empty() ? "" : ",") + std::to_string(each);
  return text;
}

struct Asked {
  std::string model{};
  plc::GraphContract contract{};
  plc::Precision precision{};
  plc::EngineOptions options{};
};

void read_option(const std::string& name, const std::string& value, Asked& asked) {
  plc::GraphContract& c = asked.contract;
  const auto number = [&value] { return std::stoll(value); };
  if (name == "model") asked.model = value;
  else if (name == "layers") c.layers = number();
  else if (name == "kv_heads") c.kv_heads = number();
  else if (name == "head_dim") c.head_dim = number();
  else if (name == "hidden") c.hidden = number();
  else if (name == "vocab") c.vocab = number();
  else if (name == "capacity") c.capacity = number();
  else if (name == "ranks") c.ranks = number();
  else if (name == "prompts") c.prompts = value == "baked" ? plc::PromptsMode::kBaked : plc::PromptsMode::kInput;
  else if (name == "candidates") c.candidates = number();
  else if (name == "sampling_inputs") c.sampling_inputs = split(value, ',');
  else if (name == "rows") c.rows = value == "ragged" ? plc::RowsMode::kRagged : plc::RowsMode::kPadded;
  else if (name == "logit_tiles") c.logit_tiles = value == "1";
  else if (name == "quantization")
    asked.precision.quantization = value == "none" ? plc::Quantization::kNone : plc::Quantization::kInt8;
  else if (name == "prefix_bits") asked.precision.prefix_bits = static_cast<int>(number());
  else if (name == "cache_bits") asked.precision.cache_bits = static_cast<int>(number());
  else if (name == "max_batch") asked.options.max_batch = static_cast<size_t>(number());
  else if (name == "threads") asked.options.threads = static_cast<size_t>(number());
  else if (name == "spin") asked.options.spin = value == "1";
  else if (name == "context_mib") asked.options.context_mib = static_cast<size_t>(number());
  else if (name == "provider") asked.options.provider.name = value;
  else if (name == "library") asked.options.provider.library = value;
  else if (name == "provider_option") asked.options.provider.options.emplace_back(split(value, ':')[0], split(value, ':')[1]);
  else if (name == "onnxruntime") asked.options.onnxruntime = value;
  else std::abort();
}

struct Prompt {
  std::vector<float> rows{}, prefix{};
};

struct State {
  Asked asked{};
  std::map<std::string, plc::EnginePrompt> prompts{};
  std::unique_ptr<plc::Engine> engine{};
  std::unique_ptr<plc::BlockPool> pool{};
};

Feed feed_of(const std::string& text) {
  const std::vector<std::string> parts = split(text, ':');
  Feed feed;
  feed.slot = std::stoul(parts.at(0));
  feed.past = std::stoul(parts.at(1));
  feed.ids = places(parts.at(2));
  feed.wanted = places(parts.at(3));
  feed.parents = places(parts.at(4));
  feed.all_logits = parts.at(5) == "-";
  if (parts.at(5) != "none") feed.looked_at = places(parts.at(5));
  if (parts.at(6) != "-") {
    const std::vector<std::string> draw = split(parts.at(6), '/');
    feed.draw.emplace();
    feed.draw->temperature = memory_of<float>(draw.at(0)).at(0);
    feed.draw->top_k = std::stoll(draw.at(1));
    feed.draw->top_p = memory_of<float>(draw.at(2)).at(0);
    feed.draw->min_p = memory_of<float>(draw.at(3)).at(0);
    feed.draw->noise = memory_of<float>(draw.at(4));
  }
  return feed;
}

std::string refused(const plc::Error& error) { return "refused " + error.message; }

std::string of_engine(const std::vector<std::string>& words, State& state) {
  const std::string& what = words[0];
  if (what == "prompt") {
    auto held = std::make_shared<Prompt>();
    held->rows = memory_of<float>(words.at(3));
    held->prefix = memory_of<float>(words.at(5));
    plc::EnginePrompt prompt;
    prompt.task_id = std::stoll(words.at(2));
    prompt.rows = held->rows.data();
    prompt.virtual_rows = held->rows.size() / static_cast<size_t>(state.asked.contract.hidden);
    prompt.prefix = held->prefix.empty() ? nullptr : held->prefix.data();
    prompt.prefix_length = std::stoul(words.at(4));
    prompt.owner = held;
    state.prompts[words.at(1)] = prompt;
    return "done";
  }
  if (what == "forget") return state.prompts.erase(words.at(1)) == 1 ? "done" : "none";
  if (what == "open") {
    const std::string model = words.size() > 1 ? words[1] : state.asked.model;
    auto opened = plc::open_engine(model, state.asked.contract, state.asked.precision, state.asked.options);
    if (!opened.ok()) return refused(opened.error());
    state.engine = std::move(opened.value());
    const plc::Engine& e = *state.engine;
    return std::to_string(e.piece) + "," + std::to_string(e.branches) + "," + std::to_string(e.together);
  }
  plc::Engine& engine = *state.engine;
  if (what == "admit") {
    const auto held = engine.admit(std::stoul(words.at(1)), state.prompts.at(words.at(2)));
    return held.ok() ? std::to_string(held.value()) : refused(held.error());
  }
  if (what == "share") return std::to_string(engine.share(std::stoul(words.at(1)), places(words.at(2))));
  if (what == "alike") return std::to_string(engine.alike(std::stoul(words.at(1)), std::stoul(words.at(2))));
  if (what == "clear" || what == "retire") {
    if (what == "clear") engine.clear(numbers<size_t>(words.at(1)));
    else engine.retire(numbers<size_t>(words.at(1)));
    return "done";
  }
  std::vector<Feed> feeds;
  for (size_t k = 1; k < words.size(); ++k) feeds.push_back(feed_of(words[k]));
  std::vector<plc::Fed> results;
  const auto done = engine.step(feeds, results);
  if (!done.ok()) return refused(done.error());
  std::string text;
  for (const plc::Fed& fed : results)
    text += (text.empty() ? "" : " ") + std::to_string(fed.token) + ":" +
            to_hex(fed.logits, fed.outputs * engine.vocab * sizeof(float));
  return text;
}

std::string of_parts(const std::vector<std::string>& words, State& state) {
  const std::string& what = words[0];
  const auto key = [&](size_t word) {
    return BlockKey{std::stoull(words.at(word)), std::stoull(words.at(word)) % 3};
  };
  if (what == "hash") {
    plc::KeyedHash hash({std::stoull(words.at(1)), std::stoull(words.at(2))});
    for (const uint64_t word : numbers<uint64_t>(words.at(3))) hash.add(word);
    const plc::Sum128 sum = hash.sum();
    return to_hex(&sum, sizeof sum);
  }
  if (what == "half" || what == "bfloat") {
    const auto from = memory_of<float>(words.at(1));
    std::vector<uint16_t> found(from.size());
    const auto dtype = what == "half" ? plc::Dtype::kFloat16 : plc::Dtype::kBfloat16;
    plc::write_numbers(from.data(), from.size(), dtype, found.data());
    return to_hex(found.data(), found.size() * sizeof(uint16_t));
  }
  if (what == "pool") {
    state.pool = std::make_unique<plc::BlockPool>(std::stoul(words.at(1)), std::stoul(words.at(2)));
    return "done";
  }
  plc::BlockPool& pool = *state.pool;
  if (what == "take") return std::to_string(pool.take());
  if (what == "find") {
    const auto found = pool.find(key(1));
    return found ? std::to_string(*found) : "none";
  }
  if (what == "name") pool.name(std::stoul(words.at(1)), key(2));
  else if (what == "forgetblocks") return listed(pool.forget(numbers<size_t>(words.at(1))));
  else if (what == "giveback") pool.give_back(numbers<size_t>(words.at(1)));
  else if (what == "counts") return listed({pool.kept(), pool.evicted()});
  else if (what == "idle") {
    std::vector<size_t> all;
    for (const auto& [begin, end] : pool.idle()) all.insert(all.end(), {begin, end});
    return listed(all);
  } else {
    std::abort();
  }
  return "done";
}

}  // namespace

int main(int count, char** arguments) {
  State state;
  for (int k = 1; k < count; ++k) {
    const std::string text = arguments[k];
    const size_t equals = text.find('=');
    read_option(text.substr(0, equals), text.substr(equals + 1), state.asked);
  }
  for (std::string line; std::getline(std::cin, line);) {
    const std::vector<std::string> words = split(line, ' ');
    constexpr const char* kOfEngine[] = {"open", "prompt", "forget", "admit", "share", "alike", "step", "clear", "retire"};
    const bool is_of_engine =
        std::any_of(std::begin(kOfEngine), std::end(kOfEngine), [&](const char* name) { return words.at(0) == name; });
    std::cout << (is_of_engine ? of_engine(words, state) : of_parts(words, state)) << '\n';
  }
}
