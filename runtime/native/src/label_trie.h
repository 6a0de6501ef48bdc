// A closed set of answers as a tree of tokens: docs/artifact-format.md, "Labels".
//
// Node 0 is the root, where nothing is written yet. One token leads from a parent to each other
// node, and a parent stands before its children. (pl_compile/text/label_trie.py is the same.)
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "result.h"

namespace plc {

// Some nodes of a tree, other than the root. Both lists are in ascending order.
struct Branches {
  std::vector<int32_t> nodes;   // parents stand before their children
  std::vector<int32_t> wanted;  // those that the group is made for; the others lead to them
};

// Gives nodes in some order, one at a time; -1 after the last one.
class NodeOrder {
 public:
  virtual int32_t next() = 0;

 protected:
  ~NodeOrder() = default;
};

class LabelTrie {
 public:
  // A range of nodes.
  struct Nodes {
    const int32_t *first, *last;

    const int32_t* begin() const { return first; }
    const int32_t* end() const { return last; }
    bool empty() const { return first == last; }
    size_t size() const { return static_cast<size_t>(last - first); }
  };

  // The tree of labels whose token ids are known, EOS included where the task has one.
  static LabelTrie of(std::vector<std::string> labels, const std::vector<std::vector<int32_t>>& sequences,
                      bool fixed);

  // What a file labels.json says. An error unless it is a tree whose labels all end in it.
  static Result<LabelTrie> of_parts(std::vector<std::string> labels, std::vector<int32_t> parents,
                                    std::vector<int32_t> tokens, std::vector<int32_t> ends, bool fixed);

  const std::vector<std::string>& labels() const { return labels_; }
  const std::vector<int32_t>& parents() const { return parents_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }  // that leads to each node
  const std::vector<int32_t>& ends() const { return ends_; }      // for each label, its node
  bool fixed() const { return fixed_; }  // whether it is the same after every prompt of the task

  size_t nodes() const { return parents_.size(); }
  size_t longest() const { return longest_; }  // tokens of the longest answer

  // In ascending order of their tokens.
  Nodes children(int32_t node) const {
    const int32_t* const all = children_.data();
    const auto place = static_cast<size_t>(node);
    return {all + first_child_[place], all + first_child_[place + 1]};
  }

  // The child that a token leads to; -1 if there is none.
  int32_t child(int32_t node, int32_t token) const;

  // The label that ends at a node; -1 if none does.
  int32_t label_at(int32_t node) const { return label_at_[static_cast<size_t>(node)]; }

  // The common start of all labels below a node; at the end of a label, the label. Elsewhere it is
  // made shorter until it is no label: an answer that is not complete never looks like one. Labels
  // are taken without white space at their ends.
  std::string_view text(int32_t node) const;

  // The nodes from the one below the root to a node; none for the root itself.
  std::vector<int32_t> nodes_to(int32_t node) const;

  // The tokens that lead to a node.
  std::vector<int32_t> path(int32_t node) const;

  // The nodes other than the root that have children, each followed by those below it.
  const std::vector<int32_t>& inner_nodes() const { return inner_nodes_; }

  // The first nodes of `order` (at least one, and not the root), with all that lead to them: at
  // most `most`, unless the first one alone needs more.
  Branches group(NodeOrder& order, size_t most) const;

  friend bool operator==(const LabelTrie& a, const LabelTrie& b) {
    return a.labels_ == b.labels_ && a.parents_ == b.parents_ && a.tokens_ == b.tokens_ &&
           a.ends_ == b.ends_ && a.fixed_ == b.fixed_;
  }

 private:
  // A text is the start of a label, as it is without white space at its ends.
  struct Start {
    uint32_t label = 0;
    uint32_t bytes = 0;
  };

  LabelTrie() = default;
  bool is_sound() const;
  void link();
  void find_texts();
  void find_inner_nodes();
  std::string_view bare(size_t label) const;

  std::vector<std::string> labels_{};
  std::vector<int32_t> parents_{}, tokens_{}, ends_{};
  bool fixed_ = false;
  size_t longest_ = 0;
  std::vector<uint32_t> first_child_{};  // [nodes + 1], places in `children_`
  std::vector<int32_t> children_{}, label_at_{}, inner_nodes_{};
  std::vector<Start> texts_{};
};

// One answer that is being written, from the root on.
class TrieWalk {
 public:
  explicit TrieWalk(std::shared_ptr<const LabelTrie> trie) : trie_(std::move(trie)) {}

  // The tokens that continue an answer, in ascending order; none once one is complete. Without EOS,
  // a complete answer ends even where a longer label begins with it.
  std::vector<int32_t> allowed() const;

  // The part of the answer that is certain. It only grows, up to the whole answer.
  std::string_view text() const { return trie_->text(node_); }

  // Goes on with one of the allowed tokens; of others it returns false and stays.
  bool push(int32_t id);

  int32_t node() const { return node_; }
  const LabelTrie& trie() const { return *trie_; }

 private:
  std::shared_ptr<const LabelTrie> trie_;
  int32_t node_ = 0;
};

}  // namespace plc
