#include "draft_rows.h"

#include <algorithm>

#include "sampling.h"

namespace plc {

RowFeed DraftRow::take(size_t count) {
  tried_ = std::move(draft_);
  draft_.clear();
  RowFeed feed = Row::take(count - tried_.size());
  if (!tried_.empty()) {
    for (size_t place = feed.ids.size() - 1; place < feed.ids.size() + tried_.size(); ++place)
      feed.wanted.push_back(static_cast<int64_t>(place));
    feed.ids.insert(feed.ids.end(), tried_.begin(), tried_.end());
  }
  feed.after = kept_;
  kept_.reset();
  return feed;
}

// The graph chooses after the last token only.
std::optional<GraphDraw> DraftRow::draw(size_t candidates, const std::vector<std::string>& inputs) {
  if (!tried_.empty()) return std::nullopt;
  return Row::draw(candidates, inputs);
}

// The rest of the draft may be nothing that the base was made for.
bool DraftRow::has_numbers(Output& output) const { return output.only(0, -1).is_finite(); }

// Chooses tokens as long as their logits are there.
Event DraftRow::advance(Output& output) {
  const std::vector<int32_t> draft = std::move(tried_);
  tried_.clear();
  const size_t begin = token_ids_.size();
  size_t taken = 0;
  Output first = output.only(0, output.token());
  Event event = choose(first);
  std::string text = std::move(event.text);
  while (true) {
    const size_t written = token_ids_.size() - begin;
    while (taken < std::min(written, draft.size()) && token_ids_[begin + taken] == draft[taken]) ++taken;
    if (taken < written || !is_live()) break;
    Output after = output.only(taken, -1);
    if (!after.is_finite()) {
      --taken;  // the token is fed again, alone, and its row fails as any would
      break;
    }
    event = choose(after);
    text += event.text;
  }
  settle(draft.size(), taken);
  event.text = std::move(text);
  return event;
}

// Keeps the part of a draft that was chosen, and drafts anew.
void DraftRow::settle(size_t drafted, size_t taken) {
  fed_ += taken;
  if (taken < drafted) kept_ = parts_.held + fed_;
  if (drafted > 0) note(drafted, taken);
  const size_t most = token_ids_.size() + 1 < parts_.limit ? parts_.limit - token_ids_.size() - 1 : 0;
  const bool is_greedy = parts_.request.sampling.temperature == 0.0;
  if (parts_.branches && is_greedy && is_live() && most > 0) draft_ = propose(most);
}

Event LookupRow::choose(Output& output) {
  Event event = Row::choose(output);
  drafts_.chosen(token_ids_.empty() ? std::nullopt : std::optional<int32_t>(token_ids_.back()));
  return event;
}

std::vector<int32_t> LookupRow::propose(size_t most) {
  if (parts_.request.sampling.no_repeat_ngram > 0) return {};  // it may not be repeated
  return drafts_.propose(parts_.seen, most, costs_.of_token());
}

std::optional<GraphDraw> SpanRow::draw(size_t, const std::vector<std::string>&) { return std::nullopt; }

std::vector<int32_t> SpanRow::propose(size_t most) {
  if (parts_.spans->places() != 1) return {};
  return parts_.spans->ahead(std::min(most, length_));
}

void SpanRow::note(size_t drafted, size_t taken) { length_ = taken == drafted ? kMost : kFirst; }

// Takes the next token, and those that alone may follow it.
Event SpanRow::choose(Output& output) {
  Event event = allowed()->empty() ? stop() : Row::choose(output);
  while (is_live()) {
    const std::vector<int32_t> following = *allowed();
    if (following.size() > 1 || (!following.empty() && parts_.request.log_probs >= 0)) break;
    if (!following.empty()) pass_over(parts_.request.sampling, random_);
    Event later = following.empty() ? stop() : write(following[0]);
    later.text.insert(0, event.text);
    event = std::move(later);
  }
  return event;
}

// The tokens that continue a span, and those that end it where it may end.
std::optional<std::vector<int32_t>> SpanRow::allowed() const {
  std::vector<int32_t> found = parts_.spans->allowed();
  if (parts_.spans->is_span() && token_ids_.size() >= static_cast<size_t>(parts_.request.min_tokens)) {
    found.insert(found.end(), parts_.task->ends.begin(), parts_.task->ends.end());
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
  }
  if (parts_.bad_words)
    found.erase(std::remove_if(found.begin(), found.end(), [this](int32_t id) { return !fits(id); }),
                found.end());
  return found;
}

}  // namespace plc
