// What a caller asks for, and what comes back. (runtime/requests.py is the same in Python.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "result.h"
#include "sampling.h"

namespace plc {

enum class Kind { kAnswer, kBestLabel, kAllLabels };

// docs/serving.md has the ranges; `Request::check` compares them.
struct Request {
  std::string task;
  std::vector<std::pair<std::string, std::string>> fields;  // UTF-8
  Kind kind = Kind::kAnswer;
  int64_t max_tokens = 64;
  int64_t min_tokens = 0;
  Sampling sampling;
  std::vector<std::string> stop;
  std::vector<std::string> bad_words;
  std::vector<std::pair<std::string, float>> bias;  // by the texts of tokens; besides the sampling's
  bool constrain = true;
  bool use_prompt = true;
  int64_t priority = 0;
  double timeout = 0.0;    // seconds; 0 for no limit
  int64_t log_probs = -1;  // -1: none is noted

  // Names every value that is not in its range.
  Status check() const;
};

enum class FinishReason { kStop, kLength, kTimeout };

struct LogProb {
  int32_t token_id;
  double log_prob;
};

struct Answer {
  std::string text;
  std::vector<int32_t> token_ids;
  FinishReason finish_reason = FinishReason::kStop;
  size_t prompt_tokens = 0;
  size_t cut_tokens = 0;
  size_t prefix_tokens = 0;
  size_t shared_tokens = 0;
  // Of each token: itself, then the likeliest ones. Empty where they were not asked for.
  std::vector<std::vector<LogProb>> log_probs;
};

struct LabelScore {
  std::string text;
  double probability;  // NaN for the likeliest label alone
  double log_probability;
};

struct Event {
  uint64_t number = 0;  // of the request
  std::string text{};   // that became certain
  bool is_last = false;
  std::optional<Error> error{};    // why there is no answer
  std::optional<Answer> answer{};  // of a request of kind kAnswer
  std::vector<LabelScore> labels{};
};

using Inbox = std::deque<Event>;

}  // namespace plc
