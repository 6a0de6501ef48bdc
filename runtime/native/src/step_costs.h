// What steps cost, as far as they were measured: it decides how much is drafted, not what comes.
// (runtime/step_costs.py does the same.)
#pragma once

#include <cstddef>

namespace plc {

// A line through the steps so far by their tokens, the latest ones first.
class StepCosts {
 public:
  // Takes the measure of a step.
  void note(size_t tokens, double seconds) {
    // Steps of more tokens, those of prompts, say nothing about steps of a few.
    if (tokens > kMostTokens) return;
    const double count = static_cast<double>(tokens);
    const double news[5] = {1.0, count, seconds, count * count, count * seconds};
    for (size_t k = 0; k < 5; ++k) {
      sums_[k] *= 0.98;
      sums_[k] += news[k];
    }
  }

  // The cost of one more token, as a part of a step with one.
  double of_token() const {
    const double count = sums_[0], tokens = sums_[1], seconds = sums_[2];
    const double spread = count * sums_[3] - tokens * tokens;
    if (spread <= count) return kUnknown;  // steps of one size say nothing
    const double slope = (count * sums_[4] - tokens * seconds) / spread;
    const double one = (seconds - slope * tokens) / count + slope;
    if (!(one > 0)) return kUnknown;
    return (slope > 0 ? slope : 0.0) / one;
  }

 private:
  static constexpr size_t kMostTokens = 64;
  static constexpr double kUnknown = 0.1;  // until steps were measured

  double sums_[5] = {};  // of 1, tokens, seconds, tokens², tokens · seconds
};

}  // namespace plc
