#include "session.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <map>
#include <thread>

#include "continuous.h"
#include "fair_lock.h"
#include "linked_kernels.h"
#include "open_engine.h"
#include "row_maker.h"
#include "self_test.h"
#include "served_task.h"
#include "text_stream.h"
#include "utf8.h"

namespace plc {
namespace {

using Tasks = std::vector<std::shared_ptr<ServedTask>>;

Error no_memory() { return Error{ErrorCode::kMemory, "no memory left"}; }  // short: it allocates nothing

Error closed_session() {
  return Error{ErrorCode::kArgument, "using a session: one that was closed. Open another one."};
}

Error unknown_task(std::string_view doing, std::string_view name, const Tasks& tasks, ErrorCode code) {
  constexpr size_t kShown = 50;
  std::string message = joined({doing, ": task '", shortened(name, 100), "' does not exist. "});
  if (tasks.empty()) message += "There is no task yet";
  for (size_t k = 0; k < std::min(tasks.size(), kShown); ++k)
    append({k == 0 ? "Known tasks: " : ", ", tasks[k]->name()}, message);
  if (tasks.size() > kShown) append({" and ", tasks.size() - kShown, " more"}, message);
  return Error{code, message + "."};
}

Status check_options(const SessionOptions& options) {
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());
  // A waiting thread keeps its core busy: with many more threads than cores, none makes progress.
  const int most_threads = std::max(64, 4 * cores);
  constexpr size_t kMostBatch = 1 << 12;
  constexpr int64_t kMostContext = 1 << 20;
  const auto wrong = [](Words found, Words expected) {
    return Error{ErrorCode::kArgument,
                 joined({"opening a session: ", joined(found), "; expected ", joined(expected), "."})};
  };
  if (options.max_batch < 1 || options.max_batch > kMostBatch)
    return wrong({"max_batch ", options.max_batch}, {"a whole number, at least 1 and at most ", kMostBatch});
  if (options.threads < 0 || options.threads > most_threads)
    return wrong({"threads ", options.threads}, {"0 for all cores, or at most ", most_threads});
  if (options.context_mib < -1 || options.context_mib > kMostContext)
    return wrong({"context_mib ", options.context_mib},
                 {"-1 for the default, or a whole number, at least 0 and at most ", kMostContext});
  return {};
}

// The tables of a bundle's tokenizer.
Result<std::shared_ptr<const Tokenizer>> open_tokenizer(const Bundle& bundle) {
  if (bundle.has_tokenizer_tables()) return Tokenizer::open(bundle.path_of("tokenizer.tables"));
  const std::string& reason = bundle.manifest().no_tokenizer_tables;
  const std::string found =
      reason.empty()
          ? "it has no tokenizer.tables"
          : joined({"its tokenizer could not be written as tables (", shortened(reason, 500), ")"});
  return Error{ErrorCode::kArgument, joined({"opening the bundle ", bundle.folder(), ": ", found,
                                             "; expected tables, which this library makes tokens by. ",
                                             reason.empty() ? "Export the bundle again, or serve" : "Serve",
                                             " it with the Python runtime."})};
}

// An error unless the engine of `first` computes what `other` was made for.
Status check_same_base(const Bundle& first, const Bundle& other) {
  const Manifest &ours = first.manifest(), &its = other.manifest();
  const GraphContract &graph = ours.graph, &its_graph = its.graph;
  const Precision &precision = ours.precision, &its_precision = its.precision;
  // The files in base/ are the same only where all that was asked of the compiler is.
  const struct {
    const char* name;
    bool same;
  } parts[] = {
      {"the base's fingerprint", ours.base.fingerprint == its.base.fingerprint},
      {"the target", ours.target == its.target},
      {"the precision",
       precision.dtype == its_precision.dtype && precision.quantization == its_precision.quantization &&
           precision.prefix_bits == its_precision.prefix_bits &&
           precision.cache_bits == its_precision.cache_bits && precision.method == its_precision.method},
      {"the capacity", graph.capacity == its_graph.capacity},
      {"prompts (an input, or baked)", graph.prompts == its_graph.prompts},
      {"tokenizer.json", ours.file("tokenizer.json")->sha256 == its.file("tokenizer.json")->sha256},
      {"the files in base/", first.base_sum() == other.base_sum()},
      {"the graph", graph.layers == its_graph.layers && graph.kv_heads == its_graph.kv_heads &&
                        graph.head_dim == its_graph.head_dim && graph.hidden == its_graph.hidden &&
                        graph.vocab == its_graph.vocab && graph.candidates == its_graph.candidates &&
                        graph.sampling_inputs == its_graph.sampling_inputs && graph.rows == its_graph.rows &&
                        graph.logit_tiles == its_graph.logit_tiles},
  };
  const auto refused = [&](std::string_view found, std::string_view fix) {
    return Error{ErrorCode::kFormat, joined({"serving the tasks of ", other.folder(), " with the base of ",
                                             first.folder(), ": ", found, ". ", fix})};
  };
  for (const auto& part : parts)
    if (!part.same)
      return refused(joined({part.name, ": another one; expected the same"}),
                     "Export both from the same base, with the same options.");
  if (its_graph.prompts == PromptsMode::kBaked)
    return refused(
        "a graph that holds the prompts of its own tasks (baked); expected prompts that are an "
        "input of the graph",
        "Export both with: --prompts-mode input");
  return {};
}

class OpenSession final : public Session {
 public:
  OpenSession(std::shared_ptr<const Bundle> bundle, std::shared_ptr<const Tokenizer> tokenizer,
              std::shared_ptr<Encoder> encoder, Tasks tasks, std::unique_ptr<Engine> engine,
              const SessionOptions& options, bool on_cpu)
      : bundle_(std::move(bundle)),
        tokenizer_(std::move(tokenizer)),
        encoder_(std::move(encoder)),
        allow_failed_parity_(options.allow_failed_parity),
        drafts_(options.drafts),
        on_cpu_(on_cpu),
        engine_(std::move(engine)),
        tasks_(std::move(tasks)),
        flow_(*engine_, drafts_ ? &costs_ : nullptr),
        no_memory_(std::make_shared<Error>(no_memory())),
        closed_error_(std::make_shared<Error>(closed_session())) {}

  ~OpenSession() override {
    end();
    // Calls that are waiting take their last event, and leave.
    while (calls_.load() > 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
  }

  void close() override {
    const Call call(*this);
    end();
  }

  Status add(const std::string& folder) override {
    const Call call(*this);
    return guarded<Status>([&] { return add_tasks(folder); });
  }

  Status remove(const std::string& name) override {
    const Call call(*this);
    const std::lock_guard<FairLock> held(lock_);
    return guarded<Status>([&] { return remove_task(name); });
  }

  std::vector<TaskInfo> tasks() const override {
    const Call call(*this);
    const std::lock_guard<FairLock> held(lock_);
    std::vector<TaskInfo> infos;
    for (const auto& task : tasks_)
      infos.push_back({task->name(), task->parsed.input_fields, task->record.choices});
    return infos;
  }

  Result<uint64_t> submit(const Request& request, Inbox* inbox) override {
    const Call call(*this);
    const std::lock_guard<FairLock> held(lock_);
    if (is_closed_) return closed_session();
    const uint64_t number = last_number_ + 1;
    try {
      if (Status done = request.check(); !done.ok()) return done.error();
      if (is_spoiled_) begin_anew();
      const auto task = find(request.task);
      if (task == nullptr)
        return unknown_task("serving a request", request.task, tasks_, ErrorCode::kRequest);
      auto row = make_row(request, task, tokenizer_, *engine_, drafts_ ? &costs_ : nullptr);
      if (!row.ok()) return row.error();
      entries_.emplace(number, Entry{inbox, nullptr, request.kind == Kind::kAnswer});
      flow_.submit(number, std::move(row.value()));
    } catch (const std::exception&) {
      entries_.erase(number);
      flow_.cancel(number);
      return no_memory();
    }
    last_number_ = number;
    return number;
  }

  Result<bool> step() override {
    const Call call(*this);
    const std::lock_guard<FairLock> held(lock_);
    if (is_closed_) return closed_session();
    if (const Status done = run_step(); !done.ok()) return done.error();
    return flow_.is_busy();
  }

  std::optional<Event> take(Inbox* inbox) override {
    const Call call(*this);
    const std::lock_guard<FairLock> held(lock_);
    return next(inbox);
  }

  std::optional<Event> wait(Inbox* inbox, uint64_t number) override {
    const Call call(*this);
    while (true) {
      const std::lock_guard<FairLock> held(lock_);
      if (auto event = next(inbox)) return event;
      if (is_closed_ || entries_.count(number) == 0) return std::nullopt;
      static_cast<void>(run_step());  // where it fails, the request's last event says so
    }
  }

  void cancel(uint64_t number) override {
    const Call call(*this);
    const std::lock_guard<FairLock> held(lock_);
    const auto found = entries_.find(number);
    if (found == entries_.end() || found->second.ended != nullptr) return;
    flow_.cancel(number);
    std::shared_ptr<const Error> why = no_memory_;
    try {
      why = std::make_shared<Error>(Error{ErrorCode::kCancelled, "answering a request: it was cancelled."});
    } catch (const std::exception&) {}
    found->second.ended = std::move(why);
    hand_out_ends();
  }

  void leave(uint64_t number) override {
    const Call call(*this);
    const std::lock_guard<FairLock> held(lock_);
    if (entries_.erase(number) > 0) flow_.cancel(number);
  }

  Result<size_t> self_test(const std::string& name) override {
    const Call call(*this);
    while (true) {
      const std::lock_guard<FairLock> held(lock_);
      if (is_closed_) return closed_session();
      const auto slot = flow_.free_slot();
      if (slot && !is_spoiled_)
        return guarded<Result<size_t>>([&]() -> Result<size_t> {
          const auto task = find(name);
          if (task == nullptr) return unknown_task("testing a task", name, tasks_, ErrorCode::kArgument);
          return run_self_test(*task, *engine_, *slot, on_cpu_);
        });
      static_cast<void>(run_step());  // until a row ends
    }
  }

  Status encode(std::string_view text, std::vector<int32_t>& ids) const override {
    const Call call(*this);
    const std::lock_guard<FairLock> held(lock_);
    return guarded<Status>([&] { return encoder_->encode(text, {}, ids); });
  }

  std::string decode(const std::vector<int32_t>& ids) const override {
    return plc::decode(tokenizer_, ids, true);
  }

 private:
  // What a function gives; an error where memory runs out.
  template <typename Given, typename Function>
  static Given guarded(Function function) {
    try {
      return function();
    } catch (const std::exception&) {
      return no_memory();
    }
  }

  Status add_tasks(const std::string& folder) {
    // Nothing of the session is touched meanwhile, so no request waits.
    BundleOptions options;
    options.allow_failed_parity = allow_failed_parity_;
    options.sums = BundleOptions::Sums::kAllButWeights;
    const auto bundle = Bundle::open(folder, options);
    if (!bundle.ok()) return bundle.error();
    if (Status done = check_same_base(*bundle_, *bundle.value()); !done.ok()) return done;
    auto more = serve_tasks(bundle.value(), std::make_shared<Encoder>(tokenizer_));
    if (!more.ok()) return more.error();

    const std::lock_guard<FairLock> held(lock_);
    if (is_closed_) return closed_session();
    std::string twice;
    for (const auto& task : more.value())
      if (find(task->name()) != nullptr) append({twice.empty() ? "'" : ", '", task->name(), "'"}, twice);
    if (!twice.empty())
      return Error{
          ErrorCode::kArgument,
          joined({"adding tasks of the bundle ", folder, ": ", twice,
                  ": a task of this name is served already; expected tasks of other names. Remove the "
                  "one that is served first, or rename one and export it again."})};
    Tasks all = tasks_;
    all.insert(all.end(), more.value().begin(), more.value().end());
    tasks_.swap(all);
    return {};
  }

  Status remove_task(const std::string& name) {
    if (is_closed_) return closed_session();
    const auto is_it = [&name](const std::shared_ptr<ServedTask>& task) { return task->name() == name; };
    const auto found = std::find_if(tasks_.begin(), tasks_.end(), is_it);
    if (found == tasks_.end()) return unknown_task("removing a task", name, tasks_, ErrorCode::kArgument);
    tasks_.erase(found);
    return {};
  }

  // A request under way, or one that has ended and could not be told so.
  struct Entry {
    Inbox* inbox;
    std::shared_ptr<const Error> ended;  // why; null while it is under way
    bool writes;                         // text, token by token: labels are found all at once
  };

  // Counts the calls that are inside: the session is not destroyed before they have left.
  struct Call {
    explicit Call(const OpenSession& called) : session(called) { ++session.calls_; }
    ~Call() { --session.calls_; }
    const OpenSession& session;
  };

  std::shared_ptr<ServedTask> find(std::string_view name) const {
    for (const auto& task : tasks_)
      if (task->name() == name) return task;
    return nullptr;
  }

  void end() {
    const std::lock_guard<FairLock> held(lock_);
    is_closed_ = true;
    end_all(closed_error_);
  }

  void begin_anew() {
    is_spoiled_ = true;
    flow_.begin_anew();
    is_spoiled_ = false;
  }

  // One step of all rows under way, if there are any; each inbox gets what is its. Where the step
  // fails, all of them end with its error, and the session begins anew.
  Status run_step() {
    std::shared_ptr<const Error> why;
    try {
      if (is_spoiled_) begin_anew();
      if (!flow_.is_busy()) return {};
      std::vector<Event> events;
      const Status done = flow_.step(events);
      if (done.ok()) {
        hand_out(events);
        return {};
      }
      why = std::make_shared<Error>(done.error());
    } catch (const std::exception&) {
      why = no_memory_;
    }
    end_all(why);
    try {
      begin_anew();
    } catch (const std::exception&) {
      // It is tried again before the next step.
    }
    return *why;
  }

  void hand_out(std::vector<Event>& events) {
    for (Event& event : events) {
      const auto found = entries_.find(event.number);
      if (found == entries_.end()) continue;
      const bool is_last = event.is_last;
      if (is_last || found->second.writes) found->second.inbox->push_back(std::move(event));
      if (is_last) entries_.erase(found);
    }
  }

  // Ends all requests under way with an error. It needs no memory.
  void end_all(const std::shared_ptr<const Error>& why) {
    for (auto& [number, entry] : entries_)
      if (entry.ended == nullptr) entry.ended = why;
    hand_out_ends();
  }

  static Event end_of(uint64_t number, const Entry& entry) {
    Event event;
    event.number = number;
    event.is_last = true;
    event.error = *entry.ended;
    return event;
  }

  // Tells requests that have ended so. Where there is no memory for it, `next` does.
  void hand_out_ends() {
    try {
      for (auto at = entries_.begin(); at != entries_.end();) {
        if (at->second.ended != nullptr) {
          at->second.inbox->push_back(end_of(at->first, at->second));
          at = entries_.erase(at);
        } else {
          ++at;
        }
      }
    } catch (const std::exception&) {}
  }

  std::optional<Event> next(Inbox* inbox) {
    std::optional<Event> event;
    if (!inbox->empty()) {
      event = std::move(inbox->front());
      inbox->pop_front();
      return event;
    }
    for (auto at = entries_.begin(); at != entries_.end(); ++at) {
      if (at->second.inbox != inbox || at->second.ended == nullptr) continue;
      try {
        event = end_of(at->first, at->second);
      } catch (const std::exception&) {
        event.emplace();
        event->number = at->first;
        event->is_last = true;
        event->error = no_memory();
      }
      entries_.erase(at);
      break;
    }
    return event;
  }

  const std::shared_ptr<const Bundle> bundle_;  // that the engine runs
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const std::shared_ptr<Encoder> encoder_;
  const bool allow_failed_parity_, drafts_, on_cpu_;
  mutable std::atomic<size_t> calls_{0};

  mutable FairLock lock_{};  // of all that follows
  const std::unique_ptr<Engine> engine_;
  Tasks tasks_;
  StepCosts costs_{};
  Continuous flow_;
  std::map<uint64_t, Entry> entries_{};
  uint64_t last_number_ = 0;
  bool is_closed_ = false;
  bool is_spoiled_ = false;  // whether a step failed, and the rows could not be ended yet
  const std::shared_ptr<const Error> no_memory_, closed_error_;
};

Result<std::unique_ptr<Session>> open_session(const std::string& folder, const SessionOptions& options) {
  if (Status done = check_options(options); !done.ok()) return done.error();
  BundleOptions of_bundle;
  of_bundle.allow_failed_parity = options.allow_failed_parity;
  if (!options.sums_of_base) of_bundle.sums = BundleOptions::Sums::kAllButWeights;
  const auto bundle = Bundle::open(folder, of_bundle);
  if (!bundle.ok()) return bundle.error();
  const Manifest& manifest = bundle.value()->manifest();
  if (manifest.kernels > kKernelsInterface)
    return Error{ErrorCode::kFormat,
                 joined({"opening the bundle ", folder, ": a graph for kernels of interface ",
                         manifest.kernels, "; expected at most ", kKernelsInterface,
                         ". Use the release of plc that wrote it, or a newer one."})};
  auto tokenizer = open_tokenizer(*bundle.value());
  if (!tokenizer.ok()) return tokenizer.error();
  auto encoder = std::make_shared<Encoder>(tokenizer.value());
  auto tasks = serve_tasks(bundle.value(), encoder);
  if (!tasks.ok()) return tasks.error();

  EngineOptions of_engine;
  of_engine.max_batch = options.max_batch;
  of_engine.threads = static_cast<size_t>(options.threads);
  if (options.context_mib >= 0) of_engine.context_mib = static_cast<size_t>(options.context_mib);
  const bool on_cpu = options.provider.empty() && manifest.target != "onnx-cuda";
  if (!options.provider.empty()) of_engine.provider.name = options.provider;
  else if (!on_cpu) of_engine.provider.name = "cuda";
  of_engine.provider.options = options.provider_options;
  of_engine.provider.library = options.provider_library;
  of_engine.onnxruntime = options.onnxruntime;
  auto engine =
      open_engine(bundle.value()->path_of("base/model.onnx"), manifest.graph, manifest.precision, of_engine);
  if (!engine.ok()) return engine.error();
  if (options.context_mib > 0 && !engine.value()->together)
    return Error{
        ErrorCode::kArgument,
        joined({"opening the bundle ", folder, ": context_mib ", options.context_mib,
                ", and an engine whose requests share nothing; expected a bundle for native-cpu with "
                "weights in 8 or 4 bits, and its kernels. Leave it out, or give 0."})};
  return std::unique_ptr<Session>(std::make_unique<OpenSession>(bundle.value(), tokenizer.value(),
                                                                std::move(encoder), std::move(tasks.value()),
                                                                std::move(engine.value()), options, on_cpu));
}

}  // namespace

Result<std::unique_ptr<Session>> Session::open(const std::string& folder, const SessionOptions& options) {
  try {
    return open_session(folder, options);
  } catch (const std::exception&) {
    return no_memory();
  }
}

}  // namespace plc
