// Requests for any mix of tasks in, answers out: what plc_runtime.h offers, in C++.
//
// Threads share a session. A lock is held while a step runs; threads get it in the order in which
// they ask. Events are put into the inbox that a request was submitted with, and are taken from it
// with the lock held, so no callback of a caller ever runs inside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "requests.h"
#include "result.h"

namespace plc {

struct SessionOptions {
  std::string onnxruntime;  // path; empty: environment, then the system's search
  int threads = 0;          // all cores
  size_t max_batch = 16;
  int64_t context_mib = -1;
  bool allow_failed_parity = false;
  bool drafts = false;
  bool sums_of_base = true;  // whether the files in base/ are read to compare their sums
  std::string provider;      // empty: that of the bundle's target
  std::string provider_library;
  std::vector<std::pair<std::string, std::string>> provider_options;
};

struct TaskInfo {
  std::string name;
  std::vector<std::string> fields;
  std::vector<std::string> choices;
};

class Session {
 public:
  static Result<std::unique_ptr<Session>> open(const std::string& bundle, const SessionOptions& options);

  // Calls that are inside have left before this returns. A thread that calls `wait` several times may
  // be between two of them: call `close` first, and wait for such threads.
  virtual ~Session() = default;

  // Ends all requests with an error. After that, calls that begin something give one, too.
  virtual void close() = 0;

  // All tasks of another bundle of the same base, or none.
  virtual Status add(const std::string& bundle) = 0;
  virtual Status remove(const std::string& task) = 0;
  virtual std::vector<TaskInfo> tasks() const = 0;

  // Where memory runs out, calls give an error; only `tasks` and `decode`, which cannot, throw
  // std::bad_alloc.

  // The inbox must live until the request's last event was taken, or `leave` was called for it.
  virtual Result<uint64_t> submit(const Request& request, Inbox* inbox) = 0;

  // One step of all requests under way, if there are any; whether some are left. Where the step
  // fails, each of them ends with an event that says so, and the session begins anew.
  virtual Result<bool> step() = 0;

  // The next event of an inbox; none where it is empty.
  virtual std::optional<Event> take(Inbox* inbox) = 0;

  // Runs steps, or waits for those of other threads, until the inbox has an event or none of
  // `number` can come; then it takes it.
  virtual std::optional<Event> wait(Inbox* inbox, uint64_t number) = 0;

  // Ends a request; its last event is put into its inbox.
  virtual void cancel(uint64_t number) = 0;

  // Ends a request without an event: nobody waits for it any more.
  virtual void leave(uint64_t number) = 0;

  // Rows that were compared; an error where logits differ by more than they may.
  virtual Result<size_t> self_test(const std::string& task) = 0;

  virtual Status encode(std::string_view text, std::vector<int32_t>& ids) const = 0;
  virtual std::string decode(const std::vector<int32_t>& ids) const = 0;
};

}  // namespace plc
