#include "label_search.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "log_probs.h"
#include "sampling.h"

namespace plc {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

}  // namespace

// The nodes that are left: each after its parent, and the most promising first.
class LabelSearch::Order final : public NodeOrder {
 public:
  explicit Order(LabelSearch& search) : search_(search), at_(search.passed_) {
    if (search_.best_) waiting_ = search_.open_;
  }

  int32_t next() override { return search_.best_ ? next_of_best() : next_of_all(); }

 private:
  // Neighbours share what leads to them.
  int32_t next_of_all() {
    const std::vector<int32_t>& inner = search_.tree_.inner_nodes();
    while (at_ < inner.size() && !search_.is_left(inner[at_])) ++at_;
    return at_ < inner.size() ? inner[at_++] : -1;
  }

  // After a node all below it: what follows a likely token is likely to be asked for next.
  int32_t next_of_best() {
    while (below_at_ < below_.size()) {
      const int32_t node = below_[below_at_++];
      add_children(node);
      if (search_.is_left(node)) return node;
    }
    while (!waiting_.empty()) {
      std::pop_heap(waiting_.begin(), waiting_.end(), std::greater<>());
      const int32_t node = waiting_.back().second;
      waiting_.pop_back();
      if (!search_.is_left(node)) continue;
      below_.clear();
      below_at_ = 0;
      add_children(node);
      return node;
    }
    return -1;
  }

  void add_children(int32_t node) {
    const LabelTrie::Nodes children = search_.tree_.children(node);
    const auto before = static_cast<std::ptrdiff_t>(below_.size());
    below_.insert(below_.end(), children.begin(), children.end());
    std::sort(below_.begin() + before, below_.end());
  }

  LabelSearch& search_;
  size_t at_;
  std::vector<Known> waiting_{};
  std::vector<int32_t> below_{};
  size_t below_at_ = 0;
};

LabelSearch::LabelSearch(const LabelTrie& tree, bool best)
    : tree_(tree),
      best_(best),
      reached_(tree.nodes(), std::numeric_limits<double>::quiet_NaN()),
      left_(tree.nodes(), 0),
      left_count_(tree.inner_nodes().size() + 1),
      open_{{-0.0, 0}},
      best_known_(-kInfinity) {
  reached_[0] = 0.0;
  left_[0] = 1;
  for (const int32_t node : tree_.inner_nodes()) left_[static_cast<size_t>(node)] = 1;
}

void LabelSearch::look(int32_t node, const float* logits, size_t vocab) {
  if (!is_left(node)) return;
  left_[static_cast<size_t>(node)] = 0;
  --left_count_;
  const double total = log_total(logits, vocab);
  for (const int32_t child : tree_.children(node)) {
    const int32_t token = tree_.tokens()[static_cast<size_t>(child)];
    const double reached = reached_[static_cast<size_t>(node)] + (logits[token] - total);
    reached_[static_cast<size_t>(child)] = reached;
    if (is_left(child)) {
      open_.push_back({-reached, child});
      std::push_heap(open_.begin(), open_.end(), std::greater<>());
    }
    if (tree_.label_at(child) >= 0) best_known_ = std::max(best_known_, reached);
  }
}

std::optional<Branches> LabelSearch::group(size_t most) {
  if (is_over()) return std::nullopt;
  Order order(*this);
  return tree_.group(order, most);
}

std::optional<int32_t> LabelSearch::next_node(const std::vector<int32_t>& path) {
  if (is_over()) return std::nullopt;
  if (best_) {
    for (size_t up = 0; up <= path.size(); ++up) {
      const int32_t node = up == path.size() ? 0 : path[path.size() - 1 - up];
      int32_t found = -1;
      for (const int32_t child : tree_.children(node)) {
        // A label below a node may be the likeliest; not below what was not looked at.
        const double reached = reached_[static_cast<size_t>(child)];
        if (!is_left(child) || !(reached >= best_known_)) continue;
        const double most = found < 0 ? -kInfinity : reached_[static_cast<size_t>(found)];
        if (found < 0 || reached > most || (reached == most && child < found)) found = child;
      }
      if (found >= 0) return found;
    }
  }
  return Order(*this).next();
}

// Whether all that is asked for is known. It also forgets what was looked at.
bool LabelSearch::is_over() {
  while (!open_.empty() && !is_left(open_.front().second)) {
    std::pop_heap(open_.begin(), open_.end(), std::greater<>());
    open_.pop_back();
  }
  const std::vector<int32_t>& inner = tree_.inner_nodes();
  while (passed_ < inner.size() && !is_left(inner[passed_])) ++passed_;
  if (!best_ || open_.empty()) return left_count_ == 0;
  // As likely is not enough: of several, the first one is the answer.
  return best_known_ > -open_.front().first;
}

std::vector<LabelShare> LabelSearch::scores() const {
  const std::vector<int32_t>& ends = tree_.ends();
  std::vector<LabelShare> found(ends.size());
  std::vector<double> shares(ends.size());
  double most = -kInfinity;
  for (size_t label = 0; label < ends.size(); ++label) {
    found[label].log_prob = reached_[static_cast<size_t>(ends[label])];
    most = std::max(most, found[label].log_prob);
  }
  for (size_t label = 0; label < ends.size(); ++label) shares[label] = std::exp(found[label].log_prob - most);
  const double sum = pairwise_sum(shares.data(), shares.size());
  for (size_t label = 0; label < ends.size(); ++label) found[label].probability = shares[label] / sum;
  return found;
}

std::optional<BestLabel> LabelSearch::best_label() const {
  std::optional<BestLabel> best;
  for (size_t label = 0; label < tree_.ends().size(); ++label) {
    const double reached = reached_[static_cast<size_t>(tree_.ends()[label])];
    if (reached == reached && (!best || reached > best->log_prob)) best = BestLabel{label, reached};
  }
  return best;
}

}  // namespace plc
