// From a queue to slots: who is admitted where, and what each row is fed next. It knows no engine
// and no numbers: a request is a number of the caller's. (runtime/scheduler.py does the same.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

namespace plc {

// A request that is fed so many tokens: a piece of its prompt, or what it asked for.
struct FedTokens {
  size_t slot;
  uint64_t request;
  size_t tokens;
};

// A slot and the request that holds it.
using Held = std::pair<size_t, uint64_t>;

// Gives requests slots, and says what their rows are fed.
//
// The next request takes a free slot at once: of a higher priority first, then as they came. Its
// prompt is fed in pieces. Each turn, rows whose prompt was fed get what they ask for, and prompts
// share what else a turn may hold, in the order of the queue: so neither keeps the other waiting for
// long. Where fewer rows write than prompts are under way, a turn may hold more of these: more rows
// gain by that than lose.
class Scheduler {
 public:
  // `piece`: most tokens of a prompt that are fed at once. Each piece of a prompt but the last has
  // this many, whatever else runs. 0: a prompt may be cut anywhere. `budget`: most tokens of prompts
  // in a turn; one piece at least. `rush`: the same where fewer rows write than prompts are under
  // way, if it is more.
  Scheduler(size_t slots, size_t piece, size_t budget, size_t rush = 0);

  // That of a session, for an engine's slots and piece. `together`: whether no number of a token
  // depends on those that come with it. Then a prompt may be cut anywhere, and tokens of several
  // prompts cost less each in one step. Else every prompt is cut as the engine says, whatever else
  // runs.
  static Scheduler of_engine(size_t slots, size_t piece, bool together);

  // How many requests wait or run, and how many hold a slot.
  size_t size() const { return waiting_.size() + running_.size(); }
  size_t running() const { return running_.size(); }

  // Puts a request into the queue, one that neither waits nor runs. `tokens`: of its prompt that are
  // to be fed; at least one. Larger priorities are admitted first.
  void submit(uint64_t request, size_t tokens, int64_t priority = 0);

  // Takes a request out, whether it waits or runs; the slot that becomes free, if it held one.
  std::optional<size_t> withdraw(uint64_t request);

  // Takes out the requests that hold some slots.
  void finish(const std::vector<size_t>& slots);

  // Says how many tokens, at least one, a request whose prompt was fed is fed in its next turns.
  void ask(size_t slot, size_t tokens);

  // Gives the free slots to the first requests of the queue: these.
  std::vector<Held> admit();

  // The requests that were fed nothing, in the order in which they were admitted.
  std::vector<Held> not_begun() const;

  // Says how many tokens, at least one, of a prompt are to be fed, before any was.
  void shorten(size_t slot, size_t tokens);

  // Whether the prompt in a slot, of which nothing was fed, had better wait until that in another
  // slot was fed: then less of it is to be computed.
  using Alike = bool (*)(void* context, size_t slot, size_t other);

  // What the requests that hold a slot are fed next, by slot in ascending order. `context` is what
  // `alike` is given.
  std::vector<FedTokens> turn(Alike alike = nullptr, void* context = nullptr);

 private:
  struct Entry {
    uint64_t request;
    int64_t priority;
    uint64_t count;      // requests that came before
    size_t unfed;        // tokens of its prompt that were not fed
    size_t asked = 1;    // tokens that it is fed at once, after its prompt
    size_t slot = 0;     // while it runs
    bool begun = false;  // whether it was fed anything

    bool comes_before(const Entry& other) const {
      return priority != other.priority ? priority > other.priority : count < other.count;
    }
  };

  Entry& entry_in(size_t slot);

  size_t slots_, piece_, budget_, rush_;
  std::deque<Entry> waiting_{};   // in the order of the queue
  std::vector<Entry> running_{};  // in the order in which they were admitted
  uint64_t count_ = 0;
};

// When the time of requests is over.
class Deadlines {
 public:
  // `time`: in the seconds of the caller's clock. For a request that has none yet.
  void set(uint64_t request, double time) { times_.push_back({request, time}); }

  // Forgets a request, whether it has a deadline or not.
  void remove(uint64_t request);

  // The requests whose time is over, as they came.
  std::vector<uint64_t> overdue(double now) const;

  bool empty() const { return times_.empty(); }

 private:
  std::vector<std::pair<uint64_t, double>> times_{};
};

}  // namespace plc
