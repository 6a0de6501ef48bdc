// A closed set of answers as a tree of tokens (docs/artifact-format.md, "Labels"), as a search walks
// it. (pl_compile/text/label_trie.py is the same in Python.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace plc {

// The tree as it is stored, checked before. It refers to memory that outlives it.
struct LabelTreeView {
  const std::vector<int32_t>& parents;  // for each node; -1 of node 0, the root. Smaller than the node
  const std::vector<int32_t>& tokens;   // that lead to the nodes; -1 of the root
  const std::vector<int32_t>& ends;     // for each label, its node
};

// Some nodes other than the root, in ascending order: parents stand before their children.
struct LabelBranches {
  std::vector<int32_t> nodes;
  std::vector<int32_t> wanted;  // those that the group is made for; the others lead to them
};

// Gives nodes in some order, one at a time; -1 after the last one.
class LabelOrder {
 public:
  virtual int32_t next() = 0;

 protected:
  ~LabelOrder() = default;
};

class LabelTree {
 public:
  explicit LabelTree(const LabelTreeView& view);

  size_t nodes() const { return view_.parents.size(); }
  int32_t token(int32_t node) const { return view_.tokens[static_cast<size_t>(node)]; }
  const std::vector<int32_t>& ends() const { return view_.ends; }

  // The children of a node, in ascending order.
  const int32_t* begin(int32_t node) const { return children_.data() + starts_[static_cast<size_t>(node)]; }
  const int32_t* end(int32_t node) const { return children_.data() + starts_[static_cast<size_t>(node) + 1]; }

  // The nodes other than the root that have children, each followed by those below it.
  const std::vector<int32_t>& inner_nodes() const { return inner_; }

  // The first nodes of an order, which has one at least, with all nodes that lead to them: at most so
  // many, unless the first one alone needs more.
  LabelBranches group(LabelOrder& order, size_t most) const;

 private:
  const LabelTreeView view_;
  std::vector<int32_t> starts_;    // [nodes + 1], in `children_`
  std::vector<int32_t> children_;  // of all nodes
  std::vector<int32_t> inner_;
};

}  // namespace plc
