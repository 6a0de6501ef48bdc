#include "fake_session.h"

#include <cmath>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>

#include "utf8.h"

namespace fake {

Seen& seen() {
  static Seen the_last;
  return the_last;
}

std::atomic<bool> is_seen{true};
std::atomic<bool> fails_step{false};
std::atomic<int> sessions{0};

namespace {

using plc::Error;
using plc::ErrorCode;

class FakeSession : public plc::Session {
 public:
  FakeSession() { ++sessions; }

  ~FakeSession() override {
    close();
    --sessions;
  }

  void close() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [number, row] : rows_) row.inbox->push_back(ended(number, ErrorCode::kCancelled, "closed"));
    rows_.clear();
    is_closed_ = true;
  }

  plc::Status add(const std::string& bundle) override {
    if (bundle == "throws") throw std::runtime_error("thrown on purpose");
    if (bundle != "more") return Error{ErrorCode::kFormat, "adding " + bundle + ": another base"};
    const std::lock_guard<std::mutex> lock(mutex_);
    tasks_.insert(tasks_.begin(), {"more", {"a"}, {}});
    return {};
  }

  plc::Status remove(const std::string& task) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t place = 0; place < tasks_.size(); ++place) {
      if (tasks_[place].name != task) continue;
      tasks_.erase(tasks_.begin() + static_cast<std::ptrdiff_t>(place));
      return {};
    }
    return Error{ErrorCode::kRequest, "removing " + task + ": no such task"};
  }

  std::vector<plc::TaskInfo> tasks() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return tasks_;
  }

  plc::Result<uint64_t> submit(const plc::Request& request, plc::Inbox* inbox) override {
    if (request.task == "memory") throw std::bad_alloc();
    if (request.task == "exception") throw std::runtime_error("thrown on purpose");
    if (request.task == "number") throw 7;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (is_closed_) return Error{ErrorCode::kArgument, "answering: the session was closed"};
    if (is_seen) seen().request = request;
    for (const plc::TaskInfo& task : tasks_) {
      if (task.name != request.task) continue;
      rows_[++last_number_] = {request, inbox, 0};
      return last_number_;
    }
    return Error{ErrorCode::kRequest, "answering: there is no task '" + request.task + "'"};
  }

  plc::Result<bool> step() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return step_locked();
  }

  std::optional<plc::Event> take(plc::Inbox* inbox) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return take_locked(inbox);
  }

  std::optional<plc::Event> wait(plc::Inbox* inbox, uint64_t number) override {
    for (;;) {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (std::optional<plc::Event> found = take_locked(inbox)) return found;
      if (rows_.count(number) == 0) return std::nullopt;
      (void)step_locked();
    }
  }

  void cancel(uint64_t number) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto row = rows_.find(number);
    if (row == rows_.end()) return;
    row->second.inbox->push_back(ended(number, ErrorCode::kCancelled, "answering: cancelled"));
    rows_.erase(row);
  }

  void leave(uint64_t number) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    rows_.erase(number);
  }

  plc::Result<size_t> self_test(const std::string& task) override {
    if (task == "mood") return Error{ErrorCode::kAnswer, "testing mood: logits differ"};
    return task == "echo" ? size_t{3} : size_t{0};
  }

  plc::Status encode(std::string_view text, std::vector<int32_t>& ids) const override {
    for (const char byte : text) ids.push_back(static_cast<unsigned char>(byte));
    return {};
  }

  std::string decode(const std::vector<int32_t>& ids) const override {
    std::string text;
    for (const int32_t id : ids) text += static_cast<char>(id);
    return text;
  }

 private:
  struct Row {
    plc::Request request;
    plc::Inbox* inbox;
    size_t written;  // bytes of the answer
    size_t tokens = 0;
  };

  static plc::Event ended(uint64_t number, ErrorCode code, const char* message) {
    plc::Event event;
    event.number = number;
    event.is_last = true;
    event.error = Error{code, message};
    return event;
  }

  static std::optional<plc::Event> take_locked(plc::Inbox* inbox) {
    if (inbox->empty()) return std::nullopt;
    std::optional<plc::Event> first(std::move(inbox->front()));
    inbox->pop_front();
    return first;
  }

  plc::Result<bool> step_locked() {
    const bool fails = fails_step.exchange(false);
    for (auto row = rows_.begin(); row != rows_.end();) {
      const uint64_t number = row->first;
      plc::Event event;
      if (fails || (row->second.request.task == "overflow" && row->second.tokens == 1)) {
        event = fails ? ended(number, ErrorCode::kRuntime, "stepping: it failed")
                      : ended(number, ErrorCode::kAnswer, "answering: numbers are not finite");
      } else {
        event = next_event(number, row->second);
      }
      const bool is_last = event.is_last;
      row->second.inbox->push_back(std::move(event));
      row = is_last ? rows_.erase(row) : std::next(row);
    }
    if (fails) return Error{ErrorCode::kRuntime, "stepping: it failed"};
    return !rows_.empty();
  }

  static plc::Event next_event(uint64_t number, Row& row) {
    plc::Event event;
    event.number = number;
    if (row.request.kind != plc::Kind::kAnswer) {
      event.is_last = true;
      if (row.request.kind == plc::Kind::kBestLabel) {
        event.labels = {{"good", std::nan(""), -0.25}};
      } else {
        event.labels = {{"good", 0.75, -0.25}, {"bad", 0.25, -1.5}};
      }
      return event;
    }
    ++row.tokens;
    const bool echoes = row.request.task == "echo";
    const std::string value = echoes && !row.request.fields.empty() ? row.request.fields[0].second : "";
    const std::string_view rest = std::string_view(value).substr(row.written);
    if (!echoes) {
      event.text = "x";
    } else if (!rest.empty()) {
      event.text = rest.substr(0, plc::utf8_step(rest).bytes);
    }
    if (echoes) row.written += event.text.size();
    const bool is_cut = row.tokens == static_cast<size_t>(row.request.max_tokens);
    event.is_last = echoes && (row.written == value.size() || is_cut);
    if (!event.is_last) return event;
    event.answer.emplace();
    event.answer->text = value.substr(0, row.written);
    for (const char byte : event.answer->text)
      event.answer->token_ids.push_back(static_cast<unsigned char>(byte));
    event.answer->finish_reason =
        row.written < value.size() ? plc::FinishReason::kLength : plc::FinishReason::kStop;
    event.answer->prompt_tokens = 9;
    event.answer->cut_tokens = 2;
    event.answer->prefix_tokens = 4;
    event.answer->shared_tokens = 5;
    if (row.request.log_probs >= 0) {
      for (const int32_t id : event.answer->token_ids)
        event.answer->log_probs.push_back({{id, -0.5}, {id, -0.5}, {id + 1, -2.0}});
    }
    return event;
  }

  mutable std::mutex mutex_;
  std::vector<plc::TaskInfo> tasks_{{"echo", {"text"}, {}},
                                    {"endless", {}, {}},
                                    {"mood", {"text", "title"}, {"good", "bad"}},
                                    {"overflow", {}, {}}};
  std::map<uint64_t, Row> rows_;
  bool is_closed_ = false;
  uint64_t last_number_ = 0;
};

}  // namespace
}  // namespace fake

namespace plc {

Result<std::unique_ptr<Session>> Session::open(const std::string& bundle, const SessionOptions& options) {
  if (fake::is_seen) {
    fake::seen().bundle = bundle;
    fake::seen().options = options;
  }
  if (bundle == "missing") return Error{ErrorCode::kFile, "opening missing: there is no such folder"};
  if (bundle == "throws") throw std::bad_alloc();
  return std::unique_ptr<Session>(std::make_unique<fake::FakeSession>());
}

}  // namespace plc
