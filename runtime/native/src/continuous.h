// Continuous batching: rows come and go at any time, and step together on one engine.
//
// A row's answer does not depend on what else runs, nor on when it came: prompts are cut alike where
// that changes bits (`Scheduler::of_engine`), and engines step rows together to the last bit as alone.
// (runtime/continuous.py and stepping.py are the same in Python.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "engine.h"
#include "requests.h"
#include "result.h"
#include "rows.h"
#include "scheduler.h"
#include "step_costs.h"

namespace plc {

class Continuous {
 public:
  // The engine and the costs outlive it; costs (null: nobody asks) are told what each step took.
  Continuous(Engine& engine, StepCosts* costs);

  // Whether rows wait or run.
  bool is_busy() const { return scheduler_.size() > 0; }

  // A slot that no row holds before the next step.
  std::optional<size_t> free_slot() const;

  // Puts a row into the queue, under a number that none has. It may come at any time between steps.
  void submit(uint64_t number, std::unique_ptr<Row> row);

  // Takes out a row that waits or runs; its slot is free at once. Of other numbers it does nothing.
  void cancel(uint64_t number);

  // Feeds prompts or answers, whichever have their turn, and appends what that brought: events of
  // rows that got a token, and the last event of those that are over and have left. Where the time of
  // rows is over, waiting or running, they are taken out instead, and nothing is fed. After an error,
  // and where memory ran out, only `begin_anew` can be called.
  Status step(std::vector<Event>& events);

  // Ends all rows.
  void begin_anew();

 private:
  // What a slot holds.
  struct Held {
    Row* row;
    size_t begin, entries;
    bool has_whole_prefix;
  };

  bool end_overdue(std::vector<Event>& events);
  Status admit();
  Status run(const std::vector<FedTokens>& turn, std::vector<Fed>& results);

  Engine& engine_;
  StepCosts* costs_;
  Scheduler scheduler_;
  Deadlines deadlines_{};
  std::unordered_map<uint64_t, std::unique_ptr<Row>> rows_{};
  std::vector<std::optional<Held>> held_;  // by slot
};

}  // namespace plc
