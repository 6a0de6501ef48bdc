// Which nodes of a tree of labels are looked at, until all labels or the likeliest one are known.
//
// A node is looked at when the logits after it are known: these give the probability of each token
// that may follow. A label's probability is that of its tokens, EOS included, as the base gives
// them. Along a path it only falls, so a node's is a bound for all labels below it: the likeliest
// label is known as soon as it is likelier than each node that was not looked at.
// (runtime/label_search.py does the same.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "label_trie.h"

namespace plc {

struct LabelShare {
  double probability;  // among the labels
  double log_prob;     // of the label, as the base gives it
};

struct BestLabel {
  size_t label;  // its place
  double log_prob;
};

class LabelSearch {
 public:
  // `best`: whether only the likeliest label is looked for. The tree outlives the search.
  LabelSearch(const LabelTrie& tree, bool best);

  // Takes the logits after a node; its parent was looked at before, or it is the root, which comes
  // first. All tokens of the tree have a logit.
  void look(int32_t node, const float* logits, size_t vocab);

  // The nodes to look at next, together; none where all that is asked for is known. `most`: nodes,
  // with those that lead to them; one that needs more comes alone.
  std::optional<Branches> group(size_t most);

  // The node to look at next, where nodes come one by one; none as for `group`. `path`: nodes from
  // the root down, of which a row holds the tokens. What is near them comes first: then no more is
  // fed again than where all nodes are looked at in their order.
  std::optional<int32_t> next_node(const std::vector<int32_t>& path);

  // The probability of every label, in their order; all nodes were looked at.
  std::vector<LabelShare> scores() const;

  // The likeliest label: the first of several that are as likely. None where no label is known.
  std::optional<BestLabel> best_label() const;

 private:
  // How much less likely than all texts, as a positive logarithm, and a node: in order, the
  // likeliest first.
  using Known = std::pair<double, int32_t>;
  class Order;

  bool is_left(int32_t node) const { return left_[static_cast<size_t>(node)] != 0; }
  bool is_over();

  const LabelTrie& tree_;
  const bool best_;
  std::vector<double> reached_;  // log-probability of the path to a node; not a number: unknown
  std::vector<char> left_;       // whether a node is to be looked at
  size_t left_count_;
  std::vector<Known> open_;  // a heap of nodes of known probability, with some that were looked at
  double best_known_;        // of the labels
  size_t passed_ = 0;        // so many of the inner nodes are not left
};

}  // namespace plc
