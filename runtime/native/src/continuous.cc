#include "continuous.h"

#include <chrono>

#include "words.h"

namespace plc {
namespace {

double seconds_now() {
  using Seconds = std::chrono::duration<double>;
  return Seconds(std::chrono::steady_clock::now().time_since_epoch()).count();
}

bool is_alike(void* engine, size_t slot, size_t other) {
  return static_cast<Engine*>(engine)->alike(slot, other);
}

Event last_event(uint64_t number, const Error& error) {
  Event event;
  event.number = number;
  event.is_last = true;
  event.error = error;
  return event;
}

}  // namespace

Continuous::Continuous(Engine& engine, StepCosts* costs)
    : engine_(engine),
      costs_(costs),
      scheduler_(Scheduler::of_engine(engine.max_batch, engine.piece, engine.branches)),
      held_(engine.max_batch) {}

std::optional<size_t> Continuous::free_slot() const {
  for (size_t slot = 0; slot < held_.size(); ++slot)
    if (!held_[slot]) return slot;
  return std::nullopt;
}

void Continuous::submit(uint64_t number, std::unique_ptr<Row> row) {
  const Request& request = row->parts().request;
  const size_t tokens = row->parts().input_ids.size();
  if (request.timeout > 0) deadlines_.set(number, seconds_now() + request.timeout);
  scheduler_.submit(number, tokens, request.priority);
  rows_.emplace(number, std::move(row));
}

void Continuous::cancel(uint64_t number) {
  deadlines_.remove(number);
  if (const auto slot = scheduler_.withdraw(number)) {
    held_[*slot].reset();
    engine_.retire({*slot});
  }
  rows_.erase(number);
}

Status Continuous::step(std::vector<Event>& events) {
  if (end_overdue(events)) return {};
  if (Status done = admit(); !done.ok()) return done;
  const std::vector<FedTokens> turn = scheduler_.turn(is_alike, &engine_);
  if (turn.empty()) return {};
  std::vector<Fed> results;
  const double began = seconds_now();
  if (Status done = run(turn, results); !done.ok()) return done;
  if (costs_ != nullptr) {
    size_t tokens = 0;
    for (const FedTokens& fed : turn) tokens += fed.tokens;
    costs_->note(tokens, seconds_now() - began);
  }
  std::vector<size_t> broken, over;
  for (size_t k = 0; k < turn.size(); ++k) {
    const size_t slot = turn[k].slot;
    Row& row = *held_[slot]->row;
    if (row.left() > 0) continue;
    Output output(results[k].logits, results[k].outputs, engine_.vocab, results[k].token);
    if (row.has_numbers(output)) {
      events.push_back(row.advance(output));
      events.back().number = turn[k].request;
      // Tokens that come together have other bits where the engine takes no branches.
      if (row.is_live()) scheduler_.ask(slot, engine_.branches ? row.left() : 1);
    } else {
      row.error = Error{ErrorCode::kAnswer,
                        joined({"answering a request for task '", row.parts().task->name(),
                                "': logits that are not finite numbers. The numbers of the prompt or of the "
                                "base are too large: train it again, or verify the bundle."})};
      events.push_back(last_event(turn[k].request, *row.error));
      broken.push_back(slot);
    }
    if (!row.is_live()) over.push_back(slot);
  }
  if (!broken.empty()) engine_.clear(broken);
  for (const FedTokens& fed : turn)
    if (!held_[fed.slot]->row->is_live()) deadlines_.remove(fed.request);
  scheduler_.finish(over);
  for (const size_t slot : over) held_[slot].reset();
  engine_.retire(over);
  for (const FedTokens& fed : turn)
    if (!held_[fed.slot]) rows_.erase(fed.request);
  return {};
}

// Whether there were rows whose time is over.
bool Continuous::end_overdue(std::vector<Event>& events) {
  if (deadlines_.empty()) return false;
  const std::vector<uint64_t> overdue = deadlines_.overdue(seconds_now());
  for (const uint64_t number : overdue) {
    events.push_back(rows_.at(number)->time_out());
    events.back().number = number;
    cancel(number);
  }
  return !overdue.empty();
}

// Rows take the free slots. Those that were fed nothing begin with what others computed. They look for
// it before each step: of rows that come together and begin alike, the first one computes the
// beginning while the others wait.
Status Continuous::admit() {
  for (const auto& [slot, number] : scheduler_.admit()) {
    Row& row = *rows_.at(number);
    const RowParts& parts = row.parts();
    const auto length = engine_.admit(slot, parts.prompt);
    if (!length.ok()) return length.error();
    held_[slot] = Held{&row, parts.held, parts.held, parts.held == length.value()};
  }
  for (const auto& [slot, number] : scheduler_.not_begun()) {
    Held& held = *held_[slot];
    // Fewer than the whole prefix where it is the whole prompt: then there is nothing to share.
    const size_t count = held.has_whole_prefix ? engine_.share(slot, held.row->parts().input_ids) : 0;
    held.entries = held.begin + count;
    held.row->begin_with(count);
    scheduler_.shorten(slot, held.row->left());
  }
  return {};
}

// Feeds rows; gives for each what follows.
Status Continuous::run(const std::vector<FedTokens>& turn, std::vector<Fed>& results) {
  std::vector<Feed> feeds(turn.size());
  for (size_t k = 0; k < turn.size(); ++k) {
    Held& held = *held_[turn[k].slot];
    RowFeed given = held.row->take(turn[k].tokens);
    if (given.after) held.entries = *given.after;
    Feed& feed = feeds[k];
    feed.slot = turn[k].slot;
    feed.ids = std::move(given.ids);
    feed.past = held.entries;
    feed.wanted = std::move(given.wanted);
    feed.parents = std::move(given.parents);
    // Noise is drawn for tokens that are chosen: not after a part of what is fed.
    if (held.row->left() == 0) feed.draw = held.row->draw(engine_.candidates, engine_.sampling_inputs);
    held.row->look(feed);
  }
  if (Status done = engine_.step(feeds, results); !done.ok()) return done;
  for (const Feed& feed : feeds)
    if (feed.parents.empty()) held_[feed.slot]->entries += feed.ids.size();
  return {};
}

void Continuous::begin_anew() {
  std::vector<size_t> slots;
  for (size_t slot = 0; slot < held_.size(); ++slot) slots.push_back(slot);
  engine_.clear(slots);
  engine_.retire(slots);
  for (auto& held : held_) held.reset();
  rows_.clear();
  deadlines_ = Deadlines();
  scheduler_ = Scheduler::of_engine(engine_.max_batch, engine_.piece, engine_.branches);
}

}  // namespace plc
