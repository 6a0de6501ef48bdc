#include "requests.h"

#include <cmath>

#include "field_value.h"
#include "problems.h"
#include "utf8.h"

namespace plc {
namespace {

constexpr int64_t kMostLogProbs = 20;

}  // namespace

Status Request::check() const {
  Problems problems;
  const std::string task_name = is_utf8(task) ? std::string(shortened(task, 100)) : "(not UTF-8)";
  if (!is_utf8(task)) problems.add({"the task's name is not UTF-8"});
  for (const auto& [name, text] : fields)
    if (!is_utf8(name)) problems.add({"a field's name is not UTF-8"});
  if (min_tokens < 0 || min_tokens > max_tokens || max_tokens < 1)
    problems.add({"min_tokens ", min_tokens, ", max_tokens ", max_tokens,
                  ", expected whole numbers, 0 <= min_tokens <= max_tokens, and max_tokens at least 1"});
  for (const std::string& text : stop)
    if (text.empty() || !is_utf8(text))
      problems.add(
          {"a stop text that is ", text.empty() ? "empty" : "not UTF-8", ", expected text as UTF-8"});
  for (const std::string& word : bad_words)
    if (word.empty() || !is_utf8(word) || word.find(kReplacement) != std::string::npos)
      problems.add(
          {"bad_words: one that is empty, is not UTF-8 or has U+FFFD, which stands for broken "
           "characters; expected none of this"});
  if (!(timeout >= 0) || !std::isfinite(timeout))
    problems.add({"timeout ", written(timeout), ", expected seconds, above 0, or 0 for no limit"});
  if (log_probs < -1 || log_probs > kMostLogProbs)
    problems.add(
        {"log_probs ", log_probs, ", expected a whole number from 0 to ", kMostLogProbs, ", or -1 for none"});
  for (size_t k = 0; k < bias.size() + sampling.logit_bias.size(); ++k) {
    const auto text_at = [this](size_t place) -> const std::string& {
      return place < bias.size() ? bias[place].first : sampling.logit_bias[place - bias.size()].first;
    };
    const std::string& text = text_at(k);
    if (!is_utf8(text)) problems.add({"logit_bias: a text that is not UTF-8"});
    for (size_t before = 0; before < k; ++before)
      if (text_at(before) == text)
        problems.add({"logit_bias: '", shortened(text, 100), "' stands there twice"});
    if (k < bias.size() && !(bias[k].second >= -100.0f && bias[k].second <= 100.0f))
      problems.add({"logit_bias '", shortened(text, 100), "': ", written(static_cast<double>(bias[k].second)),
                    ", expected numbers from -100 to 100 by the texts of tokens"});
  }
  if (problems.none()) return sampling.check();
  return Error{ErrorCode::kArgument,
               joined({"reading a request for task '", task_name, "': ", problems.listed(), "."})};
}

}  // namespace plc
