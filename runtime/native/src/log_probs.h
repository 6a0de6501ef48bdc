// Log probabilities of tokens, by the base's own logits, and biases by the texts of tokens.
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

// The logarithm of the sum of e to each logit: a logit less this is a log probability. The largest
// logit is a finite number.
double log_total(const float* logits, size_t vocab);

// How the vocabulary writes an id; "None" where it has none.
std::string token_name(const Tokenizer& tokenizer, int32_t token);

// A bias by texts of tokens as one by ids. `tokens`: those of the tree of choices, in any order,
// each as often as it likes; null where the answer is open. An error where it is, or where no token
// of the tree has such a text. `doing` begins its message.
Result<std::vector<TokenBias>> bias_by_token(const std::vector<std::pair<std::string, double>>& bias,
                                             const std::vector<int32_t>* tokens,
                                             const std::shared_ptr<const Tokenizer>& tokenizer,
                                             const std::string& doing);

}  // namespace plc
