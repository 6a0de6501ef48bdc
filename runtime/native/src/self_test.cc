#include "self_test.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cache_numbers.h"
#include "linked_kernels.h"
#include "sampling.h"
#include "words.h"

namespace plc {
namespace {

// Equal notes in a manifest mean equal bits; the number grows with each change of the kernels that
// changes bits.
std::string arithmetic_here() {
#ifdef PLC_WITHOUT_KERNELS
  return "standard operators";
#else
  const std::string name = plc_kernels_name();
  return name == "portable" ? "2 portable" : "2";
#endif
}

struct Limit {
  double difference;  // of logits, as a part of the largest one
  double tokens;      // part of the greedy tokens that must be equal
};

Limit limit_of(const Manifest& manifest, bool on_cpu) {
  const Precision& precision = manifest.precision;
  Limit limit{1e-3, 1.0};
  const auto widen = [&limit](double difference, double tokens) {
    limit = {std::max(limit.difference, difference), std::min(limit.tokens, tokens)};
  };
  const bool computed_alike =
      manifest.target != "native-cpu" || manifest.version_of("kernels") == arithmetic_here();
  if (precision.quantization == Quantization::kInt8) widen(computed_alike ? 0.05 : 0.1, 0.9);
  if (precision.quantization == Quantization::kInt4) widen(computed_alike ? 0.05 : 0.2, 0.9);
  const Dtype dtype = cache_dtype(precision);
  if (dtype == Dtype::kFloat16) widen(on_cpu ? 0.01 : 0.02, on_cpu ? 0.95 : 0.9);
  if (dtype == Dtype::kBfloat16) widen(on_cpu ? 0.05 : 0.1, on_cpu ? 0.9 : 0.8);
  if (precision.prefix_bits == 8) widen(0.1, 0.9);
  return limit;
}

// What was found in all rows and steps.
struct Comparison {
  double difference = 0, largest = 0;
  size_t equal = 0, count = 0;

  void add(const float* logits, size_t vocab, const SelfTest& test, size_t place) {
    const size_t ids = test.logit_ids.size();
    bool are_finite = true;
    for (size_t k = 0; k < ids; ++k) {
      const float expected = test.logits[place * ids + k];
      const float found = logits[static_cast<size_t>(test.logit_ids[k])];
      are_finite = are_finite && std::isfinite(found);
      const auto apart = static_cast<double>(std::fabs(found - expected));
      difference =
          std::isfinite(found) ? std::max(difference, apart) : std::numeric_limits<double>::infinity();
      largest = std::max(largest, static_cast<double>(std::fabs(expected)));
    }
    const auto token = static_cast<int64_t>(argmax(logits, vocab));
    equal += are_finite && token == test.tokens[place] ? 1 : 0;
    ++count;
  }
};

Status run_row(const SelfTest& test, size_t row, const ServedTask& task, Engine& engine, size_t slot,
               Comparison& found) {
  // The ids begin after a learned prefix: it stands for virtual tokens, too.
  const auto vocab = static_cast<int64_t>(engine.vocab);
  Rendered whole;
  if (task.prompt.virtual_rows == 0)
    for (size_t k = 0; k < task.prompt.prefix_length; ++k) {
      whole.token_ids.push_back(0);
      whole.virtual_rows.push_back(static_cast<int32_t>(k));
    }
  for (size_t k = 0; k < static_cast<size_t>(test.lengths[row]); ++k) {
    const int64_t id = test.input_ids[row * test.seq + k];
    whole.token_ids.push_back(static_cast<int32_t>(id < vocab ? id : 0));
    whole.virtual_rows.push_back(static_cast<int32_t>(id < vocab ? -1 : id - vocab));
  }
  const std::vector<int64_t> ids = whole.input_ids(engine.vocab);
  const size_t held = held_by_prefix(whole, task.prompt);
  if (auto length = engine.admit(slot, task.prompt); !length.ok()) return length.error();
  std::vector<Feed> feeds(1);
  std::vector<Fed> results;
  feeds[0].slot = slot;
  feeds[0].past = held;
  feeds[0].ids.assign(ids.begin() + static_cast<std::ptrdiff_t>(held), ids.end());
  for (size_t step = 0; step < test.steps; ++step) {
    if (step > 0) {
      feeds[0].past += feeds[0].ids.size();
      feeds[0].ids = {test.tokens[(step - 1) * test.rows + row]};
    }
    if (Status done = engine.step(feeds, results); !done.ok()) return done;
    found.add(results[0].logits, engine.vocab, test, step * test.rows + row);
  }
  return {};
}

// So many thousandths, as a number with a point.
std::string thousandths(double number) {
  const bool is_known = number < 1e9;
  const auto all = static_cast<uint64_t>(is_known ? std::llround(number * 1000) : 0);
  std::string rest = std::to_string(all % 1000 + 1000).substr(1);
  return is_known ? joined({all / 1000, ".", rest}) : "infinite";
}

}  // namespace

Result<size_t> run_self_test(const ServedTask& task, Engine& engine, size_t slot, bool on_cpu) {
  const std::vector<BundleTask>& tasks = task.bundle->tasks();
  const auto mine = std::find_if(tasks.begin(), tasks.end(),
                                 [&task](const BundleTask& each) { return &each.record == &task.record; });
  const auto read = task.bundle->selftest(*mine);
  if (!read.ok()) return read.error();
  if (!read.value()) return size_t{0};
  const SelfTest& test = *read.value();
  Comparison found;
  for (size_t row = 0; row < test.rows; ++row) {
    Status done;
    try {
      done = run_row(test, row, task, engine, slot, found);
    } catch (...) {
      engine.clear({slot});
      engine.retire({slot});
      throw;
    }
    engine.clear({slot});
    engine.retire({slot});
    if (!done.ok()) return done.error();
  }
  const Limit limit = limit_of(task.bundle->manifest(), on_cpu);
  if (found.difference <= limit.difference * found.largest &&
      static_cast<double>(found.equal) >= limit.tokens * static_cast<double>(found.count))
    return test.rows;
  const double part = found.difference / (found.largest > 0 ? found.largest : 1.0);
  return Error{ErrorCode::kAnswer,
               joined({"comparing task '", task.name(), "' with its self-test: logits differ by ",
                       thousandths(part), " of the largest, and ", found.equal, " of ", found.count,
                       " tokens are equal; expected at most ", thousandths(limit.difference), ", and ",
                       thousandths(100 * limit.tokens),
                       " % of the tokens. Copy the bundle again, or export "
                       "it on this machine."})};
}

}  // namespace plc
