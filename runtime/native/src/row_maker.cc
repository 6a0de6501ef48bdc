#include "row_maker.h"

#include <algorithm>

#include "draft_rows.h"
#include "label_rows.h"
#include "log_probs.h"
#include "unicode.h"
#include "words.h"

namespace plc {
namespace {

constexpr std::string_view kDoing = "serving a request";

class RowMaker {
 public:
  RowMaker(const Request& request, ServedTask& task, const Engine& engine)
      : request_(request), task_(task), engine_(engine) {
    for (const auto& [name, text] : request.fields) fields_.push_back({name, FieldValue(text)});
  }

  // Renders the prompt, cut to fit, and finds what answers can be.
  Status render() {
    auto whole = task_.renderer.prompt(fields_);
    if (!whole.ok()) return whole.error();
    const size_t length = whole.value().size();
    rendered_ = std::move(whole.value());
    Status done;
    if (task_.choices != nullptr && (request_.constrain || request_.kind != Kind::kAnswer))
      done = with_room_for_choices(length);
    else if (task_.record.copied_from && request_.constrain) done = with_spans(length);
    else done = with_room(length);
    if (!done.ok()) return done;
    cut_tokens_ = length - rendered_.size();
    return {};
  }

  // A choice is written whole.
  Status check_choices() const {
    if (choices_ == nullptr) return {};
    for (const std::string& label : choices_->labels())
      for (const std::string& word : request_.bad_words)
        if (const auto text = without_space(label); text.find(word) != std::string_view::npos)
          return Error{ErrorCode::kRequest,
                       joined({"the bad word '", word, "' in the choice '", text,
                               "'. Leave it out, or ask for an answer without choices."})};
    return {};
  }

  Result<RowParts> parts(const std::shared_ptr<ServedTask>& task,
                         const std::shared_ptr<const Tokenizer>& tokenizer) {
    RowParts parts;
    parts.prompt = task->prompt;
    if (!request_.use_prompt) {
      rendered_ = rendered_.without_virtual();
      parts.prompt.prefix = nullptr;
      parts.prompt.prefix_length = 0;
    }
    parts.held = held_by_prefix(rendered_, parts.prompt);
    if (parts.held == rendered_.size())
      return Error{ErrorCode::kRequest,
                   joined({kDoing, ": an empty prompt; expected at least one token",
                           parts.prompt.prefix == nullptr ? "" : " after the prefix", "."})};
    const Sampling& sampling = request_.sampling;
    std::vector<std::pair<std::string, double>> bias = sampling.logit_bias;
    for (const auto& [text, number] : request_.bias) bias.emplace_back(text, static_cast<double>(number));
    std::vector<int32_t> tokens;
    if (choices_ != nullptr) tokens.assign(choices_->tokens().begin() + 1, choices_->tokens().end());
    auto biased =
        bias_by_token(bias, choices_ == nullptr ? nullptr : &tokens, tokenizer, std::string(kDoing));
    if (!biased.ok()) return Error{ErrorCode::kRequest, biased.error().message};
    parts.bias = std::move(biased.value());
    parts.request = request_;
    parts.task = task;
    const std::vector<int64_t> ids = rendered_.input_ids(engine_.vocab);
    parts.input_ids.assign(ids.begin() + static_cast<std::ptrdiff_t>(parts.held), ids.end());
    parts.prompt_tokens = rendered_.size();
    parts.cut_tokens = cut_tokens_;
    parts.room = engine_.capacity - rendered_.size();
    parts.limit = std::min(static_cast<size_t>(request_.max_tokens), parts.room);
    parts.branches = engine_.branches;
    for (size_t k = 0; k < rendered_.size(); ++k)
      if (rendered_.virtual_rows[k] < 0) parts.seen.push_back(rendered_.token_ids[k]);
    parts.tokenizer = tokenizer;
    const bool is_open = choices_ == nullptr && spans_ == nullptr;
    if (sampling.no_repeat_ngram > 0 && is_open)
      parts.ngrams.emplace(static_cast<size_t>(sampling.no_repeat_ngram), ids);
    if (!request_.bad_words.empty() && choices_ == nullptr)
      parts.bad_words.emplace(tokenizer, request_.bad_words);
    parts.trie = std::move(choices_);
    parts.spans = std::move(spans_);
    return parts;
  }

 private:
  // To how many tokens a prompt of this length is cut; none where it fits. It is cut so far that the
  // answer has some room, too. One that fits is not cut: its answer may end where the cache ends.
  std::optional<size_t> most_with_room(size_t length) const {
    if (length < engine_.capacity) return std::nullopt;
    const bool cut = task_.record.truncate_field.has_value();
    const size_t asked = static_cast<size_t>(request_.max_tokens);
    const size_t room = cut ? std::min(asked, engine_.capacity / 4) : 1;
    return engine_.capacity - room;
  }

  Status with_room(size_t length) {
    const auto most = most_with_room(length);
    if (!most) return {};
    auto made = task_.renderer.prompt(fields_, most);
    if (!made.ok()) return made.error();
    rendered_ = std::move(made.value());
    return {};
  }

  Status with_spans(size_t length) {
    auto made = task_.renderer.prompt_and_spans(fields_, most_with_room(length));
    if (!made.ok()) return made.error();
    rendered_ = std::move(made.value().prompt);
    spans_ = std::move(made.value().spans);
    return {};
  }

  // The prompt is cut where the longest choice does not fit after it.
  Status with_room_for_choices(size_t length) {
    auto choices = task_.choices_after(fields_);
    if (!choices.ok()) return choices.error();
    choices_ = std::move(choices.value());
    if (length + choices_->longest() <= engine_.capacity) return {};
    auto made = task_.renderer.prompt_and_choices(fields_, engine_.capacity);
    if (!made.ok()) return made.error();
    rendered_ = std::move(made.value().prompt);
    choices_ = std::move(made.value().choices);
    return {};
  }

  const Request& request_;
  ServedTask& task_;
  const Engine& engine_;
  Fields fields_{};
  Rendered rendered_{};
  size_t cut_tokens_ = 0;
  std::shared_ptr<const LabelTrie> choices_{};
  std::unique_ptr<SpanWalk> spans_{};
};

}  // namespace

Result<std::unique_ptr<Row>> make_row(const Request& request, const std::shared_ptr<ServedTask>& task,
                                      const std::shared_ptr<const Tokenizer>& tokenizer, const Engine& engine,
                                      const StepCosts* costs) {
  const auto refused = [](const Error& error) {
    return Error{ErrorCode::kRequest, joined({kDoing, ": ", error.message})};
  };
  RowMaker maker(request, *task, engine);
  const bool asks_for_labels = request.kind != Kind::kAnswer;
  if (const Status done = maker.render(); !done.ok()) return refused(done.error());
  if (asks_for_labels && task->choices == nullptr)
    return Error{ErrorCode::kRequest,
                 joined({kDoing, ": task '", task->name(),
                         "' has no choices; expected a task with a closed set of answers."})};
  if (const Status done = maker.check_choices(); !done.ok()) return refused(done.error());
  auto made = maker.parts(task, tokenizer);
  if (!made.ok()) return made.error();
  RowParts& parts = made.value();
  const bool is_open = parts.trie == nullptr && parts.spans == nullptr;
  std::unique_ptr<Row> row;
  if (asks_for_labels) row = std::make_unique<LabelRow>(std::move(parts), request.kind == Kind::kBestLabel);
  else if (parts.spans != nullptr) row = std::make_unique<SpanRow>(std::move(parts));
  else if (is_open && costs != nullptr) row = std::make_unique<LookupRow>(std::move(parts), *costs);
  else row = std::make_unique<Row>(std::move(parts));
  return row;
}

}  // namespace plc
