#include "label_trie.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "unicode.h"
#include "words.h"

namespace plc {
namespace {

size_t at(int32_t node) { return static_cast<size_t>(node); }

bool is_inside_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

}  // namespace

LabelTrie LabelTrie::of(std::vector<std::string> labels, const std::vector<std::vector<int32_t>>& sequences,
                        bool fixed) {
  LabelTrie trie;
  trie.labels_ = std::move(labels);
  trie.fixed_ = fixed;
  trie.parents_ = trie.tokens_ = {-1};
  std::unordered_map<uint64_t, int32_t> children;  // by parent << 32 | token
  for (const std::vector<int32_t>& sequence : sequences) {
    int32_t node = 0;
    for (const int32_t token : sequence) {
      const uint64_t key = uint64_t{static_cast<uint32_t>(node)} << 32 | static_cast<uint32_t>(token);
      const auto next = static_cast<int32_t>(trie.parents_.size());
      const auto found = children.emplace(key, next);
      if (found.second) {
        trie.parents_.push_back(node);
        trie.tokens_.push_back(token);
      }
      node = found.first->second;
    }
    trie.ends_.push_back(node);
  }
  trie.link();
  return trie;
}

Result<LabelTrie> LabelTrie::of_parts(std::vector<std::string> labels, std::vector<int32_t> parents,
                                      std::vector<int32_t> tokens, std::vector<int32_t> ends, bool fixed) {
  LabelTrie trie;
  trie.labels_ = std::move(labels);
  trie.parents_ = std::move(parents);
  trie.tokens_ = std::move(tokens);
  trie.ends_ = std::move(ends);
  trie.fixed_ = fixed;
  if (!trie.is_sound()) return Error{ErrorCode::kFormat, "not a tree of labels"};
  trie.link();
  return trie;
}

bool LabelTrie::is_sound() const {
  const size_t count = parents_.size();
  if (count == 0 || count > INT32_MAX || count != tokens_.size() || parents_[0] != -1 || tokens_[0] != -1 ||
      ends_.size() != labels_.size())
    return false;
  std::vector<bool> goes_on(count);  // whether a child or an end is there
  std::unordered_set<uint64_t> seen;
  for (size_t node = 1; node < count; ++node) {
    if (parents_[node] < 0 || at(parents_[node]) >= node || tokens_[node] < 0) return false;
    const uint64_t key =
        uint64_t{static_cast<uint32_t>(parents_[node])} << 32 | static_cast<uint32_t>(tokens_[node]);
    if (!seen.insert(key).second) return false;
    goes_on[at(parents_[node])] = true;
  }
  for (const int32_t end : ends_) {
    if (end <= 0 || at(end) >= count) return false;
    goes_on[at(end)] = true;
  }
  return std::find(goes_on.begin(), goes_on.end(), false) == goes_on.end();
}

// All that is derived from the parts. They are sound.
void LabelTrie::link() {
  const size_t count = parents_.size();
  first_child_.assign(count + 1, 0);
  for (size_t node = 1; node < count; ++node) ++first_child_[at(parents_[node]) + 1];
  for (size_t node = 0; node < count; ++node) first_child_[node + 1] += first_child_[node];
  children_.resize(count - 1);
  std::vector<uint32_t> next(first_child_.begin(), first_child_.end() - 1);
  for (size_t node = 1; node < count; ++node)
    children_[next[at(parents_[node])]++] = static_cast<int32_t>(node);
  const auto has_less = [this](int32_t a, int32_t b) { return tokens_[at(a)] < tokens_[at(b)]; };
  for (size_t node = 0; node < count; ++node)
    std::sort(children_.begin() + static_cast<std::ptrdiff_t>(first_child_[node]),
              children_.begin() + static_cast<std::ptrdiff_t>(first_child_[node + 1]), has_less);
  label_at_.assign(count, -1);
  for (size_t label = 0; label < ends_.size(); ++label)
    label_at_[at(ends_[label])] = static_cast<int32_t>(label);
  std::vector<size_t> depths(count);
  for (size_t node = 1; node < count; ++node) depths[node] = depths[at(parents_[node])] + 1;
  longest_ = 0;
  for (const int32_t end : ends_) longest_ = std::max(longest_, depths[at(end)]);
  find_texts();
  find_inner_nodes();
}

std::string_view LabelTrie::bare(size_t label) const { return without_space(labels_[label]); }

std::string_view LabelTrie::text(int32_t node) const {
  const Start start = texts_[at(node)];
  return start.bytes == 0 ? std::string_view() : bare(start.label).substr(0, start.bytes);
}

void LabelTrie::find_texts() {
  std::unordered_set<std::string_view> whole;
  for (size_t label = 0; label < labels_.size(); ++label)
    if (label_at_[at(ends_[label])] == static_cast<int32_t>(label)) whole.insert(bare(label));
  texts_.assign(parents_.size(), {});
  for (size_t node = texts_.size(); node-- > 0;) {  // a parent stands before its children
    Start& start = texts_[node];
    if (label_at_[node] >= 0) {
      start.label = static_cast<uint32_t>(label_at_[node]);
      start.bytes = static_cast<uint32_t>(bare(start.label).size());
      continue;
    }
    bool is_first = true;
    for (const int32_t each : children(static_cast<int32_t>(node))) {
      const std::string_view mine = is_first ? text(each) : text(static_cast<int32_t>(node));
      const std::string_view other = text(each);
      size_t alike = 0;
      while (alike < mine.size() && alike < other.size() && mine[alike] == other[alike]) ++alike;
      // Only whole characters.
      while (alike > 0 && alike < mine.size() && is_inside_character(mine[alike])) --alike;
      if (is_first) start.label = texts_[at(each)].label;
      start.bytes = static_cast<uint32_t>(alike);
      is_first = false;
    }
    while (start.bytes > 0 && whole.count(text(static_cast<int32_t>(node))) != 0) {
      const std::string_view all = bare(start.label);
      do --start.bytes;
      while (start.bytes > 0 && is_inside_character(all[start.bytes]));
    }
  }
}

void LabelTrie::find_inner_nodes() {
  std::vector<int32_t> waiting = {0};
  while (!waiting.empty()) {
    const int32_t node = waiting.back();
    waiting.pop_back();
    const Nodes below = children(node);
    if (!below.empty() && node != 0) inner_nodes_.push_back(node);
    for (const int32_t* each = below.last; each != below.first;) waiting.push_back(*--each);
  }
}

int32_t LabelTrie::child(int32_t node, int32_t token) const {
  const Nodes all = children(node);
  const auto* const found = std::lower_bound(all.begin(), all.end(), token,
                                             [this](int32_t a, int32_t id) { return tokens_[at(a)] < id; });
  return found != all.end() && tokens_[at(*found)] == token ? *found : -1;
}

std::vector<int32_t> LabelTrie::nodes_to(int32_t node) const {
  std::vector<int32_t> nodes;
  for (; node != 0; node = parents_[at(node)]) nodes.push_back(node);
  std::reverse(nodes.begin(), nodes.end());
  return nodes;
}

std::vector<int32_t> LabelTrie::path(int32_t node) const {
  std::vector<int32_t> found = nodes_to(node);
  for (int32_t& each : found) each = tokens_[at(each)];
  return found;
}

Branches LabelTrie::group(NodeOrder& order, size_t most) const {
  Branches made;
  std::vector<int32_t> larger;
  for (int32_t node = order.next(); node >= 0; node = order.next()) {
    const std::vector<int32_t> path = nodes_to(node);  // ascending
    larger.clear();
    std::set_union(made.nodes.begin(), made.nodes.end(), path.begin(), path.end(),
                   std::back_inserter(larger));
    if (!made.nodes.empty() && larger.size() > most) break;
    made.wanted.push_back(node);
    made.nodes.swap(larger);
  }
  std::sort(made.wanted.begin(), made.wanted.end());
  return made;
}

std::vector<int32_t> TrieWalk::allowed() const {
  std::vector<int32_t> ids;
  if (trie_->label_at(node_) >= 0) return ids;
  for (const int32_t each : trie_->children(node_)) ids.push_back(trie_->tokens()[at(each)]);
  return ids;
}

bool TrieWalk::push(int32_t id) {
  const int32_t next = trie_->child(node_, id);
  if (next < 0) return false;
  node_ = next;
  return true;
}

}  // namespace plc
