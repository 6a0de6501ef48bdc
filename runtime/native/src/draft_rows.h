// Rows that guess their next tokens, and look in one step at how far the guess holds.
//
// A row feeds its last token and a draft of those that may follow. The logits after each of them come
// in one step. The row then chooses token by token, as it always does. While a token is the one of
// the draft, the logits after it are there already. Where it differs, the rest of the draft is
// forgotten. So the answer is the same, to the last bit, where an engine gives tokens that come
// together the bits that each has alone (`Engine::branches`): elsewhere nothing is drafted.
// (runtime/draft_rows.py, lookup_rows.py and span_rows.py are the same in Python.)
#pragma once

#include "lookup.h"
#include "rows.h"
#include "step_costs.h"

namespace plc {

// Drafts what `propose` says.
class DraftRow : public Row {
 public:
  using Row::Row;

  size_t left() const override { return Row::left() + draft_.size(); }
  RowFeed take(size_t count) override;
  std::optional<GraphDraw> draw(size_t candidates, const std::vector<std::string>& inputs) override;
  bool has_numbers(Output& output) const override;
  Event advance(Output& output) override;

 protected:
  // The tokens that may follow the answer so far; at most so many are of use, at least 1.
  virtual std::vector<int32_t> propose(size_t most) = 0;
  // Learns how many tokens of a draft were chosen.
  virtual void note(size_t drafted, size_t taken) = 0;

 private:
  void settle(size_t drafted, size_t taken);

  std::vector<int32_t> draft_{};  // to be fed
  std::vector<int32_t> tried_{};  // fed in this step
  std::optional<size_t> kept_{};  // entries that stay before the next tokens; all if absent
};

// Writes an answer that is open, and drafts what stood before.
class LookupRow final : public DraftRow {
 public:
  // `costs` of steps: they outlive the row.
  LookupRow(RowParts parts, const StepCosts& costs) : DraftRow(std::move(parts)), costs_(costs) {}

 protected:
  std::vector<int32_t> propose(size_t most) override;
  void note(size_t drafted, size_t taken) override { drafts_.note(drafted, taken); }
  Event choose(Output& output) override;

 private:
  const StepCosts& costs_;
  LookupDrafts drafts_{};
};

// Writes an answer that is copied from a field: only tokens that continue a span may come. Where one
// token alone may follow, it is written, and nothing is computed for it. Where one place of the field
// is left, what follows there is drafted.
class SpanRow final : public DraftRow {
 public:
  using DraftRow::DraftRow;

  // None: a graph chooses among all tokens.
  std::optional<GraphDraw> draw(size_t candidates, const std::vector<std::string>& inputs) override;

 protected:
  std::vector<int32_t> propose(size_t most) override;
  void note(size_t drafted, size_t taken) override;
  Event choose(Output& output) override;
  std::optional<std::vector<int32_t>> allowed() const override;

 private:
  // Tokens of the first draft, and of those that follow drafts that were right.
  static constexpr size_t kFirst = 6, kMost = 16;

  size_t length_ = kFirst;
};

}  // namespace plc
