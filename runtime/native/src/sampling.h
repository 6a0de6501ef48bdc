// Logits to the next token, one row at a time (docs/artifact-format.md, "Choosing a token").
//
// Order: bias, repetition penalty, blocked or allowed tokens, then greedy or temperature, top-k,
// top-p, min-p. Of these the first token comes that the answer's text allows. A draw is the largest
// of logit plus noise, the noise indexed by rank: a graph that is handed the same noise makes the
// same draw. (pl_compile/config/sampling.py and runtime/sampling.py are the same in Python.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"
#include "random.h"
#include "result.h"

namespace plc {

// How a token is chosen from its logits. A caller's number is checked by `check` before it is used.
struct Sampling {
  double temperature = 0.0;  // 0 takes the likeliest token
  int64_t top_k = 0;         // only so many of the likeliest tokens; 0 for all
  double top_p = 1.0;        // only the likeliest tokens that together reach this probability
  double repetition_penalty = 1.0;
  Seed seed{};
  double min_p = 0.0;  // only tokens at least this times as probable as the likeliest one
  // Of a closed set of answers: what is added to logits, by the texts of tokens, each once.
  std::vector<std::pair<std::string, double>> logit_bias{};
  int64_t no_repeat_ngram = 0;  // no sequence of so many tokens stands twice; 0 for off

  // Names every number that is not in its range.
  Status check() const;
};

struct TokenBias {
  int32_t token;
  float number;
};

// What may come next, and what is changed before the choice. Null where there is nothing; all
// tokens are ids of the vocabulary.
struct TokenLimits {
  const std::vector<TokenBias>* bias = nullptr;   // no token twice
  const std::vector<int32_t>* seen = nullptr;     // real tokens so far, for the penalty
  const std::vector<int32_t>* blocked = nullptr;  // they may not come
  const std::vector<int32_t>* allowed = nullptr;  // the only ones, no token twice; overrides the others
  bool (*fits)(const void* context, int32_t token) = nullptr;  // whether a token may come
  const void* context = nullptr;                               // what `fits` is given
};

// None where no token may come.
std::optional<int32_t> next_token(const float* logits, size_t vocab, const Sampling& sampling, Random& random,
                                  const TokenLimits& limits = {});

// Leaves a row's source of noise as far along as choosing the only token that may come.
void pass_over(const Sampling& sampling, Random& random);

// What a graph needs to choose as `next_token` would; none where it cannot. The noise is as far
// along afterwards as after `next_token`. `candidates`: the likeliest tokens that the graph looks
// at, 0 where it chooses none; `inputs`: the numbers that it takes.
std::optional<GraphDraw> draw_in_graph(const Sampling& sampling, Random& random, size_t candidates,
                                       const std::vector<std::string>& inputs);

// The first NaN, else the first of the largest. `count` is at least 1.
size_t argmax(const float* scores, size_t count);

// The tokens of the `top_k` highest scores (0 for all), highest first, equal ones by id. Scores that
// are no numbers count as the highest, and are left out.
std::vector<int32_t> likeliest(const float* scores, size_t count, uint64_t top_k = 0);

// The tokens among which a draw chooses, at a temperature above 0: the likeliest first.
struct Ranked {
  std::vector<int32_t> tokens;
  // The logarithm of how much less likely each is than the first; minus infinity where it cannot be
  // drawn.
  std::vector<double> logs;
};
Ranked ranked(const float* scores, size_t count, const Sampling& sampling);

// In the order of the page, "Sums".
double pairwise_sum(const double* numbers, size_t count);

}  // namespace plc
