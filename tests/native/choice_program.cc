// What chooses and writes the tokens of answers as a program, for the tests beside it.
//
//     choice_program [TABLES]
//
// Reads lines from standard input, and answers each with a line. A line is a mode and words; `-` is
// an empty one. Lists stand between commas. Texts are hexadecimal; so are logits (float32) and other
// numbers (float64), as their bytes lie in memory.
//
//     seed DIGITS             begins the noise: "begun", or why not
//     noise COUNT             so many numbers from 0 to 1, and the noise of so many more
//     sums NUMBERS            their sum
//     argmax, likeliest K     LOGITS
//     total LOGITS            the logarithm of the sum of e to each
//     check SAMPLING          "fine", or what is wrong. SAMPLING: temperature, top_k, top_p, penalty,
//                             min_p, no_repeat_ngram
//     next SAMPLING LOGITS BIAS SEEN BLOCKED ALLOWED UNFIT   the token, or "none"
//     ranked SAMPLING LOGITS  tokens, and their numbers
//     graph SAMPLING CANDIDATES INPUTS                       what a graph is given, or "none"
//     answer STOPS IDS        pieces, what finishing gives, and whether it stopped
//     bad WORDS IDS           for each id 1 if it may come; those that may are pushed
//     token ID                its name
//     log_probs ID COUNT LOGITS
//     bias TEXTS NUMBERS TOKENS     ids and numbers, or why not. TOKENS: `open` for none
//     ngrams SIZE PROMPT IDS VOCAB  what is blocked at first, and after each id
//     costs TOKENS SECONDS    the cost of a token after each step
//     lookup PROMPT COMMANDS  see `looked_up`
//     labels BEST MOST PARENTS TOKENS ENDS VOCAB LOGITS      MOST 0: one by one. What was looked at
//     schedule SLOTS PIECE BUDGET RUSH COMMANDS              see `scheduled`
//     time COMMANDS           deadlines: "set ID AT", "remove ID", "over AT", with `_` for blanks
//     speed                   microseconds of some work on 49,152 logits
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "answer_text.h"
#include "blocking.h"
#include "hex.h"
#include "label_search.h"
#include "log_probs.h"
#include "lookup.h"
#include "random.h"
#include "sampling.h"
#include "scheduler.h"
#include "step_costs.h"
#include "tokenizer.h"

namespace {

using Ids = std::vector<int32_t>;
using Shared = std::shared_ptr<const plc::Tokenizer>;

[[noreturn]] void refuse(const std::string& message, int code) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(code);
}

template <typename Number>
std::vector<Number> to_numbers(const std::string& text) {
  const std::string bytes = text == "-" ? "" : from_hex(text);
  std::vector<Number> numbers(bytes.size() / sizeof(Number));
  if (!numbers.empty()) std::memcpy(numbers.data(), bytes.data(), bytes.size());
  return numbers;
}

template <typename Number>
std::string from_numbers(const std::vector<Number>& numbers) {
  return to_hex(std::string(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number)));
}

std::string from_number(double number) { return from_numbers(std::vector<double>{number}); }

std::vector<std::string> to_words(const std::string& text, char between = ',') {
  std::vector<std::string> words;
  if (text == "-") return words;
  std::istringstream in(text);
  for (std::string each; std::getline(in, each, between);) words.push_back(each);
  return words;
}

Ids to_ids(const std::string& text) {
  Ids ids;
  for (const std::string& each : to_words(text)) ids.push_back(std::stoi(each));
  return ids;
}

std::vector<std::string> to_texts(const std::string& text) {
  std::vector<std::string> texts;
  for (const std::string& each : to_words(text)) texts.push_back(from_hex(each));
  return texts;
}

template <typename Number>
std::string listed(const std::vector<Number>& numbers) {
  std::string text;
  for (const Number number : numbers) text += (text.empty() ? "" : ",") + std::to_string(number);
  return text.empty() ? "-" : text;
}

plc::Sampling to_sampling(const std::string& text) {
  const std::vector<std::string> parts = to_words(text);
  const auto number = [&](size_t place) { return to_numbers<double>(parts.at(place)).at(0); };
  plc::Sampling sampling;
  sampling.temperature = number(0);
  sampling.top_k = std::stoll(parts.at(1));
  sampling.top_p = number(2);
  sampling.repetition_penalty = number(3);
  sampling.min_p = number(4);
  sampling.no_repeat_ngram = std::stoll(parts.at(5));
  return sampling;
}

bool is_not_in(const void* ids, int32_t token) {
  for (const int32_t id : *static_cast<const Ids*>(ids))
    if (id == token) return false;
  return true;
}

// Commands: `p` and how many are of use proposes, by what the costs say: the draft. `c` and a token
// chooses it, `n` and two numbers notes a draft.
std::string looked_up(const std::string& prompt, const std::string& commands) {
  Ids seen = to_ids(prompt);
  plc::LookupDrafts drafts;
  std::string answer;
  for (const std::string& each : to_words(commands)) {
    std::istringstream in(each.substr(1));
    if (each[0] == 'p') {
      size_t most;
      std::string cost;
      in >> most;
      in.ignore(1);
      in >> cost;
      answer += listed(drafts.propose(seen, most, to_numbers<double>(cost).at(0))) + ";";
    } else if (each[0] == 'c') {
      seen.push_back(std::stoi(each.substr(1)));
      drafts.chosen(seen.back());
    } else {
      size_t drafted, taken;
      in >> drafted;
      in.ignore(1);
      in >> taken;
      drafts.note(drafted, taken);
    }
  }
  return answer.empty() ? "-" : answer;
}

std::string labelled(std::istringstream& in) {
  std::string parents, tokens, ends, hex;
  bool best;
  size_t most, vocab;
  in >> best >> most >> parents >> tokens >> ends >> vocab >> hex;
  const Ids parent_ids = to_ids(parents), token_ids = to_ids(tokens), end_ids = to_ids(ends);
  const std::vector<float> logits = to_numbers<float>(hex);
  std::vector<std::string> labels;
  for (size_t k = 0; k < end_ids.size(); ++k) labels.push_back(std::to_string(k));
  const auto tree = plc::LabelTrie::of_parts(labels, parent_ids, token_ids, end_ids, true);
  plc::LabelSearch search(tree.value(), best);
  const auto look = [&](int32_t node) {
    search.look(node, logits.data() + static_cast<size_t>(node) * vocab, vocab);
  };
  std::string answer;
  look(0);
  Ids path;
  while (true) {
    if (most > 0) {
      const auto group = search.group(most);
      if (!group) break;
      answer += listed(group->nodes) + "/" + listed(group->wanted) + ";";
      for (const int32_t node : group->wanted) look(node);
    } else {
      const auto next = search.next_node(path);
      if (!next) break;
      answer += std::to_string(*next) + ";";
      look(*next);
      path.clear();
      for (int32_t node = *next; node > 0; node = parent_ids[static_cast<size_t>(node)])
        path.insert(path.begin(), node);
    }
  }
  const auto likeliest = search.best_label();
  answer += " " + std::to_string(likeliest->label) + " " + from_number(likeliest->log_prob);
  if (best) return answer;
  std::vector<double> shares, logs;
  for (const plc::LabelShare& score : search.scores()) {
    shares.push_back(score.probability);
    logs.push_back(score.log_prob);
  }
  return answer + " " + from_numbers(shares) + " " + from_numbers(logs);
}

// Every fifth request begins like every other fifth one.
bool are_fifths(void* context, size_t slot, size_t other) {
  const auto& held = *static_cast<const std::vector<uint64_t>*>(context);
  return held[slot] % 5 == 0 && held[other] % 5 == 0;
}

// Commands: `s` submits a request (number, tokens, priority), `w` withdraws one, `a` admits, `b` says
// which were not begun, `h` shortens (slot, tokens), `k` asks (slot, tokens), `f` finishes a slot, `t`
// is a turn, `n` says how many there are.
std::string scheduled(std::istringstream& in) {
  size_t slots, piece, budget, rush;
  std::string commands, answer;
  in >> slots >> piece >> budget >> rush >> commands;
  plc::Scheduler scheduler(slots, piece, budget, rush);
  std::vector<uint64_t> held(slots);
  const auto shown = [](const std::vector<plc::Held>& found) {
    std::string text;
    for (const auto& [slot, request] : found)
      text += std::to_string(slot) + "=" + std::to_string(request) + ",";
    return text;
  };
  for (const std::string& command : to_words(commands)) {
    std::vector<long> given;
    for (const std::string& each : to_words(command.substr(1), ':')) given.push_back(std::stol(each));
    const auto number = [&](size_t place) { return static_cast<size_t>(given.at(place)); };
    switch (command[0]) {
      case 's':
        scheduler.submit(number(0), number(1), given.at(2));
        break;
      case 'w': {
        const auto slot = scheduler.withdraw(number(0));
        answer += (slot ? std::to_string(*slot) : "none") + ";";
        break;
      }
      case 'a': {
        const auto admitted = scheduler.admit();
        for (const auto& [slot, request] : admitted) held[slot] = request;
        answer += shown(admitted) + ";";
        break;
      }
      case 'b':
        answer += shown(scheduler.not_begun()) + ";";
        break;
      case 'h':
        scheduler.shorten(number(0), number(1));
        break;
      case 'k':
        scheduler.ask(number(0), number(1));
        break;
      case 'f':
        scheduler.finish({number(0)});
        break;
      case 't':
        for (const plc::FedTokens& fed : scheduler.turn(are_fifths, &held))
          answer += std::to_string(fed.slot) + "=" + std::to_string(fed.request) + "x" +
                    std::to_string(fed.tokens) + ",";
        answer += ";";
        break;
      default:
        answer += std::to_string(scheduler.size()) + "/" + std::to_string(scheduler.running()) + ";";
    }
  }
  return answer;
}

std::string timed(const std::string& commands) {
  plc::Deadlines deadlines;
  std::string answer;
  for (const std::string& command : to_words(commands)) {
    const std::vector<std::string> words = to_words(command, '_');
    if (words[0] == "set") deadlines.set(std::stoull(words.at(1)), std::stod(words.at(2)));
    if (words[0] == "remove") deadlines.remove(std::stoull(words.at(1)));
    if (words[0] == "over") answer += listed(deadlines.overdue(std::stod(words.at(1)))) + ";";
  }
  return answer + (deadlines.empty() ? "empty" : "some");
}

template <typename Work>
double microseconds(Work work) {
  double best = 1e9;
  for (int round = 0; round < 20; ++round) {
    const auto began = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - began;
    best = std::min(best, took.count());
  }
  return best;
}

std::string speed() {
  plc::Random random(plc::Seed(3));
  std::vector<float> logits(49152);
  for (float& logit : logits) logit = static_cast<float>(3 * random.gumbel());
  volatile size_t kept = 0;
  plc::Sampling all;
  all.temperature = 1.0;
  plc::Sampling some = all;
  some.top_k = 50;
  const float* at = logits.data();
  const size_t count = logits.size();
  std::string answer;
  const auto note = [&](const char* name, double found) {
    answer += std::string(name) + "=" + std::to_string(found) + " ";
  };
  const auto drawn = [&](const plc::Sampling& sampling) {
    return static_cast<size_t>(*plc::next_token(at, count, sampling, random));
  };
  note("argmax", microseconds([&] { kept = plc::argmax(at, count); }));
  note("top_50", microseconds([&] { kept = plc::likeliest(at, count, 50).size(); }));
  note("all_in_order", microseconds([&] { kept = plc::likeliest(at, count).size(); }));
  note("log_total", microseconds([&] { kept = static_cast<size_t>(plc::log_total(at, count)); }));
  note("draw_of_50", microseconds([&] { kept = drawn(some); }));
  note("draw_of_all", microseconds([&] { kept = drawn(all); }));
  return answer;
}

struct Worker {
  Shared tokenizer{};
  plc::Random random{plc::Seed()};

  std::string next(std::istringstream& in) {
    std::string options, hex, bias, seen, blocked, allowed, unfit;
    in >> options >> hex >> bias >> seen >> blocked >> allowed >> unfit;
    const std::vector<float> logits = to_numbers<float>(hex);
    std::vector<plc::TokenBias> biases;
    for (const std::string& each : to_words(bias)) {
      const std::vector<std::string> pair = to_words(each, ':');
      biases.push_back({std::stoi(pair.at(0)), static_cast<float>(to_numbers<double>(pair.at(1)).at(0))});
    }
    const Ids seen_ids = to_ids(seen), blocked_ids = to_ids(blocked), allowed_ids = to_ids(allowed);
    const Ids unfit_ids = to_ids(unfit);
    plc::TokenLimits limits{&biases, &seen_ids, &blocked_ids, allowed == "-" ? nullptr : &allowed_ids};
    if (unfit != "-") {
      limits.fits = is_not_in;
      limits.context = &unfit_ids;
    }
    const auto token = plc::next_token(logits.data(), logits.size(), to_sampling(options), random, limits);
    return token ? std::to_string(*token) : "none";
  }

  std::string answered(const std::string& stops, const std::string& ids) {
    plc::AnswerText text(plc::source_of(tokenizer), to_texts(stops));
    std::string answer, all;
    for (const int32_t id : to_ids(ids)) {
      const std::string piece = text.push(id);
      all += piece;
      answer += to_hex(piece) + ",";
      if (text.stopped()) break;
    }
    const std::string rest = text.finish();
    if (all + rest != text.text()) refuse("the pieces are not the text", 1);
    return answer + to_hex(rest) + (text.stopped() ? " stopped" : " open");
  }

  std::string biased(const std::string& texts, const std::string& numbers, const std::string& tokens) {
    std::vector<std::pair<std::string, double>> bias;
    const std::vector<std::string> keys = to_texts(texts);
    const std::vector<double> values = to_numbers<double>(numbers);
    for (size_t k = 0; k < keys.size(); ++k) bias.push_back({keys[k], values.at(k)});
    const Ids ids = tokens == "open" ? Ids() : to_ids(tokens);
    const auto found = plc::bias_by_token(bias, tokens == "open" ? nullptr : &ids, tokenizer, "serving");
    if (!found.ok()) return "refused " + to_hex(found.error().message);
    std::string answer = "bias ";
    for (const plc::TokenBias& each : found.value())
      answer += std::to_string(each.token) + ":" + from_number(each.number) + ",";
    return answer;
  }

  std::string answer(const std::string& line) {
    std::istringstream in(line);
    std::string mode, first, second, third, fourth;
    in >> mode;
    if (mode == "next") return next(in);
    if (mode == "labels") return labelled(in);
    if (mode == "schedule") return scheduled(in);
    if (mode == "speed") return speed();
    in >> first >> second >> third >> fourth;
    if (mode == "seed") {
      const auto seed = plc::Seed::read(first);
      if (!seed.ok()) return seed.error().message;
      random = plc::Random(seed.value());
      return "begun";
    }
    if (mode == "noise") {
      std::vector<double> numbers(2 * std::stoul(first));
      for (size_t k = 0; k < numbers.size(); ++k)
        numbers[k] = k < numbers.size() / 2 ? random.uniform() : random.gumbel();
      return from_numbers(numbers);
    }
    if (mode == "sums") {
      const std::vector<double> numbers = to_numbers<double>(first);
      return from_number(plc::pairwise_sum(numbers.data(), numbers.size()));
    }
    if (mode == "argmax" || mode == "total") {
      const std::vector<float> logits = to_numbers<float>(first);
      if (mode == "total") return from_number(plc::log_total(logits.data(), logits.size()));
      return std::to_string(plc::argmax(logits.data(), logits.size()));
    }
    if (mode == "likeliest") {
      const std::vector<float> logits = to_numbers<float>(second);
      return listed(plc::likeliest(logits.data(), logits.size(), std::stoull(first)));
    }
    if (mode == "check") {
      const plc::Status done = to_sampling(first).check();
      return done.ok() ? "fine" : to_hex(done.error().message);
    }
    if (mode == "ranked") {
      const std::vector<float> logits = to_numbers<float>(second);
      const plc::Ranked found = plc::ranked(logits.data(), logits.size(), to_sampling(first));
      return listed(found.tokens) + " " + from_numbers(found.logs);
    }
    if (mode == "graph") {
      const auto draw = plc::draw_in_graph(to_sampling(first), random, std::stoul(second), to_words(third));
      if (!draw) return "none";
      const std::vector<float> numbers{draw->temperature, draw->top_p, draw->min_p};
      return std::to_string(draw->top_k) + " " + from_numbers(numbers) + " " + from_numbers(draw->noise);
    }
    if (mode == "answer") return answered(first, second);
    if (mode == "bad") {
      plc::BadWords bad(tokenizer, to_texts(first));
      std::string answers;
      for (const int32_t id : to_ids(second)) {
        const bool allows = bad.allows(id);
        answers += allows ? "1" : "0";
        if (allows) bad.push(id);
      }
      return answers;
    }
    if (mode == "token") {
      const int32_t id = std::stoi(first);
      return to_hex(plc::token_name(*tokenizer, id));
    }
    if (mode == "log_probs") {
      const std::vector<float> logits = to_numbers<float>(third);
      std::vector<int32_t> tokens{std::stoi(first)};
      const size_t count = std::stoul(second);
      if (count > 0)
        for (const int32_t each : plc::likeliest(logits.data(), logits.size(), count)) tokens.push_back(each);
      const double total = plc::log_total(logits.data(), logits.size());
      std::string answer;
      for (const int32_t each : tokens)
        answer += std::to_string(each) + ":" +
                  from_number(logits[static_cast<size_t>(each)] - total) + ",";
      return answer;
    }
    if (mode == "bias") return biased(first, second, third);
    if (mode == "ngrams") {
      std::vector<int64_t> prompt;
      for (const int32_t id : to_ids(second)) prompt.push_back(id);
      plc::Ngrams ngrams(std::stoul(first), prompt);
      const size_t vocab = std::stoul(fourth);
      std::string answer = listed(ngrams.blocked(vocab));
      for (const int32_t id : to_ids(third)) {
        ngrams.push(id);
        answer += ";" + listed(ngrams.blocked(vocab));
      }
      return answer;
    }
    if (mode == "costs") {
      plc::StepCosts costs;
      const std::vector<double> seconds = to_numbers<double>(second);
      std::vector<double> found{costs.of_token()};
      const Ids tokens = to_ids(first);
      for (size_t k = 0; k < tokens.size(); ++k) {
        costs.note(static_cast<size_t>(tokens[k]), seconds.at(k));
        found.push_back(costs.of_token());
      }
      return from_numbers(found);
    }
    if (mode == "lookup") return looked_up(first, second);
    if (mode == "time") return timed(first);
    refuse("no such line: " + line.substr(0, 80), 2);
  }
};

}  // namespace

int main(int count, char** arguments) {
  Worker worker;
  if (count > 1) {
    const auto opened = plc::Tokenizer::open(arguments[1]);
    if (!opened.ok()) refuse(opened.error().message, 1);
    worker.tokenizer = opened.value();
  }
  for (std::string line; std::getline(std::cin, line);) std::printf("%s\n", worker.answer(line).c_str());
  return 0;
}
