// A request for the probabilities of labels, as a row that steps among others.
//
// The prompt is fed once. Then the nodes of the tree of labels are fed after it: on branches, many in
// one step, where the engine computes branches as if each were alone; else one after the other, and
// the row forgets in between what leads to no later node. Both give the logits that an answer meets,
// to the last bit. (runtime/label_rows.py is the same in Python.)
#pragma once

#include "label_search.h"
#include "rows.h"

namespace plc {

// Looks for the probabilities of all labels of a task, or for the likeliest label: then it stops when
// that is known.
class LabelRow final : public Row {
 public:
  // `parts` have a tree.
  LabelRow(RowParts parts, bool best);

  bool is_live() const override { return !is_found_ && Row::is_live(); }
  size_t left() const override;
  RowFeed take(size_t count) override;
  void look(Feed& feed) const override;
  std::optional<GraphDraw> draw(size_t candidates, const std::vector<std::string>& inputs) override;
  Event advance(Output& output) override;
  Event time_out() override;

 private:
  void walk();
  std::vector<LabelScore> found() const;

  const bool best_;
  LabelSearch search_;
  std::vector<int32_t> next_{};     // nodes to feed; before the prompt was fed none
  std::vector<int32_t> wanted_{0};  // of them, those after which logits are looked at
  std::vector<int32_t> path_{};     // nodes that the row holds after its prompt
  size_t most_;                     // nodes of the next step
  bool is_found_ = false;
};

}  // namespace plc
