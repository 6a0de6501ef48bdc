// Log probabilities of tokens, by the base's own logits, and how single tokens are shown.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "result.h"
#include "sampling.h"
#include "tokenizer.h"

namespace plc {

struct TokenLogProb {
  int32_t token;
  std::string text;  // of the token, as `token_text` gives it
  double log_prob;
};

// What a token of an answer is given with: itself, and the likeliest ones.
struct TokenLogProbs {
  TokenLogProb written;
  std::vector<TokenLogProb> top;
};

// The logarithm of the sum of e to each logit: a logit less this is a log probability. The largest
// logit is a finite number.
double log_total(const float* logits, size_t vocab);

// `logits`: of the step that the token was chosen after. `count`: how many of the likeliest tokens
// are noted.
TokenLogProbs token_log_probs(const float* logits, size_t vocab, int32_t token, size_t count,
                              const std::shared_ptr<const Tokenizer>& tokenizer);

// The text of a token inside an answer, blanks included; the name of a special one. What is only a
// part of a character is U+FFFD.
std::string token_text(const std::shared_ptr<const Tokenizer>& tokenizer, int32_t token);

// How the vocabulary writes an id; "None" where it has none.
std::string token_name(const Tokenizer& tokenizer, int32_t token);

// The text without wide white space at its ends (docs/artifact-format.md, "Conventions").
std::string_view without_wide_space(std::string_view text);

// A bias by texts of tokens as one by ids. `tokens`: those of the tree of choices, in any order,
// each as often as it likes; null where the answer is open. An error where it is, or where no token
// of the tree has such a text. `doing` begins its message.
Result<std::vector<TokenBias>> bias_by_token(const std::vector<std::pair<std::string, double>>& bias,
                                             const std::vector<int32_t>* tokens,
                                             const std::shared_ptr<const Tokenizer>& tokenizer,
                                             const std::string& doing);

}  // namespace plc
