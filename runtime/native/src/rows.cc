#include "rows.h"

#include <algorithm>
#include <cmath>

#include "log_probs.h"
#include "sampling.h"

namespace plc {
namespace {

// The text of a field, as its tokens come.
class SpanSource final : public TextSource {
 public:
  explicit SpanSource(SpanWalk& walk) : walk_(walk) {}

  void push(int32_t token, std::string& text) override { walk_.push(token, text); }
  void pending(std::string& text, size_t) const override { walk_.pending(text); }
  void finish(std::string& text) override { walk_.finish(text); }

 private:
  SpanWalk& walk_;
};

std::unique_ptr<TextSource> text_of(const RowParts& parts) {
  if (parts.spans != nullptr) return std::make_unique<SpanSource>(*parts.spans);
  return source_of(parts.tokenizer);
}

}  // namespace

size_t Output::largest() {
  if (!largest_) largest_ = argmax(logits(), vocab_);
  return *largest_;
}

bool Output::is_finite() {
  if (outputs_ == 1) return std::isfinite(after_[largest()]);
  return std::isfinite(after_[argmax(after_, outputs_ * vocab_)]);
}

Row::Row(RowParts parts)
    : parts_(std::move(parts)),
      random_(parts_.request.sampling.seed),
      text_(text_of(parts_), parts_.request.stop) {
  if (parts_.trie != nullptr) choices_.emplace(parts_.trie);
  const Sampling& sampling = parts_.request.sampling;
  is_plain_ = sampling.temperature == 0.0 && sampling.repetition_penalty == 1.0 && parts_.bias.empty() &&
              !parts_.bad_words;
}

void Row::look(Feed& feed) const {
  if (left() > 0) {
    feed.all_logits = false;
  } else if (choices_ && parts_.request.log_probs < 0) {
    feed.all_logits = false;
    for (const int32_t token : choices_->allowed()) feed.looked_at.push_back(token);
  }
}

RowFeed Row::take(size_t count) {
  const size_t begin = fed_, prompt = parts_.input_ids.size();
  fed_ += count;
  RowFeed feed;
  if (begin < prompt) {
    const auto first = parts_.input_ids.begin() + static_cast<std::ptrdiff_t>(begin);
    feed.ids.assign(first, first + static_cast<std::ptrdiff_t>(count));
  } else {
    const auto first = token_ids_.begin() + static_cast<std::ptrdiff_t>(begin - prompt);
    feed.ids.assign(first, first + static_cast<std::ptrdiff_t>(count));
  }
  return feed;
}

std::optional<GraphDraw> Row::draw(size_t candidates, const std::vector<std::string>& inputs) {
  const bool waits = token_ids_.size() < static_cast<size_t>(parts_.request.min_tokens);
  if (choices_ || waits || parts_.bad_words) return std::nullopt;
  return draw_in_graph(parts_.request.sampling, random_, candidates, inputs);
}

Event Row::choose(Output& output) {
  const std::optional<int32_t> token =
      output.token() < 0 ? next(output) : static_cast<int32_t>(output.token());
  if (!token) return stop();
  if (const int64_t count = parts_.request.log_probs; count >= 0) {
    const double total = log_total(output.logits(), output.vocab());
    std::vector<LogProb> noted;
    const auto note = [&](int32_t each) {
      noted.push_back({each, static_cast<double>(output.logits()[each]) - total});
    };
    note(*token);
    if (count > 0)
      for (const int32_t each : likeliest(output.logits(), output.vocab(), static_cast<uint64_t>(count)))
        note(each);
    log_probs_.push_back(std::move(noted));
  }
  return write(*token);
}

// The next token, by its logits; none where none may follow.
std::optional<int32_t> Row::next(Output& output) {
  std::vector<int32_t> blocked;
  if (token_ids_.size() < static_cast<size_t>(parts_.request.min_tokens)) blocked = parts_.task->ends;
  if (parts_.ngrams)
    for (const int32_t token : parts_.ngrams->blocked(output.vocab())) blocked.push_back(token);
  const auto only = allowed();
  if (is_plain_ && !only) {
    const auto largest = static_cast<int32_t>(output.largest());
    // As `next_token` would, without another look at all logits.
    if (std::find(blocked.begin(), blocked.end(), largest) == blocked.end()) return largest;
  }
  TokenLimits limits;
  limits.bias = &parts_.bias;
  limits.seen = &parts_.seen;
  limits.blocked = &blocked;
  limits.allowed = only ? &*only : nullptr;
  if (parts_.bad_words) {
    limits.fits = [](const void* row, int32_t token) { return static_cast<const Row*>(row)->fits(token); };
    limits.context = this;
  }
  return next_token(output.logits(), output.vocab(), parts_.request.sampling, random_, limits);
}

std::optional<std::vector<int32_t>> Row::allowed() const {
  if (!choices_) return std::nullopt;
  return choices_->allowed();
}

bool Row::ends(int32_t token) const {
  const std::vector<int32_t>& all = parts_.task->ends;
  return std::find(all.begin(), all.end(), token) != all.end();
}

bool Row::fits(int32_t token) const { return ends(token) || parts_.bad_words->allows(token); }

Event Row::stop() {
  finished_ = FinishReason::kStop;
  std::string piece = text_.finish();
  return event(std::move(piece), text_.text());
}

Event Row::write(int32_t token) {
  take_token(token);
  if (choices_) return write_choice(token);
  if (ends(token)) return stop();
  std::string piece = text_.push(token);
  if (text_.stopped()) {
    finished_ = FinishReason::kStop;
  } else if (token_ids_.size() >= parts_.limit) {
    piece += text_.finish();
    // An unfinished character has become text, and a stop text may be in it.
    finished_ = text_.stopped() ? FinishReason::kStop : FinishReason::kLength;
  }
  return event(std::move(piece), text_.text());
}

Event Row::time_out() {
  if (choices_) {
    finished_ = FinishReason::kTimeout;
    return event("", choices_->text().substr(0, chosen_));
  }
  std::string piece = text_.finish();
  // An unfinished character has become text, and a stop text may be in it.
  finished_ = text_.stopped() ? FinishReason::kStop : FinishReason::kTimeout;
  return event(std::move(piece), text_.text());
}

void Row::take_token(int32_t token) {
  token_ids_.push_back(token);
  parts_.seen.push_back(token);
  if (parts_.ngrams) parts_.ngrams->push(token);
  if (parts_.bad_words) parts_.bad_words->push(token);
}

// A choice is written to its end, whatever its tokens mean. Where one token alone may follow, it is
// written, too: nothing is computed for it. (Where log probabilities are asked for, they need its
// logits.) The text is that of the choice, not of its decoded tokens.
Event Row::write_choice(int32_t token) {
  choices_->push(token);
  std::vector<int32_t> following = choices_->allowed();
  while (following.size() == 1 && parts_.request.log_probs < 0) {
    pass_over(parts_.request.sampling, random_);
    take_token(following[0]);
    choices_->push(following[0]);
    following = choices_->allowed();
  }
  if (following.empty()) finished_ = FinishReason::kStop;
  const std::string_view text = choices_->text();
  std::string piece(text.substr(std::min(chosen_, text.size())));
  chosen_ = text.size();
  return event(std::move(piece), text);
}

Event Row::event(std::string piece, std::string_view text) {
  Event made;
  made.text = std::move(piece);
  if (!finished_) return made;
  made.is_last = true;
  Answer& answer = made.answer.emplace();
  answer.text = text;
  answer.token_ids = token_ids_;
  answer.finish_reason = *finished_;
  answer.prompt_tokens = parts_.prompt_tokens;
  answer.cut_tokens = parts_.cut_tokens;
  answer.prefix_tokens = parts_.held;
  answer.shared_tokens = shared_;
  answer.log_probs = log_probs_;
  return made;
}

}  // namespace plc
