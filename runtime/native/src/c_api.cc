// plc_runtime.h on a Session: checks what callers give, copies it, and lets no exception out.
#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "c_struct.h"
#include "plc_runtime.h"
#include "session.h"
#include "utf8.h"
#include "words.h"

namespace {

using plc::ErrorCode;
using plc::joined;

// Since this release; the structs had no members behind these.
constexpr size_t kFirstOptions = sizeof(plc_options);
constexpr size_t kFirstRequest = sizeof(plc_request);

// A member that is added must change the size, or callers without it could not be told from others.
static_assert(sizeof(plc_options) ==
              offsetof(plc_options, provider_option_count) + sizeof(plc_options::provider_option_count));
static_assert(sizeof(plc_request) == offsetof(plc_request, timeout) + sizeof(plc_request::timeout));

static_assert(static_cast<int>(ErrorCode::kArgument) == PLC_ERROR_ARGUMENT);
static_assert(static_cast<int>(ErrorCode::kFile) == PLC_ERROR_FILE);
static_assert(static_cast<int>(ErrorCode::kFormat) == PLC_ERROR_FORMAT);
static_assert(static_cast<int>(ErrorCode::kRuntime) == PLC_ERROR_RUNTIME);
static_assert(static_cast<int>(ErrorCode::kRequest) == PLC_ERROR_REQUEST);
static_assert(static_cast<int>(ErrorCode::kAnswer) == PLC_ERROR_ANSWER);
static_assert(static_cast<int>(ErrorCode::kMemory) == PLC_ERROR_MEMORY);
static_assert(static_cast<int>(ErrorCode::kCancelled) == PLC_CANCELLED);
static_assert(static_cast<int>(plc::FinishReason::kStop) == PLC_STOP);
static_assert(static_cast<int>(plc::FinishReason::kLength) == PLC_LENGTH);
static_assert(static_cast<int>(plc::FinishReason::kTimeout) == PLC_TIMEOUT);
static_assert(static_cast<int>(plc::Kind::kAnswer) == PLC_ANSWER);
static_assert(static_cast<int>(plc::Kind::kBestLabel) == PLC_BEST_LABEL);
static_assert(static_cast<int>(plc::Kind::kAllLabels) == PLC_ALL_LABELS);

// ---- Errors --------------------------------------------------------------------------------------

thread_local std::string last_error;
thread_local const char* last_error_shown = "";  // that text, or one that needs no memory
thread_local bool in_callback = false;

plc_status failed(const plc::Error& error) noexcept {
  try {
    last_error = error.message;
    last_error_shown = last_error.c_str();
  } catch (...) {
    last_error_shown = "no memory is left for the message of an error";
  }
  return static_cast<plc_status>(error.code);
}

// What is being thrown.
plc_status failed_with_exception() noexcept {
  try {
    throw;
  } catch (const std::bad_alloc&) {
    last_error_shown = "no memory is left; close engines, or open them with a smaller max_batch";
    return PLC_ERROR_MEMORY;
  } catch (const std::exception& error) {
    last_error_shown = "an exception that has no message";
    try {
      return failed({ErrorCode::kRuntime, joined({"an exception: ", error.what()})});
    } catch (...) {
      return PLC_ERROR_RUNTIME;
    }
  } catch (...) {
    last_error_shown = "an exception that is no std::exception";
    return PLC_ERROR_RUNTIME;
  }
}

plc_status status_of(const plc::Status& status) { return status.ok() ? PLC_OK : failed(status.error()); }

// A call that is not allowed. `function` begins the message.
plc::Error misuse(const char* function, plc::Words found) {
  return {ErrorCode::kArgument, joined({function, ": ", joined(found)})};
}

constexpr const char* kInCallback =
    "called from inside a callback; there only plc_event_..., plc_cancel, plc_last_error and plc_abi_version "
    "may be called. Let the callback return first.";

// What all functions do that give a status: `call` is given their name, and gives one.
template <typename Call>
plc_status guarded(const char* function, Call call) noexcept {
  try {
    if (in_callback) return failed(misuse(function, {kInCallback}));
    return call(function);
  } catch (...) {
    return failed_with_exception();
  }
}

// The same of those that give something else: whether they may go on.
bool outside(const char* function) noexcept {
  return guarded(function, [](const char*) { return PLC_OK; }) == PLC_OK;
}

plc_status null_pointer(const char* function, const char* name) {
  return failed(misuse(function, {name, " is null"}));
}

// ---- What callers give ---------------------------------------------------------------------------

// Reads what a struct was given, and keeps the first problem.
class Given {
 public:
  // `text_code`: of texts that are not UTF-8.
  Given(const char* function, ErrorCode text_code) : function_(function), text_code_(text_code) {}

  // A text that ends with a 0 byte; where it may be null, null is empty.
  std::string text(const char* name, const char* given, bool may_be_null = false) {
    if (given == nullptr) {
      if (!may_be_null) problem({name, " is null"});
      return {};
    }
    return checked(name, given);
  }

  std::string text(const char* name, const char* given, size_t length) {
    if (given == nullptr) {
      if (length != 0) problem({name, " is null"});
      return {};
    }
    return checked(name,
                   length == PLC_LENGTH_OF_TEXT ? std::string_view(given) : std::string_view(given, length));
  }

  std::vector<std::string> texts(const char* name, const char* const* given, size_t count) {
    std::vector<std::string> found;
    if (!items(name, given, count)) return found;
    for (size_t place = 0; place < count && ok(); ++place) found.push_back(text(name, given[place]));
    return found;
  }

  // Whether a list may be read.
  bool items(const char* name, const void* given, size_t count) {
    if (given == nullptr && count != 0) problem({name, " is null, but its count is ", count});
    return given != nullptr && ok();
  }

  // The number of an enum, which a caller may have filled with any.
  template <typename Enum>
  int32_t choice(const char* name, const Enum& given, int32_t most) {
    static_assert(sizeof(Enum) == sizeof(int32_t));
    int32_t number;
    std::memcpy(&number, &given, sizeof number);
    at_least(name, number, 0);
    if (number > most) problem({name, " is ", number, "; expected 0 to ", most});
    return ok() ? number : 0;
  }

  void at_least(const char* name, int32_t given, int32_t least) {
    if (given < least) problem({name, " is ", given, "; expected ", least, " or more"});
  }

  void problem(plc::Words found) {
    if (ok()) error_ = misuse(function_, found);
  }
  bool ok() const { return !error_.has_value(); }
  const plc::Error& error() const { return *error_; }

 private:
  std::string checked(const char* name, std::string_view text) {
    const size_t valid = plc::utf8_valid_prefix(text);
    if (valid != text.size() && ok()) {
      problem({name, " is not UTF-8 at its byte ", valid});
      error_->code = text_code_;
    }
    return std::string(text);
  }

  const char* function_;
  ErrorCode text_code_;
  std::optional<plc::Error> error_{};
};

plc::SessionOptions read_options(Given& given, const plc_options* options) {
  plc::SessionOptions read;
  if (options == nullptr) return read;
  plc_options known = PLC_OPTIONS_INIT;
  if (!plc::copy_known(*options, kFirstOptions, known)) {
    given.problem({"options->struct_size is ", options->struct_size,
                   ", or options are set that this library does not know; begin with PLC_OPTIONS_INIT"});
    return read;
  }
  read.onnxruntime = given.text("options->onnxruntime", known.onnxruntime, true);
  given.at_least("options->threads", known.threads, 0);
  read.threads = known.threads;
  given.at_least("options->max_batch", known.max_batch, 0);
  if (known.max_batch > 0) read.max_batch = static_cast<size_t>(known.max_batch);
  given.at_least("options->context_mib", known.context_mib, -1);
  read.context_mib = known.context_mib;
  read.allow_failed_parity = known.allow_failed_parity != 0;
  read.drafts = known.drafts != 0;
  read.sums_of_base = given.choice("options->sums", known.sums, PLC_SUMS_WITHOUT_BASE) == PLC_SUMS_ALL;
  read.provider = given.text("options->provider", known.provider, true);
  read.provider_library = given.text("options->provider_library", known.provider_library, true);
  const char* name = "options->provider_options";
  if (given.items(name, known.provider_options, known.provider_option_count)) {
    const char* const* pair = known.provider_options;
    for (size_t place = 0; place < known.provider_option_count && given.ok(); ++place, pair += 2) {
      std::string key = given.text(name, pair[0]);
      read.provider_options.emplace_back(std::move(key), given.text(name, pair[1]));
    }
  }
  return read;
}

plc::Request read_request(Given& given, const plc_request& request) {
  plc::Request read;
  plc_request known = PLC_REQUEST_INIT;
  if (!plc::copy_known(request, kFirstRequest, known)) {
    given.problem({"request->struct_size is ", request.struct_size,
                   ", or members are set that this library does not know; begin with PLC_REQUEST_INIT"});
    return read;
  }
  read.task = given.text("request->task", known.task);
  if (given.items("request->fields", known.fields, known.field_count)) {
    for (size_t place = 0; place < known.field_count && given.ok(); ++place) {
      const plc_field& field = known.fields[place];
      std::string name = given.text("the name of a field", field.name);
      const std::string what = given.ok() ? "the text of field '" + name + "'" : std::string();
      read.fields.emplace_back(std::move(name), given.text(what.c_str(), field.text, field.length));
    }
  }
  read.kind = static_cast<plc::Kind>(given.choice("request->kind", known.kind, PLC_ALL_LABELS));
  read.max_tokens = known.max_tokens;
  read.min_tokens = known.min_tokens;
  read.sampling.temperature = known.temperature;
  read.sampling.top_k = known.top_k;
  read.sampling.top_p = known.top_p;
  read.sampling.min_p = known.min_p;
  read.sampling.repetition_penalty = known.repetition_penalty;
  read.sampling.no_repeat_ngram = known.no_repeat_ngram;
  read.sampling.seed = plc::Seed{known.seed};
  read.stop = given.texts("request->stop", known.stop, known.stop_count);
  read.bad_words = given.texts("request->bad_words", known.bad_words, known.bad_word_count);
  if (given.items("request->bias", known.bias, known.bias_count)) {
    for (size_t place = 0; place < known.bias_count && given.ok(); ++place) {
      const plc_bias& bias = known.bias[place];
      read.bias.emplace_back(given.text("the token of a bias", bias.token), bias.number);
    }
  }
  read.constrain = known.free_answer == 0;
  read.use_prompt = known.without_prompt == 0;
  read.priority = known.priority;
  read.timeout = known.timeout;
  read.log_probs = known.log_probs;
  return read;
}

// Writes as many as there is room for.
template <typename Item>
plc_status write_out(const char* function, const Item* found, size_t count, Item* room_for, size_t room,
                     size_t* written) {
  *written = count;
  std::copy_n(found, std::min(count, room), room_for);
  if (count <= room) return PLC_OK;
  failed(misuse(function, {"there is room for ", room, "; expected room for ", count}));
  return PLC_ERROR_ROOM;
}

}  // namespace

// ---- Events --------------------------------------------------------------------------------------

struct plc_event {
  // It stays where it is: it points into itself.
  plc_event() = default;
  plc_event(const plc_event&) = delete;
  plc_event& operator=(const plc_event&) = delete;

  void fill(plc::Event&& taken) {
    event = std::move(taken);
    for (const plc::LabelScore& label : event.labels)
      labels.push_back({label.text.c_str(), label.text.size(), label.probability, label.log_probability});
    if (!event.answer) return;
    const plc::Answer& answer = *event.answer;
    result = {answer.text.c_str(),
              answer.text.size(),
              answer.token_ids.data(),
              answer.token_ids.size(),
              static_cast<plc_finish_reason>(answer.finish_reason),
              answer.prompt_tokens,
              answer.cut_tokens,
              answer.prefix_tokens,
              answer.shared_tokens};
    for (const std::vector<plc::LogProb>& token : answer.log_probs) {
      first_log_probs.push_back(log_probs.size());
      for (const plc::LogProb& each : token) log_probs.push_back({each.token_id, each.log_prob});
    }
    first_log_probs.push_back(log_probs.size());
  }

  plc_status status() const { return event.error ? static_cast<plc_status>(event.error->code) : PLC_OK; }

  plc::Event event{};
  bool is_polled = false;
  plc_result result{};
  std::vector<plc_label> labels{};
  std::vector<plc_log_prob> log_probs{};  // of all tokens
  std::vector<size_t> first_log_probs{};  // where each token's begin, and the end
};

// ---- Engines -------------------------------------------------------------------------------------

struct plc_engine {
  explicit plc_engine(std::unique_ptr<plc::Session> opened) : session(std::move(opened)) { read_tasks(); }

  // Infos of tasks that stay keep their places in memory: callers hold their texts.
  void read_tasks() {
    std::vector<std::unique_ptr<plc::TaskInfo>> found;
    const std::lock_guard<std::mutex> lock(mutex);
    for (plc::TaskInfo& info : session->tasks())
      found.push_back(std::make_unique<plc::TaskInfo>(std::move(info)));
    for (std::unique_ptr<plc::TaskInfo>& info : found) {
      for (std::unique_ptr<plc::TaskInfo>& old : tasks) {
        if (old != nullptr && old->name == info->name) info = std::move(old);
      }
    }
    tasks = std::move(found);
  }

  // With the mutex held.
  const plc::TaskInfo* task(const char* name) const {
    for (const std::unique_ptr<plc::TaskInfo>& info : tasks) {
      if (info->name == name) return info.get();
    }
    return nullptr;
  }

  // The next event of submitted requests.
  std::optional<plc::Event> take() {
    const std::lock_guard<std::mutex> lock(poll_mutex);
    if (!ahead) return session->take(&inbox);
    std::optional<plc::Event> first = std::move(ahead);
    ahead.reset();
    return first;
  }

  // Whether `take` would give one. An inbox can only be asked by taking from it.
  bool has_event() {
    const std::lock_guard<std::mutex> lock(poll_mutex);
    if (!ahead) ahead = session->take(&inbox);
    return ahead.has_value();
  }

  std::mutex poll_mutex{};
  plc::Inbox inbox{};                 // of submitted requests
  std::optional<plc::Event> ahead{};  // taken from it, before the others

  mutable std::mutex mutex{};  // of what follows; a session's lock may be taken with it held, never before it
  std::vector<std::unique_ptr<plc::TaskInfo>> tasks{};
  size_t calls = 0;  // of plc_generate that are under way
  bool is_closing = false;
  std::condition_variable ended{};  // a call, while the engine is closing

  std::unique_ptr<plc::Session> session;  // last: it goes before the inbox that it writes to
};

namespace {

plc::Error closed() {
  return {ErrorCode::kArgument, "plc_generate: the engine was closed while the request was under way"};
}

// A call of plc_generate, which closing an engine waits for.
class Generation {
 public:
  explicit Generation(plc_engine& engine) : engine_(engine) {
    const std::lock_guard<std::mutex> lock(engine_.mutex);
    ++engine_.calls;
  }
  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  ~Generation() {
    if (number_ != 0 && !is_finished_) leave();
    const std::lock_guard<std::mutex> lock(engine_.mutex);
    --engine_.calls;
    if (engine_.is_closing) engine_.ended.notify_all();  // with the lock: then the engine may go
  }

  plc_status run(const plc::Request& request, plc_callback callback, void* user) {
    if (is_closing()) return failed(closed());
    const plc::Result<uint64_t> submitted = engine_.session->submit(request, &inbox_);
    if (!submitted.ok()) return failed(submitted.error());
    number_ = submitted.value();
    while (!is_finished_) {
      if (is_closing()) return failed(closed());
      std::optional<plc::Event> taken = engine_.session->wait(&inbox_, number_);
      is_finished_ = !taken || taken->is_last;
      if (is_closing()) return failed(closed());
      if (!taken) return failed({ErrorCode::kCancelled, "plc_generate: the request ended without an answer"});
      plc_event event;
      event.fill(std::move(*taken));
      if (call(callback, user, event) != 0)
        return failed({ErrorCode::kCancelled, "plc_generate: the callback ended the request"});
      if (event.event.error) return failed(*event.event.error);
    }
    return PLC_OK;
  }

 private:
  static int call(plc_callback callback, void* user, const plc_event& event) {
    struct Inside {
      Inside() { in_callback = true; }
      ~Inside() { in_callback = false; }
    } inside;
    return callback(user, &event);
  }

  bool is_closing() const {
    const std::lock_guard<std::mutex> lock(engine_.mutex);
    return engine_.is_closing;
  }

  void leave() noexcept {
    try {
      engine_.session->leave(number_);
    } catch (...) {  // the error of the call is the one to tell
    }
  }

  plc_engine& engine_;
  plc::Inbox inbox_{};
  uint64_t number_ = 0;
  bool is_finished_ = false;
};

// A text of a task's list, or null.
const char* text_of_task(const char* function, const plc_engine* engine, const char* task, size_t place,
                         std::vector<std::string> plc::TaskInfo::*list) {
  if (!outside(function) || engine == nullptr || task == nullptr) return nullptr;
  const std::lock_guard<std::mutex> lock(engine->mutex);
  const plc::TaskInfo* info = engine->task(task);
  return info != nullptr && place < (info->*list).size() ? (info->*list)[place].c_str() : nullptr;
}

}  // namespace

extern "C" {

uint32_t plc_abi_version(void) { return PLC_ABI_VERSION; }

const char* plc_last_error(void) { return last_error_shown; }

plc_status plc_engine_open(const char* bundle, const plc_options* options, plc_engine** engine) {
  if (engine != nullptr) *engine = nullptr;
  return guarded(__func__, [&](const char* function) {
    if (engine == nullptr) return null_pointer(function, "engine");
    Given given(function, ErrorCode::kArgument);
    const std::string path = given.text("bundle", bundle);
    const plc::SessionOptions read = read_options(given, options);
    if (!given.ok()) return failed(given.error());
    plc::Result<std::unique_ptr<plc::Session>> session = plc::Session::open(path, read);
    if (!session.ok()) return failed(session.error());
    *engine = new plc_engine(std::move(session.value()));
    return PLC_OK;
  });
}

plc_status plc_engine_add(plc_engine* engine, const char* bundle) {
  return guarded(__func__, [&](const char* function) {
    if (engine == nullptr) return null_pointer(function, "engine");
    Given given(function, ErrorCode::kArgument);
    const std::string path = given.text("bundle", bundle);
    if (!given.ok()) return failed(given.error());
    const plc_status status = status_of(engine->session->add(path));
    if (status == PLC_OK) engine->read_tasks();
    return status;
  });
}

plc_status plc_engine_remove(plc_engine* engine, const char* task) {
  return guarded(__func__, [&](const char* function) {
    if (engine == nullptr) return null_pointer(function, "engine");
    Given given(function, ErrorCode::kArgument);
    const std::string name = given.text("task", task);
    if (!given.ok()) return failed(given.error());
    const plc_status status = status_of(engine->session->remove(name));
    if (status == PLC_OK) engine->read_tasks();
    return status;
  });
}

void plc_engine_close(plc_engine* engine) {
  if (!outside(__func__) || engine == nullptr) return;
  guarded(__func__, [&](const char*) {
    std::unique_lock<std::mutex> lock(engine->mutex);
    engine->is_closing = true;
    engine->session->close();
    engine->ended.wait(lock, [&] { return engine->calls == 0; });
    lock.unlock();
    delete engine;
    return PLC_OK;
  });
}

size_t plc_task_count(const plc_engine* engine) {
  if (!outside(__func__) || engine == nullptr) return 0;
  const std::lock_guard<std::mutex> lock(engine->mutex);
  return engine->tasks.size();
}

const char* plc_task_name(const plc_engine* engine, size_t place) {
  if (!outside(__func__) || engine == nullptr) return nullptr;
  const std::lock_guard<std::mutex> lock(engine->mutex);
  return place < engine->tasks.size() ? engine->tasks[place]->name.c_str() : nullptr;
}

const char* plc_task_field(const plc_engine* engine, const char* task, size_t place) {
  return text_of_task(__func__, engine, task, place, &plc::TaskInfo::fields);
}

const char* plc_task_choice(const plc_engine* engine, const char* task, size_t place) {
  return text_of_task(__func__, engine, task, place, &plc::TaskInfo::choices);
}

plc_status plc_self_test(plc_engine* engine, const char* task, size_t* rows) {
  if (rows != nullptr) *rows = 0;
  return guarded(__func__, [&](const char* function) {
    if (engine == nullptr) return null_pointer(function, "engine");
    if (rows == nullptr) return null_pointer(function, "rows");
    Given given(function, ErrorCode::kArgument);
    const std::string name = given.text("task", task);
    if (!given.ok()) return failed(given.error());
    const plc::Result<size_t> compared = engine->session->self_test(name);
    if (!compared.ok()) return failed(compared.error());
    *rows = compared.value();
    return PLC_OK;
  });
}

plc_status plc_generate(plc_engine* engine, const plc_request* request, plc_callback callback, void* user) {
  return guarded(__func__, [&](const char* function) {
    if (engine == nullptr) return null_pointer(function, "engine");
    if (request == nullptr) return null_pointer(function, "request");
    if (callback == nullptr) return null_pointer(function, "callback");
    Given given(function, ErrorCode::kRequest);
    const plc::Request read = read_request(given, *request);
    if (!given.ok()) return failed(given.error());
    return Generation(*engine).run(read, callback, user);
  });
}

plc_status plc_submit(plc_engine* engine, const plc_request* request, uint64_t* number) {
  if (number != nullptr) *number = 0;
  return guarded(__func__, [&](const char* function) {
    if (engine == nullptr) return null_pointer(function, "engine");
    if (request == nullptr) return null_pointer(function, "request");
    if (number == nullptr) return null_pointer(function, "number");
    Given given(function, ErrorCode::kRequest);
    const plc::Request read = read_request(given, *request);
    if (!given.ok()) return failed(given.error());
    const plc::Result<uint64_t> submitted = engine->session->submit(read, &engine->inbox);
    if (!submitted.ok()) return failed(submitted.error());
    *number = submitted.value();
    return PLC_OK;
  });
}

plc_status plc_step(plc_engine* engine, int* more) {
  if (more != nullptr) *more = 0;
  return guarded(__func__, [&](const char* function) {
    if (engine == nullptr) return null_pointer(function, "engine");
    const plc::Result<bool> stepped = engine->session->step();
    if (more != nullptr) *more = (stepped.ok() && stepped.value()) || engine->has_event();
    return stepped.ok() ? PLC_OK : failed(stepped.error());
  });
}

plc_status plc_poll(plc_engine* engine, plc_event** event) {
  if (event != nullptr) *event = nullptr;
  return guarded(__func__, [&](const char* function) {
    if (engine == nullptr) return null_pointer(function, "engine");
    if (event == nullptr) return null_pointer(function, "event");
    auto filled = std::make_unique<plc_event>();  // before an event is taken: it must not be lost
    std::optional<plc::Event> taken = engine->take();
    if (!taken) return PLC_OK;
    filled->fill(std::move(*taken));
    filled->is_polled = true;
    *event = filled.release();
    return PLC_OK;
  });
}

void plc_event_free(plc_event* event) {
  if (event != nullptr && event->is_polled) delete event;
}

plc_status plc_cancel(plc_engine* engine, uint64_t number) {
  try {
    if (engine == nullptr) return null_pointer(__func__, "engine");
    engine->session->cancel(number);
    return PLC_OK;
  } catch (...) {
    return failed_with_exception();
  }
}

uint64_t plc_event_number(const plc_event* event) { return event == nullptr ? 0 : event->event.number; }

const char* plc_event_text(const plc_event* event, size_t* length) {
  if (length != nullptr) *length = event == nullptr ? 0 : event->event.text.size();
  return event == nullptr ? "" : event->event.text.c_str();
}

int plc_event_is_last(const plc_event* event) { return event != nullptr && event->event.is_last; }

plc_status plc_event_status(const plc_event* event) {
  return event == nullptr ? PLC_ERROR_ARGUMENT : event->status();
}

const char* plc_event_error(const plc_event* event) {
  return event == nullptr || !event->event.error ? "" : event->event.error->message.c_str();
}

const plc_result* plc_event_result(const plc_event* event) {
  return event == nullptr || !event->event.answer ? nullptr : &event->result;
}

const plc_label* plc_event_label(const plc_event* event, size_t place) {
  return event == nullptr || place >= event->labels.size() ? nullptr : &event->labels[place];
}

const plc_log_prob* plc_event_log_prob(const plc_event* event, size_t token, size_t place) {
  if (event == nullptr || event->first_log_probs.empty()) return nullptr;
  const std::vector<size_t>& first = event->first_log_probs;
  if (token >= first.size() - 1 || place >= first[token + 1] - first[token]) return nullptr;
  return &event->log_probs[first[token] + place];
}

plc_status plc_encode(const plc_engine* engine, const char* text, size_t length, int32_t* ids, size_t room,
                      size_t* count) {
  if (count != nullptr) *count = 0;
  return guarded(__func__, [&](const char* function) {
    if (engine == nullptr) return null_pointer(function, "engine");
    if (count == nullptr) return null_pointer(function, "count");
    if (ids == nullptr && room != 0) return null_pointer(function, "ids");
    Given given(function, ErrorCode::kArgument);
    const std::string checked = given.text("text", text, length);
    if (!given.ok()) return failed(given.error());
    std::vector<int32_t> found;
    const plc::Status encoded = engine->session->encode(checked, found);
    if (!encoded.ok()) return failed(encoded.error());
    return write_out(function, found.data(), found.size(), ids, room, count);
  });
}

plc_status plc_decode(const plc_engine* engine, const int32_t* ids, size_t id_count, char* text, size_t room,
                      size_t* count) {
  if (count != nullptr) *count = 0;
  return guarded(__func__, [&](const char* function) {
    if (engine == nullptr) return null_pointer(function, "engine");
    if (count == nullptr) return null_pointer(function, "count");
    if (ids == nullptr && id_count != 0) return null_pointer(function, "ids");
    if (text == nullptr && room != 0) return null_pointer(function, "text");
    const std::vector<int32_t> given(ids, ids + id_count);
    const std::string found = engine->session->decode(given);
    return write_out(function, found.data(), found.size(), text, room, count);
  });
}

}  // extern "C"
