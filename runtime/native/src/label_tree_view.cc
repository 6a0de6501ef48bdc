#include "label_tree_view.h"

#include <algorithm>

namespace plc {

LabelTree::LabelTree(const LabelTreeView& view)
    : view_(view), starts_(view.parents.size() + 1), children_(view.parents.size() - 1), inner_() {
  const size_t count = nodes();
  for (size_t node = 1; node < count; ++node) ++starts_[static_cast<size_t>(view_.parents[node]) + 1];
  for (size_t node = 0; node < count; ++node) starts_[node + 1] += starts_[node];
  std::vector<int32_t> next(starts_.begin(), starts_.end() - 1);
  for (size_t node = 1; node < count; ++node) {
    const size_t place = static_cast<size_t>(next[static_cast<size_t>(view_.parents[node])]++);
    children_[place] = static_cast<int32_t>(node);
  }

  std::vector<int32_t> waiting{0};
  while (!waiting.empty()) {
    const int32_t node = waiting.back();
    waiting.pop_back();
    if (node != 0 && begin(node) != end(node)) inner_.push_back(node);
    const auto start = static_cast<std::ptrdiff_t>(waiting.size());
    waiting.insert(waiting.end(), begin(node), end(node));
    // The smallest token is taken first.
    std::sort(waiting.begin() + start, waiting.end(),
              [this](int32_t left, int32_t right) { return token(left) > token(right); });
  }
}

LabelBranches LabelTree::group(LabelOrder& order, size_t most) const {
  LabelBranches found;
  std::vector<int32_t> added;
  for (int32_t node = order.next(); node >= 0; node = order.next()) {
    added.clear();
    for (int32_t each = node; each > 0; each = view_.parents[static_cast<size_t>(each)])
      if (!std::binary_search(found.nodes.begin(), found.nodes.end(), each)) added.push_back(each);
    if (!found.nodes.empty() && found.nodes.size() + added.size() > most) break;
    found.wanted.push_back(node);
    found.nodes.insert(found.nodes.end(), added.begin(), added.end());
    std::sort(found.nodes.begin(), found.nodes.end());
  }
  std::sort(found.wanted.begin(), found.wanted.end());
  return found;
}

}  // namespace plc
