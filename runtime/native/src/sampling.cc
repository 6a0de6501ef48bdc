#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "field_value.h"
#include "words.h"

namespace plc {
namespace {

constexpr float kLeast = -std::numeric_limits<float>::infinity();

// What is looked at together. The compilers make one instruction of each operation on it.
typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourTruths __attribute__((vector_size(16)));

Four four_at(const float* place) {
  Four four;
  std::memcpy(&four, place, sizeof four);
  return four;
}

bool any(FourTruths truths) {
  uint64_t halves[2];
  std::memcpy(halves, &truths, sizeof halves);
  return (halves[0] | halves[1]) != 0;
}

// Numbers of 64 bits which, in ascending order, are tokens from the highest score to the lowest,
// equal ones by id. For scores that are numbers.
uint64_t key_of(float score, size_t token) {
  const float plain = score + 0.0f;  // of minus zero, zero
  uint32_t bits;
  std::memcpy(&bits, &plain, sizeof bits);
  const uint32_t descending = (bits & 0x80000000u) != 0 ? bits : ~(bits | 0x80000000u);
  return uint64_t{descending} << 32 | token;
}

void sort_keys(std::vector<uint64_t>& keys) {
  if (keys.size() < 2048) {
    std::sort(keys.begin(), keys.end());
    return;
  }
  // By the score's bits, 11 at a time from the lowest; equal ones stay in the order of tokens.
  constexpr unsigned kBits = 11, kPasses = 3;
  constexpr uint64_t kMask = (1u << kBits) - 1;
  std::vector<uint64_t> other(keys.size());
  for (unsigned pass = 0; pass < kPasses; ++pass) {
    const unsigned shift = 32 + pass * kBits;
    size_t starts[kMask + 2] = {};
    for (const uint64_t key : keys) ++starts[(key >> shift & kMask) + 1];
    for (size_t digit = 1; digit <= kMask; ++digit) starts[digit] += starts[digit - 1];
    for (const uint64_t key : keys) other[starts[key >> shift & kMask]++] = key;
    keys.swap(other);
  }
}

// All tokens whose scores are numbers, in order.
std::vector<uint64_t> sorted_keys(const float* scores, size_t count) {
  std::vector<uint64_t> keys;
  keys.reserve(count);
  for (size_t token = 0; token < count; ++token)
    if (scores[token] == scores[token]) keys.push_back(key_of(scores[token], token));
  sort_keys(keys);
  return keys;
}

// The same of a few, where all scores are numbers: keeps up to twice as many as are wanted, and the
// score that a further one must be above.
std::vector<uint64_t> few_keys(const float* scores, size_t count, size_t wanted) {
  constexpr size_t kTogether = 16;
  const size_t most = 2 * wanted + 64;
  std::vector<uint64_t> keys;
  keys.reserve(most);
  float bound = kLeast;
  bool is_bounded = false;
  const auto halve = [&] {
    const auto last = keys.begin() + static_cast<std::ptrdiff_t>(wanted - 1);
    std::nth_element(keys.begin(), last, keys.end());
    bound = scores[static_cast<uint32_t>(*last)];
    is_bounded = true;
    keys.resize(wanted);
  };
  const auto look = [&](size_t token) {
    // One that is equal to the bound has a larger id than those that are kept.
    if (is_bounded && !(scores[token] > bound)) return;
    keys.push_back(key_of(scores[token], token));
    if (keys.size() == most) halve();
  };
  size_t token = 0;
  for (; token + kTogether <= count; token += kTogether) {
    if (is_bounded) {
      const float* at = scores + token;
      const Four bounds = {bound, bound, bound, bound};
      const FourTruths above = (four_at(at) > bounds) | (four_at(at + 4) > bounds) |
                               (four_at(at + 8) > bounds) | (four_at(at + 12) > bounds);
      if (!any(above)) continue;
    }
    for (size_t k = 0; k < kTogether; ++k) look(token + k);
  }
  for (; token < count; ++token) look(token);
  if (keys.size() > wanted) halve();
  std::sort(keys.begin(), keys.end());
  return keys;
}

struct Choice {
  size_t token;
  Ranked order{};               // empty where no noise was drawn
  std::vector<double> drawn{};  // logs and noise, in this order
};

size_t place_of_largest(const std::vector<double>& numbers) {
  size_t best = 0;
  for (size_t place = 1; place < numbers.size(); ++place)
    if (numbers[place] > numbers[best]) best = place;
  return best;
}

// None where no score is a number.
std::optional<Choice> choose(const float* scores, size_t count, const Sampling& sampling, Random& random) {
  if (count == 0) return std::nullopt;
  if (sampling.temperature == 0.0) return Choice{argmax(scores, count)};
  Choice choice{0, ranked(scores, count, sampling)};
  if (choice.order.tokens.empty()) return std::nullopt;
  choice.drawn = choice.order.logs;
  for (double& number : choice.drawn) number += random.gumbel();
  choice.token = static_cast<size_t>(choice.order.tokens[place_of_largest(choice.drawn)]);
  return choice;
}

// The first token that fits, in the order in which they would be taken.
std::optional<int32_t> first_that_fits(const float* scores, size_t count, const Choice& choice,
                                       const TokenLimits& limits) {
  const auto comes = [&](int32_t token) {
    return scores[token] > kLeast && limits.fits(limits.context, token);
  };
  std::vector<size_t> places(choice.drawn.size());
  for (size_t place = 0; place < places.size(); ++place) places[place] = place;
  std::stable_sort(places.begin(), places.end(),
                   [&](size_t left, size_t right) { return choice.drawn[left] > choice.drawn[right]; });
  for (const size_t place : places)
    if (comes(choice.order.tokens[place])) return choice.order.tokens[place];
  for (const int32_t token : likeliest(scores, count))
    if (comes(token)) return token;
  return std::nullopt;
}

// Each token once: all are read before one is written.
void penalise(std::vector<float>& scores, const std::vector<int32_t>& seen, double penalty) {
  const float rounded = static_cast<float>(penalty);
  std::vector<float> found;
  found.reserve(seen.size());
  for (const int32_t token : seen) {
    const float score = scores[static_cast<size_t>(token)];
    found.push_back(score > 0 ? score / rounded : score * rounded);
  }
  for (size_t k = 0; k < seen.size(); ++k) scores[static_cast<size_t>(seen[k])] = found[k];
}

template <typename Item>
bool has(const std::vector<Item>* items) {
  return items != nullptr && !items->empty();
}

}  // namespace

Status Sampling::check() const {
  // A comparison with NaN does not hold, so NaN is refused as well.
  const double most = std::numeric_limits<double>::max();
  std::vector<std::string> problems;
  const auto expect = [&](bool holds, const char* name, const std::string& number, const char* expected) {
    if (!holds) problems.push_back(joined({name, " ", number, ", expected ", expected}));
  };
  expect(temperature >= 0 && temperature <= most, "temperature", written(temperature),
         "a finite number, 0 or more");
  expect(top_k >= 0, "top_k", std::to_string(top_k), "a whole number, 0 or more");
  expect(top_p > 0 && top_p <= 1, "top_p", written(top_p), "a number above 0, at most 1");
  expect(repetition_penalty >= 0.001 && repetition_penalty <= 1000, "repetition_penalty",
         written(repetition_penalty), "a number from 0.001 to 1000");
  expect(min_p >= 0 && min_p <= 1, "min_p", written(min_p), "a number from 0 to 1");
  expect(no_repeat_ngram >= 0, "no_repeat_ngram", std::to_string(no_repeat_ngram),
         "a whole number, 0 or more");
  for (const auto& [text, number] : logit_bias)
    expect(number >= -100 && number <= 100, "logit_bias", joined({"'", text, "': ", written(number)}),
           "numbers from -100 to 100 by the texts of tokens");
  if (problems.empty()) return {};
  std::string message = "reading the sampling options: ";
  if (problems.size() == 1) return Error{ErrorCode::kArgument, message + problems[0] + "."};
  append({problems.size(), " problems:"}, message);
  constexpr size_t kShown = 20;
  for (size_t k = 0; k < std::min(problems.size(), kShown); ++k) append({"\n  - ", problems[k]}, message);
  if (problems.size() > kShown) append({"\n  - and ", problems.size() - kShown, " more"}, message);
  return Error{ErrorCode::kArgument, message + "."};
}

std::optional<int32_t> next_token(const float* logits, size_t vocab, const Sampling& sampling, Random& random,
                                  const TokenLimits& limits) {
  const std::vector<int32_t>* allowed = limits.allowed;
  if (allowed != nullptr && allowed->size() == 1) {
    pass_over(sampling, random);
    return allowed->front();
  }
  const float* scores = logits;
  std::vector<float> changed;
  const auto change = [&]() -> std::vector<float>& {
    if (changed.empty()) changed.assign(logits, logits + vocab);
    scores = changed.data();
    return changed;
  };
  if (has(limits.bias))
    for (const TokenBias& bias : *limits.bias) change()[static_cast<size_t>(bias.token)] += bias.number;
  if (sampling.repetition_penalty != 1.0 && has(limits.seen))
    penalise(change(), *limits.seen, sampling.repetition_penalty);

  if (allowed != nullptr) {
    std::vector<int32_t> ids = *allowed;
    std::sort(ids.begin(), ids.end());
    std::vector<float> theirs;
    for (const int32_t id : ids) theirs.push_back(scores[id]);
    const std::optional<Choice> choice = choose(theirs.data(), theirs.size(), sampling, random);
    if (!choice) return std::nullopt;
    return ids[choice->token];
  }
  if (has(limits.blocked)) {
    const std::vector<int32_t>& blocked = *limits.blocked;
    const size_t largest = argmax(scores, vocab);
    // The likeliest token is the same without those that are blocked, unless it is one of them.
    const bool is_plain = sampling.temperature == 0.0 && limits.fits == nullptr;
    const auto found = std::find(blocked.begin(), blocked.end(), static_cast<int32_t>(largest));
    if (!is_plain || found != blocked.end())
      for (const int32_t id : blocked) change()[static_cast<size_t>(id)] = kLeast;
    if (scores[argmax(scores, vocab)] == kLeast) return std::nullopt;
  }
  const std::optional<Choice> choice = choose(scores, vocab, sampling, random);
  if (!choice) return std::nullopt;
  const int32_t token = static_cast<int32_t>(choice->token);
  if (limits.fits == nullptr || limits.fits(limits.context, token)) return token;
  return first_that_fits(scores, vocab, *choice, limits);
}

void pass_over(const Sampling& sampling, Random& random) {
  if (sampling.temperature != 0.0) random.uniform();
}

std::optional<GraphDraw> draw_in_graph(const Sampling& sampling, Random& random, size_t candidates,
                                       const std::vector<std::string>& inputs) {
  const auto takes = [&](const char* name) {
    return std::find(inputs.begin(), inputs.end(), name) != inputs.end();
  };
  const bool is_able =
      candidates > 0 && sampling.repetition_penalty == 1.0 && sampling.no_repeat_ngram == 0 &&
      (sampling.temperature == 0.0 || takes("temperature")) && (sampling.top_k == 0 || takes("top_k")) &&
      (sampling.top_p == 1.0 || takes("top_p")) && (sampling.min_p == 0.0 || takes("min_p"));
  if (!is_able) return std::nullopt;
  if (sampling.temperature == 0.0) return GraphDraw{};
  // What a float32 can hold without rounding it to 0 or to infinity.
  const double least = std::numeric_limits<float>::min(), most = std::numeric_limits<float>::max();
  if (sampling.top_k <= 0 || static_cast<uint64_t>(sampling.top_k) > candidates ||
      !(sampling.temperature >= least && sampling.temperature <= most))
    return std::nullopt;
  GraphDraw draw{static_cast<float>(sampling.temperature), sampling.top_k, static_cast<float>(sampling.top_p),
                 static_cast<float>(sampling.min_p)};
  draw.noise.resize(static_cast<size_t>(sampling.top_k));
  for (float& number : draw.noise) number = static_cast<float>(random.gumbel());
  return draw;
}

// By blocks: the largest of each is found without looking where it stands.
size_t argmax(const float* scores, size_t count) {
  constexpr size_t kBlock = 1024;
  float best = kLeast;
  size_t best_block = 0;
  size_t start = 0;
  for (; start + kBlock <= count; start += kBlock) {
    Four most[4];
    FourTruths no_numbers = {};
    for (size_t k = 0; k < 4; ++k) most[k] = four_at(scores + start + 4 * k);
    for (size_t at = start; at < start + kBlock; at += 16) {
      for (size_t k = 0; k < 4; ++k) {
        const Four four = four_at(scores + at + 4 * k);
        no_numbers |= four != four;
        most[k] = four > most[k] ? four : most[k];
      }
    }
    if (any(no_numbers)) {
      while (scores[start] == scores[start]) ++start;
      return start;
    }
    float lanes[16];
    std::memcpy(lanes, most, sizeof lanes);
    const float largest = *std::max_element(lanes, lanes + 16);
    if (largest > best) {
      best = largest;
      best_block = start;
    }
  }
  size_t found = best_block;
  if (start > 0)
    while (scores[found] != best) ++found;
  for (size_t at = start; at < count; ++at) {
    if (scores[at] != scores[at]) return at;
    if (scores[at] > scores[found]) found = at;
  }
  return found;
}

std::vector<int32_t> likeliest(const float* scores, size_t count, uint64_t top_k) {
  size_t wanted = top_k == 0 || top_k > count ? count : static_cast<size_t>(top_k);
  std::vector<uint64_t> keys;
  if (count == 0) return {};
  if (wanted < count / 8 && scores[argmax(scores, count)] == scores[argmax(scores, count)]) {
    keys = few_keys(scores, count, wanted);
  } else {
    keys = sorted_keys(scores, count);
    const size_t no_numbers = count - keys.size();
    if (no_numbers >= wanted) return {};
    // As far as the score of the last one that is wanted goes on.
    const uint64_t last = keys[wanted - no_numbers - 1] | 0xFFFFFFFFu;
    const auto end = std::upper_bound(keys.begin(), keys.end(), last);
    keys.resize(std::min(wanted, static_cast<size_t>(end - keys.begin())));
  }
  std::vector<int32_t> tokens(keys.size());
  for (size_t k = 0; k < keys.size(); ++k) tokens[k] = static_cast<int32_t>(static_cast<uint32_t>(keys[k]));
  return tokens;
}

Ranked ranked(const float* scores, size_t count, const Sampling& sampling) {
  Ranked found{likeliest(scores, count, static_cast<uint64_t>(sampling.top_k)), {}};
  const size_t size = found.tokens.size();
  if (size == 0) return found;
  found.logs.resize(size);
  std::vector<double> of_first(size);
  const double first = scores[found.tokens[0]];
  for (size_t k = 0; k < size; ++k) {
    found.logs[k] = (scores[found.tokens[k]] - first) / sampling.temperature;
    of_first[k] = std::exp(found.logs[k]);
  }
  const double total = pairwise_sum(of_first.data(), size);
  double sum = 0;
  for (size_t k = 0; k < size; ++k) {
    const double probability = of_first[k] / total;
    sum += probability;
    // It stays if those before it have not reached top_p yet: the first always does.
    if (!(sum - probability < sampling.top_p && of_first[k] >= sampling.min_p))
      found.logs[k] = -std::numeric_limits<double>::infinity();
  }
  return found;
}

double pairwise_sum(const double* numbers, size_t count) {
  if (count > 128) {
    size_t half = count / 2;
    half -= half % 8;
    return pairwise_sum(numbers, half) + pairwise_sum(numbers + half, count - half);
  }
  double sum = 0;
  size_t at = 0;
  if (count >= 8) {
    double parts[8];
    for (; at < 8; ++at) parts[at] = numbers[at];
    for (; at + 8 <= count; at += 8)
      for (size_t k = 0; k < 8; ++k) parts[k] += numbers[at + k];
    sum = ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
  }
  for (; at < count; ++at) sum += numbers[at];
  return sum;
}

}  // namespace plc
