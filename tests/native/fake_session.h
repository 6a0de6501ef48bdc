// A session without a base: what it was asked for can be looked at, and its answers are known.
//
// Task "echo" answers with its field "text", one character a step, and no more than max_tokens of
// them. "endless" writes until it is ended. "mood" has the choices good and bad. "overflow" fails at
// its second step. Requests for "memory", "exception" and "number" throw. A bundle "more" adds the
// task "more"; "missing" is not there; "throws" throws.
#pragma once

#include <atomic>
#include <optional>
#include <string>

#include "session.h"

namespace fake {

struct Seen {
  std::string bundle;
  plc::SessionOptions options;
  std::optional<plc::Request> request;  // the last one that was submitted
};

// Of the last session that was opened, by one thread.
Seen& seen();

extern std::atomic<bool> is_seen;    // whether it is noted: threads would share it
extern std::atomic<bool> fails_step;  // the next step fails
extern std::atomic<int> sessions;    // that are open

}  // namespace fake
