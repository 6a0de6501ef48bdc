#include "label_rows.h"

#include <algorithm>
#include <limits>

#include "field_value.h"
#include "unicode.h"
#include "words.h"

namespace plc {
namespace {

// Nodes of one step, which costs about as much as a step of so many rows. For the likeliest label
// alone a few are enough, unless many labels are about as likely: then each step has twice as many.
constexpr size_t kMost = 48, kFirstForBest = 16;

// The place of a node among some in ascending order; -1 if it is not there.
int64_t place_of(int32_t node, const std::vector<int32_t>& nodes) {
  const auto found = std::lower_bound(nodes.begin(), nodes.end(), node);
  return found != nodes.end() && *found == node ? found - nodes.begin() : -1;
}

}  // namespace

LabelRow::LabelRow(RowParts parts, bool best)
    : Row(std::move(parts)), best_(best), search_(*parts_.trie, best), most_(best ? kFirstForBest : kMost) {}

size_t LabelRow::left() const {
  const size_t of_prompt = Row::left();
  return of_prompt > 0 ? of_prompt : next_.size();
}

RowFeed LabelRow::take(size_t count) {
  if (Row::left() > 0) return Row::take(count);
  const std::vector<int32_t> nodes = std::move(next_);
  next_.clear();
  RowFeed feed;
  for (const int32_t node : nodes) feed.ids.push_back(parts_.trie->tokens()[static_cast<size_t>(node)]);
  if (!parts_.branches) {
    feed.after = parts_.prompt_tokens + path_.size() - 1;
    return feed;
  }
  for (const int32_t node : wanted_) feed.wanted.push_back(place_of(node, nodes));
  for (const int32_t node : nodes)
    feed.parents.push_back(place_of(parts_.trie->parents()[static_cast<size_t>(node)], nodes));
  return feed;
}

// A probability is a part of the sum over all tokens.
void LabelRow::look(Feed& feed) const { feed.all_logits = left() == 0; }

std::optional<GraphDraw> LabelRow::draw(size_t, const std::vector<std::string>&) { return std::nullopt; }

Event LabelRow::advance(Output& output) {
  for (size_t k = 0; k < wanted_.size(); ++k) search_.look(wanted_[k], output.after(k), output.vocab());
  if (parts_.branches) {
    auto group = search_.group(std::min(most_, parts_.room));
    most_ = std::min(2 * most_, kMost);
    next_.clear();
    wanted_.clear();
    if (group) {
      next_ = std::move(group->nodes);
      wanted_ = std::move(group->wanted);
    }
  } else {
    walk();
  }
  Event event;
  if (!next_.empty()) return event;
  is_found_ = event.is_last = true;
  event.labels = found();
  return event;
}

// A part of the probabilities is no answer.
Event LabelRow::time_out() {
  error = Error{ErrorCode::kRequest, joined({"scoring a request for task '", parts_.task->name(),
                                             "': its time is over: timeout ", written(parts_.request.timeout),
                                             " seconds. Raise the timeout, or ask again when "
                                             "less is asked for."})};
  Event event;
  event.is_last = true;
  event.error = error;
  return event;
}

// Goes on to the next node, or to one that leads to it.
void LabelRow::walk() {
  const auto target = search_.next_node(path_);
  if (!target) return;
  const std::vector<int32_t> path = parts_.trie->nodes_to(*target);
  size_t same = 0;
  while (same < std::min(path.size(), path_.size()) && path[same] == path_[same]) ++same;
  path_.assign(path.begin(), path.begin() + static_cast<std::ptrdiff_t>(same) + 1);
  next_ = wanted_ = {path[same]};
}

std::vector<LabelScore> LabelRow::found() const {
  const std::vector<std::string>& labels = parts_.trie->labels();
  const auto text = [&labels](size_t label) { return std::string(without_space(labels[label])); };
  std::vector<LabelScore> scores;
  if (best_) {
    const auto best = search_.best_label();
    if (best) scores.push_back({text(best->label), std::numeric_limits<double>::quiet_NaN(), best->log_prob});
    return scores;
  }
  const std::vector<LabelShare> shares = search_.scores();
  for (size_t label = 0; label < shares.size(); ++label)
    scores.push_back({text(label), shares[label].probability, shares[label].log_prob});
  return scores;
}

}  // namespace plc
