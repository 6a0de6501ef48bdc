// plc_runtime.hpp: plc_runtime.h for C++17, in this header alone.
//
//     #include <plc_runtime.hpp>
//     #include <iostream>
//
//     int main() {
//       auto engine = plc_runtime::Engine::open("bundle");
//       if (!engine) return std::cerr << engine.error().message << "\n", 1;
//       plc_runtime::Request request("mood");
//       request.field("text", "It works.");
//       auto answer = engine->generate(request, [](std::string_view piece) { std::cout << piece; });
//       if (!answer) std::cerr << answer.error().message << "\n";
//     }
//
// Nothing here throws, except what a caller's own function throws, and std::bad_alloc. What holds for
// threads and memory is said in plc_runtime.h. An Engine closes itself.
#ifndef PLC_RUNTIME_HPP
#define PLC_RUNTIME_HPP

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "plc_runtime.h"

namespace plc_runtime {

struct Error {
  plc_status status;
  std::string message;
};

// A value, or why there is none: like C++23's std::expected. To read the value of an error is
// undefined, as it is there.
template <typename Value>
class [[nodiscard]] Expected {
 public:
  Expected(Value value) : held_(std::in_place_index<0>, std::move(value)) {}
  Expected(Error error) : held_(std::in_place_index<1>, std::move(error)) {}

  bool has_value() const { return held_.index() == 0; }
  explicit operator bool() const { return has_value(); }
  Value& operator*() { return *std::get_if<0>(&held_); }
  const Value& operator*() const { return *std::get_if<0>(&held_); }
  Value* operator->() { return std::get_if<0>(&held_); }
  const Value* operator->() const { return std::get_if<0>(&held_); }
  const Error& error() const { return *std::get_if<1>(&held_); }

 private:
  std::variant<Value, Error> held_;
};

struct Answer {
  std::string text;
  std::vector<int32_t> token_ids;
  plc_finish_reason finish_reason = PLC_STOP;
  size_t prompt_tokens = 0, cut_tokens = 0, prefix_tokens = 0, shared_tokens = 0;
};

struct Label {
  std::string text;
  double probability;
  double log_probability;
};

// What is asked for. It keeps copies of all texts that it is given.
class Request {
 public:
  explicit Request(std::string task) : task_(std::move(task)) {}

  Request& field(std::string name, std::string text) {
    fields_.emplace_back(std::move(name), std::move(text));
    return *this;
  }
  Request& stop(std::string text) { return stops_.push_back(std::move(text)), *this; }
  Request& bad_word(std::string text) { return bad_words_.push_back(std::move(text)), *this; }
  Request& bias(std::string token, float number) {
    biases_.emplace_back(std::move(token), number);
    return *this;
  }

  // Numbers and switches. What points to texts is set by the functions above, and by them only.
  plc_request options = PLC_REQUEST_INIT;

  // Calls `use` with the request as C has it, which lives as long as the call.
  template <typename Use>
  auto as_c(Use use) const {
    std::vector<plc_field> fields;
    for (const auto& [name, text] : fields_) fields.push_back({name.c_str(), text.data(), text.size()});
    std::vector<plc_bias> biases;
    for (const auto& [token, number] : biases_) biases.push_back({token.c_str(), number});
    const std::vector<const char*> stops = pointers(stops_), bad_words = pointers(bad_words_);
    plc_request request = options;
    request.task = task_.c_str();
    request.fields = fields.data(), request.field_count = fields.size();
    request.stop = stops.data(), request.stop_count = stops.size();
    request.bad_words = bad_words.data(), request.bad_word_count = bad_words.size();
    request.bias = biases.data(), request.bias_count = biases.size();
    return use(&request);
  }

 private:
  static std::vector<const char*> pointers(const std::vector<std::string>& texts) {
    std::vector<const char*> found;
    for (const std::string& text : texts) found.push_back(text.c_str());
    return found;
  }

  std::string task_;
  std::vector<std::pair<std::string, std::string>> fields_;
  std::vector<std::string> stops_, bad_words_;
  std::vector<std::pair<std::string, float>> biases_;
};

// An event that `Engine::poll` gave.
class Event {
 public:
  explicit Event(plc_event* event) : event_(event) {}

  uint64_t number() const { return plc_event_number(event_.get()); }
  bool is_last() const { return plc_event_is_last(event_.get()) != 0; }
  std::string_view text() const {
    size_t length = 0;
    const char* text = plc_event_text(event_.get(), &length);
    return {text, length};
  }
  // With the last event: why there is no answer.
  std::optional<Error> error() const {
    const plc_status status = plc_event_status(event_.get());
    if (status == PLC_OK) return std::nullopt;
    return Error{status, plc_event_error(event_.get())};
  }
  std::optional<Answer> answer() const { return answer_of(event_.get()); }
  std::vector<Label> labels() const { return labels_of(event_.get()); }

  static std::optional<Answer> answer_of(const plc_event* event) {
    const plc_result* found = plc_event_result(event);
    if (found == nullptr) return std::nullopt;
    Answer answer;
    answer.text.assign(found->text, found->text_length);
    answer.token_ids.assign(found->token_ids, found->token_ids + found->token_count);
    answer.finish_reason = found->finish_reason;
    answer.prompt_tokens = found->prompt_tokens, answer.cut_tokens = found->cut_tokens;
    answer.prefix_tokens = found->prefix_tokens, answer.shared_tokens = found->shared_tokens;
    return answer;
  }

  static std::vector<Label> labels_of(const plc_event* event) {
    std::vector<Label> labels;
    while (const plc_label* label = plc_event_label(event, labels.size()))
      labels.push_back({{label->text, label->text_length}, label->probability, label->log_probability});
    return labels;
  }

 private:
  struct Free {
    void operator()(plc_event* event) const { plc_event_free(event); }
  };
  std::unique_ptr<plc_event, Free> event_;
};

// Bundles of one base that are open. It can be moved, not copied; threads share it by reference.
class Engine {
 public:
  static Expected<Engine> open(const std::string& bundle, const plc_options& options = PLC_OPTIONS_INIT) {
    plc_engine* engine = nullptr;
    const plc_status status = plc_engine_open(bundle.c_str(), &options, &engine);
    if (status != PLC_OK) return failed(status);
    return Engine(engine);
  }

  // Answers a request, and gives each piece of text to `on_piece` as it is written.
  template <typename OnPiece>
  Expected<Answer> generate(const Request& request, OnPiece on_piece) {
    Run<OnPiece> run{on_piece, {}, {}, nullptr};
    const plc_status status = ask(request, PLC_ANSWER, run);
    if (status != PLC_OK) return failed(status);
    return std::move(*run.answer);
  }
  Expected<Answer> generate(const Request& request) {
    return generate(request, [](std::string_view) {});
  }

  // The probability of every choice of the request's task, in their order.
  Expected<std::vector<Label>> score(const Request& request) { return ask_labels(request, PLC_ALL_LABELS); }

  // The likeliest choice.
  Expected<Label> classify(const Request& request) {
    Expected<std::vector<Label>> found = ask_labels(request, PLC_BEST_LABEL);
    if (!found) return found.error();
    return std::move(found->front());
  }

  // Many requests at once: submit them, then step and poll as long as there is more.
  Expected<uint64_t> submit(const Request& request) {
    uint64_t number = 0;
    const plc_status status =
        request.as_c([&](const plc_request* as_c) { return plc_submit(engine_.get(), as_c, &number); });
    if (status != PLC_OK) return failed(status);
    return number;
  }
  // Whether there is more.
  Expected<bool> step() {
    int more = 0;
    const plc_status status = plc_step(engine_.get(), &more);
    if (status != PLC_OK) return failed(status);
    return more != 0;
  }
  std::optional<Event> poll() {
    plc_event* event = nullptr;
    if (plc_poll(engine_.get(), &event) != PLC_OK || event == nullptr) return std::nullopt;
    return Event(event);
  }
  void cancel(uint64_t number) { plc_cancel(engine_.get(), number); }

  std::vector<std::string> tasks() const {
    std::vector<std::string> names;
    while (const char* name = plc_task_name(engine_.get(), names.size())) names.emplace_back(name);
    return names;
  }

  // For what this class does not offer.
  plc_engine* get() { return engine_.get(); }

 private:
  explicit Engine(plc_engine* engine) : engine_(engine) {}

  template <typename OnPiece>
  struct Run {
    OnPiece& on_piece;
    std::optional<Answer> answer;
    std::vector<Label> labels;
    std::exception_ptr thrown;  // by the caller's function; C code lies between

    static int take(void* user, const plc_event* event) {
      Run& run = *static_cast<Run*>(user);
      try {
        size_t length = 0;
        const char* text = plc_event_text(event, &length);
        if (length > 0) run.on_piece(std::string_view(text, length));
        if (plc_event_is_last(event)) {
          run.answer = Event::answer_of(event);
          run.labels = Event::labels_of(event);
        }
        return 0;
      } catch (...) {
        run.thrown = std::current_exception();
        return 1;
      }
    }
  };

  template <typename OnPiece>
  plc_status ask(const Request& request, plc_kind kind, Run<OnPiece>& run) {
    const plc_status status = request.as_c([&](const plc_request* given) {
      plc_request as_c = *given;
      as_c.kind = kind;
      return plc_generate(engine_.get(), &as_c, Run<OnPiece>::take, &run);
    });
    if (run.thrown) std::rethrow_exception(run.thrown);
    return status;
  }

  Expected<std::vector<Label>> ask_labels(const Request& request, plc_kind kind) {
    auto nothing = [](std::string_view) {};
    Run<decltype(nothing)> run{nothing, {}, {}, nullptr};
    const plc_status status = ask(request, kind, run);
    if (status != PLC_OK) return failed(status);
    return std::move(run.labels);
  }

  static Error failed(plc_status status) { return {status, plc_last_error()}; }

  struct Close {
    void operator()(plc_engine* engine) const { plc_engine_close(engine); }
  };
  std::unique_ptr<plc_engine, Close> engine_;
};

}  // namespace plc_runtime

#endif  // PLC_RUNTIME_HPP
