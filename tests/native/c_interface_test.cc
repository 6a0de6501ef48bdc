// What plc_runtime.h and plc_runtime.hpp say, sentence by sentence, on a session without a base.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <plc_runtime.hpp>

#include "c_struct.h"
#include "fake_session.h"

namespace {

std::atomic<int> failures{0};

void check(bool is_true, const char* text, int line) {
  if (is_true) return;
  ++failures;
  std::fprintf(stderr, "line %d: %s\n", line, text);
}
#define CHECK(condition) check((condition), #condition, __LINE__)

bool said(const std::string& part) { return std::string(plc_last_error()).find(part) != std::string::npos; }

// A call that is refused, and part of the sentence.
#define REFUSED(status, part, call)          \
  do {                                       \
    CHECK((call) == (status));               \
    check(said(part), plc_last_error(), __LINE__); \
  } while (false)

plc_engine* opened() {
  plc_engine* engine = nullptr;
  CHECK(plc_engine_open("bundle", nullptr, &engine) == PLC_OK);
  return engine;
}

struct Asked {
  plc_field field{"text", "hello", PLC_LENGTH_OF_TEXT};
  plc_request request = PLC_REQUEST_INIT;

  explicit Asked(const char* task = "echo") {
    request.task = task;
    request.fields = &field;
    request.field_count = 1;
  }
};

struct Heard {
  std::string text{}, result{}, error{};
  std::vector<uint64_t> numbers{};
  plc_status status = PLC_OK;
  int last = 0, calls = 0, end_at = 0;
};

int hear(void* user, const plc_event* event) {
  Heard& heard = *static_cast<Heard*>(user);
  size_t length = 99;
  const char* text = plc_event_text(event, &length);
  CHECK(text[length] == 0);
  CHECK(plc_event_text(event, nullptr) == text);
  heard.text.append(text, length);
  heard.numbers.push_back(plc_event_number(event));
  heard.last += plc_event_is_last(event);
  heard.status = plc_event_status(event);
  heard.error = plc_event_error(event);
  if (!plc_event_is_last(event)) {
    CHECK(heard.status == PLC_OK && heard.error.empty());
    CHECK(plc_event_result(event) == nullptr && plc_event_label(event, 0) == nullptr);
    CHECK(plc_event_log_prob(event, 0, 0) == nullptr);
  }
  if (const plc_result* result = plc_event_result(event)) heard.result.assign(result->text, result->text_length);
  return ++heard.calls == heard.end_at ? 5 : 0;
}

void test_version_and_errors() {
  CHECK(plc_abi_version() == PLC_ABI_VERSION);
  std::thread([] { CHECK(std::string(plc_last_error()).empty()); }).join();  // never null
  plc_engine* engine = nullptr;
  REFUSED(PLC_ERROR_FILE, "opening missing", plc_engine_open("missing", nullptr, &engine));
  const char* text = plc_last_error();
  plc_engine* good = opened();
  CHECK(plc_last_error() == text && said("opening missing"));  // until the next call that fails
  std::thread([] { CHECK(!said("missing")); }).join();         // of this thread
  plc_engine_close(good);
}

void test_opening() {
  plc_engine* engine = opened();
  CHECK(fake::seen().bundle == "bundle");
  CHECK(fake::seen().options.max_batch == 16 && fake::seen().options.context_mib == -1);
  CHECK(fake::seen().options.sums_of_base && fake::sessions == 1);
  plc_engine* second = opened();
  CHECK(fake::sessions == 2);
  plc_engine_close(second);
  plc_engine_close(engine);
  CHECK(fake::sessions == 0);
  plc_engine_close(nullptr);
  plc_engine_close(opened());

  const char* pairs[] = {"device_id", "1", "cudnn", "no"};
  plc_options options = PLC_OPTIONS_INIT;
  CHECK(plc_engine_open("bundle", &options, &engine) == PLC_OK);
  CHECK(fake::seen().options.max_batch == 16 && fake::seen().options.threads == 0);
  plc_engine_close(engine);
  options.onnxruntime = "lib", options.threads = 3, options.max_batch = 5, options.context_mib = 0;
  options.allow_failed_parity = 2, options.drafts = -1, options.sums = PLC_SUMS_WITHOUT_BASE;
  options.provider = "cuda", options.provider_library = "plug-in", options.provider_options = pairs;
  options.provider_option_count = 2;
  CHECK(plc_engine_open("b", &options, &engine) == PLC_OK);
  const plc::SessionOptions& seen = fake::seen().options;
  CHECK(seen.onnxruntime == "lib" && seen.threads == 3 && seen.max_batch == 5 && seen.context_mib == 0);
  CHECK(seen.allow_failed_parity && seen.drafts && !seen.sums_of_base && seen.provider == "cuda");
  CHECK(seen.provider_library == "plug-in" && seen.provider_options.size() == 2);
  CHECK(seen.provider_options[1].first == "cudnn" && seen.provider_options[1].second == "no");
  plc_engine_close(engine);
}

template <typename Change>
plc_status open_with(Change change) {
  plc_options options = PLC_OPTIONS_INIT;
  change(options);
  plc_engine* engine = reinterpret_cast<plc_engine*>(&options);
  const plc_status status = plc_engine_open("bundle", &options, &engine);
  CHECK((engine == nullptr) == (status != PLC_OK));
  plc_engine_close(engine);
  return status;
}

template <typename Enum>
void put(Enum& place, int32_t number) {
  std::memcpy(&place, &number, sizeof number);
}

void test_refused_options() {
  const plc_status bad = PLC_ERROR_ARGUMENT;
  plc_engine* engine = nullptr;
  REFUSED(bad, "engine is null", plc_engine_open("bundle", nullptr, nullptr));
  REFUSED(bad, "bundle is null", plc_engine_open(nullptr, nullptr, &engine));
  REFUSED(bad, "bundle is not UTF-8 at its byte 1", plc_engine_open("b\xff", nullptr, &engine));
  REFUSED(PLC_ERROR_MEMORY, "no memory", plc_engine_open("throws", nullptr, &engine));
  REFUSED(bad, "struct_size is 0", open_with([](plc_options& o) { o.struct_size = 0; }));
  REFUSED(bad, "struct_size", open_with([](plc_options& o) { o.struct_size -= 8; }));
  REFUSED(bad, "struct_size", open_with([](plc_options& o) { o.struct_size = size_t(-1); }));
  REFUSED(bad, "threads is -1; expected 0 or more", open_with([](plc_options& o) { o.threads = -1; }));
  REFUSED(bad, "max_batch is -2", open_with([](plc_options& o) { o.max_batch = -2; }));
  REFUSED(bad, "context_mib is -2", open_with([](plc_options& o) { o.context_mib = -2; }));
  REFUSED(bad, "sums is 2; expected 0 to 1", open_with([](plc_options& o) { put(o.sums, 2); }));
  REFUSED(bad, "sums is -1", open_with([](plc_options& o) { put(o.sums, -1); }));
  REFUSED(bad, "onnxruntime is not UTF-8", open_with([](plc_options& o) { o.onnxruntime = "\xc0"; }));
  REFUSED(bad, "provider is not UTF-8", open_with([](plc_options& o) { o.provider = "\xc0"; }));
  REFUSED(bad, "provider_library is", open_with([](plc_options& o) { o.provider_library = "\xc0"; }));
  REFUSED(bad, "provider_options is null", open_with([](plc_options& o) { o.provider_option_count = 1; }));
  REFUSED(bad, "provider_options is null", open_with([](plc_options& o) {
            static const char* const pair[] = {"name", nullptr};
            o.provider_options = pair, o.provider_option_count = 1;
          }));
}

struct Grown {
  plc_options options = PLC_OPTIONS_INIT;
  int64_t later = 0;
};

struct Later {
  size_t struct_size;
  int64_t first, second;
};

void test_structs_that_grew() {
  Grown grown;
  grown.options.struct_size = sizeof grown;
  grown.options.threads = 2;
  plc_engine* engine = nullptr;
  CHECK(plc_engine_open("bundle", &grown.options, &engine) == PLC_OK);
  CHECK(fake::seen().options.threads == 2);
  plc_engine_close(engine);
  grown.later = int64_t{1} << 56;
  REFUSED(PLC_ERROR_ARGUMENT, "does not know", plc_engine_open("bundle", &grown.options, &engine));
  CHECK(engine == nullptr);

  // A library of a later release: the caller's struct has no `second`.
  const Later given{sizeof(Later) - 8, 5, 6};
  Later known{sizeof(Later), 1, 2};
  CHECK(plc::copy_known(given, sizeof(Later) - 8, known));
  CHECK(known.first == 5 && known.second == 2 && known.struct_size == sizeof(Later));
}

void test_tasks() {
  plc_engine* engine = opened();
  CHECK(plc_task_count(engine) == 4);
  const char* mood = plc_task_name(engine, 2);
  CHECK(std::string(mood) == "mood" && plc_task_name(engine, 4) == nullptr);
  const char* title = plc_task_field(engine, "mood", 1);
  CHECK(std::string(title) == "title" && plc_task_field(engine, "mood", 2) == nullptr);
  CHECK(std::string(plc_task_choice(engine, "mood", 1)) == "bad");
  CHECK(plc_task_choice(engine, "echo", 0) == nullptr && plc_task_field(engine, "none", 0) == nullptr);
  CHECK(plc_task_field(engine, nullptr, 0) == nullptr && plc_task_choice(engine, nullptr, 0) == nullptr);
  CHECK(plc_task_count(nullptr) == 0 && plc_task_name(nullptr, 0) == nullptr);
  CHECK(plc_task_field(nullptr, "mood", 0) == nullptr && plc_task_choice(nullptr, "mood", 0) == nullptr);

  CHECK(plc_engine_add(engine, "more") == PLC_OK && plc_task_count(engine) == 5);
  CHECK(std::string(plc_task_name(engine, 0)) == "more");
  CHECK(plc_task_name(engine, 3) == mood && plc_task_field(engine, "mood", 1) == title);  // as long as served
  CHECK(plc_engine_remove(engine, "more") == PLC_OK && plc_task_count(engine) == 4);
  REFUSED(PLC_ERROR_FORMAT, "another base", plc_engine_add(engine, "other"));
  REFUSED(PLC_ERROR_RUNTIME, "thrown on purpose", plc_engine_add(engine, "throws"));
  REFUSED(PLC_ERROR_REQUEST, "no such task", plc_engine_remove(engine, "none"));
  REFUSED(PLC_ERROR_ARGUMENT, "bundle is null", plc_engine_add(engine, nullptr));
  REFUSED(PLC_ERROR_ARGUMENT, "bundle is not UTF-8", plc_engine_add(engine, "\x80"));
  REFUSED(PLC_ERROR_ARGUMENT, "task is null", plc_engine_remove(engine, nullptr));
  REFUSED(PLC_ERROR_ARGUMENT, "task is not UTF-8", plc_engine_remove(engine, "\xed\xa0\x80"));
  REFUSED(PLC_ERROR_ARGUMENT, "engine is null", plc_engine_add(nullptr, "more"));
  REFUSED(PLC_ERROR_ARGUMENT, "engine is null", plc_engine_remove(nullptr, "echo"));

  size_t rows = 9;
  CHECK(plc_self_test(engine, "echo", &rows) == PLC_OK && rows == 3);
  REFUSED(PLC_ERROR_ANSWER, "logits differ", plc_self_test(engine, "mood", &rows));
  CHECK(rows == 0);
  CHECK(plc_self_test(engine, "endless", &rows) == PLC_OK && rows == 0);
  REFUSED(PLC_ERROR_ARGUMENT, "rows is null", plc_self_test(engine, "echo", nullptr));
  REFUSED(PLC_ERROR_ARGUMENT, "task is null", plc_self_test(engine, nullptr, &rows));
  REFUSED(PLC_ERROR_ARGUMENT, "engine is null", plc_self_test(nullptr, "echo", &rows));
  plc_engine_close(engine);
}

void test_requests_arrive_whole() {
  plc_engine* engine = opened();
  Asked asked;
  uint64_t number = 0;
  CHECK(plc_submit(engine, &asked.request, &number) == PLC_OK && number > 0);
  const plc::Request plain = *fake::seen().request;
  const plc::Request expected;
  CHECK(plain.max_tokens == expected.max_tokens && plain.min_tokens == 0 && plain.log_probs == -1);
  CHECK(plain.constrain && plain.use_prompt && plain.priority == 0 && plain.timeout == 0);
  CHECK(plain.sampling.check().ok() && plain.sampling.temperature == 0 && plain.sampling.top_p == 1);
  CHECK(plain.sampling.repetition_penalty == 1 && plain.stop.empty() && plain.bad_words.empty());

  const char* const stops[] = {"a", "é"};
  const char* const words[] = {"never"};
  const plc_bias bias{"good", -1.5f};
  const plc_field fields[] = {{"text", "a\0b", 3}, {"empty", nullptr, 0}, {"n", "\xc3\xa9", PLC_LENGTH_OF_TEXT}};
  plc_request& r = asked.request;
  r.fields = fields, r.field_count = 3;
  r.kind = PLC_ALL_LABELS, r.max_tokens = 7, r.min_tokens = 2, r.temperature = 0.5, r.top_k = 3;
  r.top_p = 0.9, r.min_p = 0.1, r.repetition_penalty = 1.5, r.no_repeat_ngram = 4, r.seed = UINT64_MAX;
  r.stop = stops, r.stop_count = 2, r.bad_words = words, r.bad_word_count = 1, r.bias = &bias;
  r.bias_count = 1, r.free_answer = 3, r.without_prompt = -1, r.priority = -8, r.timeout = 2.5;
  r.log_probs = 20;
  uint64_t second = 0;
  CHECK(plc_submit(engine, &r, &second) == PLC_OK && second != number);
  const plc::Request& got = *fake::seen().request;
  CHECK(got.fields.size() == 3 && got.fields[0].second == std::string("a\0b", 3));
  CHECK(got.fields[1].first == "empty" && got.fields[1].second.empty() && got.fields[2].second == "é");
  CHECK(got.kind == plc::Kind::kAllLabels && got.max_tokens == 7 && got.min_tokens == 2);
  CHECK(got.sampling.temperature == 0.5 && got.sampling.top_k == 3 && got.sampling.top_p == 0.9);
  CHECK(got.sampling.min_p == 0.1 && got.sampling.repetition_penalty == 1.5);
  CHECK(got.sampling.no_repeat_ngram == 4 && got.stop.size() == 2 && got.stop[1] == "é");
  CHECK(got.bad_words.at(0) == "never" && got.bias.at(0).first == "good" && got.bias[0].second == -1.5f);
  CHECK(!got.constrain && !got.use_prompt && got.priority == -8 && got.timeout == 2.5);
  CHECK(got.log_probs == 20);
  const std::vector<uint32_t> expected_words{UINT32_MAX, UINT32_MAX};
  CHECK(got.sampling.seed.words() == expected_words);
  plc_engine_close(engine);
}

template <typename Change>
plc_status submit_with(plc_engine* engine, Change change) {
  Asked asked;
  change(asked.request);
  uint64_t number = 9;
  const plc_status status = plc_submit(engine, &asked.request, &number);
  CHECK((number == 0) == (status != PLC_OK));
  Heard heard;
  CHECK(plc_generate(engine, &asked.request, hear, &heard) == status && heard.calls == 0);
  return status;
}

void test_refused_requests() {
  plc_engine* engine = opened();
  const plc_status bad = PLC_ERROR_ARGUMENT, request = PLC_ERROR_REQUEST;
  Asked asked;
  uint64_t number = 0;
  REFUSED(bad, "engine is null", plc_submit(nullptr, &asked.request, &number));
  REFUSED(bad, "request is null", plc_submit(engine, nullptr, &number));
  REFUSED(bad, "number is null", plc_submit(engine, &asked.request, nullptr));
  REFUSED(bad, "engine is null", plc_generate(nullptr, &asked.request, hear, nullptr));
  REFUSED(bad, "request is null", plc_generate(engine, nullptr, hear, nullptr));
  REFUSED(bad, "callback is null", plc_generate(engine, &asked.request, nullptr, nullptr));
#define CHANGED(status, part, change) \
  REFUSED(status, part, submit_with(engine, [](plc_request& r) { change; }))
  CHANGED(bad, "request->struct_size is 4", r.struct_size = 4);
  CHANGED(bad, "request->struct_size", r.struct_size -= 1);
  CHANGED(bad, "request->task is null", r.task = nullptr);
  CHANGED(request, "there is no task 'none'", r.task = "none");
  CHANGED(request, "request->task is not UTF-8 at its byte 0", r.task = "\xff");
  CHANGED(bad, "request->fields is null, but its count is 1", r.fields = nullptr);
  CHANGED(bad, "kind is 3; expected 0 to 2", put(r.kind, 3));
  CHANGED(bad, "kind is -7", put(r.kind, -7));
  CHANGED(bad, "request->stop is null, but", r.stop_count = 2);
  CHANGED(bad, "request->bad_words is null, but", r.bad_word_count = 2);
  CHANGED(bad, "request->bias is null, but", r.bias_count = 2);
  static const char* const nothing[] = {nullptr};
  static const char* const wrong[] = {"ok", "\xf5"};
  CHANGED(bad, "request->stop is null", (r.stop = nothing, r.stop_count = 1));
  CHANGED(request, "request->stop is not UTF-8", (r.stop = wrong, r.stop_count = 2));
  CHANGED(request, "request->bad_words is not", (r.bad_words = wrong, r.bad_word_count = 2));
  static const plc_bias biases[] = {{"a", 1}, {nullptr, 1}, {"\x80", 1}};
  CHANGED(bad, "the token of a bias is null", (r.bias = biases, r.bias_count = 2));
  CHANGED(request, "the token of a bias is not UTF-8", (r.bias = biases + 2, r.bias_count = 1));
  static const plc_field fields[] = {
      {nullptr, "a", 1}, {"a", nullptr, 1}, {"\xff", "a", 1}, {"a", "ok\xe4\xb8", PLC_LENGTH_OF_TEXT}};
  CHANGED(bad, "the name of a field is null", r.fields = fields);
  CHANGED(bad, "the text of field 'a' is null", r.fields = fields + 1);
  CHANGED(request, "the name of a field is not UTF-8", r.fields = fields + 2);
  CHANGED(request, "the text of field 'a' is not UTF-8 at its byte 2", r.fields = fields + 3);
  CHANGED(PLC_ERROR_MEMORY, "no memory is left", r.task = "memory");
  CHANGED(PLC_ERROR_RUNTIME, "thrown on purpose", r.task = "exception");
  CHANGED(PLC_ERROR_RUNTIME, "no std::exception", r.task = "number");
  plc_engine_close(engine);
}

void test_generate() {
  plc_engine* engine = opened();
  Asked asked;
  Heard heard;
  CHECK(plc_generate(engine, &asked.request, hear, &heard) == PLC_OK);
  CHECK(heard.text == "hello" && heard.result == "hello" && heard.last == 1 && heard.calls == 5);
  CHECK(heard.status == PLC_OK && heard.numbers.front() == heard.numbers.back());

  heard = {};
  heard.end_at = 2;
  REFUSED(PLC_CANCELLED, "callback ended", plc_generate(engine, &asked.request, hear, &heard));
  CHECK(heard.text == "he" && heard.last == 0);
  heard = {};
  heard.end_at = 5;  // with the last event
  REFUSED(PLC_CANCELLED, "callback ended", plc_generate(engine, &asked.request, hear, &heard));

  Asked overflow("overflow");
  heard = {};
  REFUSED(PLC_ERROR_ANSWER, "not finite", plc_generate(engine, &overflow.request, hear, &heard));
  CHECK(heard.last == 1 && heard.status == PLC_ERROR_ANSWER && heard.error.find("not finite") != std::string::npos);
  CHECK(heard.result.empty() && heard.calls == 2);

  fake::fails_step = true;
  heard = {};
  REFUSED(PLC_ERROR_RUNTIME, "it failed", plc_generate(engine, &asked.request, hear, &heard));

  asked.request.max_tokens = 2, asked.request.log_probs = 2;
  const auto look = [](void*, const plc_event* event) {
    const plc_result* result = plc_event_result(event);
    if (result == nullptr) return 0;
    CHECK(plc_event_is_last(event) == 1);
    CHECK(result->text_length == 2 && result->text[2] == 0 && result->token_count == 2);
    CHECK(result->token_ids[1] == 'e' && result->finish_reason == PLC_LENGTH);
    CHECK(result->prompt_tokens == 9 && result->cut_tokens == 2 && result->prefix_tokens == 4);
    CHECK(result->shared_tokens == 5 && plc_event_label(event, 0) == nullptr);
    const plc_log_prob* itself = plc_event_log_prob(event, 1, 0);
    CHECK(itself != nullptr && itself->token_id == 'e' && itself->log_prob == -0.5);
    CHECK(plc_event_log_prob(event, 0, 2)->token_id == 'h' + 1);
    CHECK(plc_event_log_prob(event, 0, 3) == nullptr && plc_event_log_prob(event, 2, 0) == nullptr);
    return 0;
  };
  CHECK(plc_generate(engine, &asked.request, look, nullptr) == PLC_OK);

  Asked mood("mood");
  mood.request.kind = PLC_ALL_LABELS;
  const auto labels = [](void*, const plc_event* event) {
    CHECK(plc_event_is_last(event) && plc_event_result(event) == nullptr);
    const plc_label* bad = plc_event_label(event, 1);
    CHECK(std::string(bad->text, bad->text_length) == "bad" && bad->probability == 0.25);
    CHECK(bad->log_probability == -1.5 && plc_event_label(event, 2) == nullptr);
    CHECK(plc_event_log_prob(event, 0, 0) == nullptr);
    return 0;
  };
  CHECK(plc_generate(engine, &mood.request, labels, nullptr) == PLC_OK);

  // What a callback in C++ throws goes no further, and its request is gone.
  const auto thrower = [](void*, const plc_event*) -> int { throw std::runtime_error("from a callback"); };
  Asked endless("endless");
  REFUSED(PLC_ERROR_RUNTIME, "from a callback", plc_generate(engine, &endless.request, thrower, nullptr));
  int more = 1;
  CHECK(plc_step(engine, &more) == PLC_OK && more == 0);
  plc_engine_close(engine);
}

struct Inside {
  plc_engine* engine;
  int calls = 0;
};

int call_all(void* user, const plc_event* event) {
  Inside& inside = *static_cast<Inside*>(user);
  plc_engine* engine = inside.engine;
  ++inside.calls;
  const plc_status bad = PLC_ERROR_ARGUMENT;
  const char* part = "from inside a callback";
  plc_engine* second = engine;
  Asked asked;
  uint64_t number = 5;
  size_t count = 9;
  int more = 1;
  plc_event* polled = const_cast<plc_event*>(event);
  REFUSED(bad, part, plc_engine_open("bundle", nullptr, &second));
  CHECK(second == nullptr);
  REFUSED(bad, part, plc_engine_add(engine, "more"));
  REFUSED(bad, part, plc_engine_remove(engine, "echo"));
  REFUSED(bad, part, plc_self_test(engine, "echo", &count));
  REFUSED(bad, part, plc_generate(engine, &asked.request, call_all, user));
  REFUSED(bad, part, plc_submit(engine, &asked.request, &number));
  REFUSED(bad, part, plc_step(engine, &more));
  REFUSED(bad, part, plc_poll(engine, &polled));
  REFUSED(bad, part, plc_encode(engine, "a", 1, nullptr, 0, &count));
  REFUSED(bad, part, plc_decode(engine, nullptr, 0, nullptr, 0, &count));
  CHECK(polled == nullptr && number == 0 && more == 0 && count == 0);
  CHECK(plc_task_count(engine) == 0 && plc_task_name(engine, 0) == nullptr);
  CHECK(plc_task_field(engine, "mood", 0) == nullptr && plc_task_choice(engine, "mood", 0) == nullptr);
  plc_engine_close(engine);  // does nothing
  plc_event_free(const_cast<plc_event*>(event));  // so does this
  CHECK(plc_abi_version() == PLC_ABI_VERSION);
  CHECK(plc_cancel(engine, plc_event_number(event) + 1000) == PLC_OK);  // was never there
  return 0;
}

void test_calls_inside_callbacks() {
  plc_engine* engine = opened();
  Asked asked;
  Inside inside{engine};
  CHECK(plc_generate(engine, &asked.request, call_all, &inside) == PLC_OK && inside.calls == 5);
  CHECK(plc_task_count(engine) == 4);

  // A callback cancels its own request, and one that was submitted.
  struct Both {
    plc_engine* engine;
    uint64_t other;
    Heard heard{};
  } both{engine, 0};
  Asked endless("endless");
  CHECK(plc_submit(engine, &endless.request, &both.other) == PLC_OK);
  const auto cancel = [](void* user, const plc_event* event) {
    Both& given = *static_cast<Both*>(user);
    hear(&given.heard, event);
    CHECK(plc_cancel(given.engine, given.other) == PLC_OK);
    CHECK(plc_cancel(given.engine, plc_event_number(event)) == PLC_OK);
    return 0;
  };
  REFUSED(PLC_CANCELLED, "cancelled", plc_generate(engine, &endless.request, cancel, &both));
  CHECK(both.heard.last == 1 && both.heard.status == PLC_CANCELLED);
  plc_event* event = nullptr;
  uint64_t number = 0;
  plc_status status = PLC_OK;
  while (plc_poll(engine, &event) == PLC_OK && event != nullptr) {
    number = plc_event_number(event), status = plc_event_status(event);
    plc_event_free(event);
  }
  CHECK(number == both.other && status == PLC_CANCELLED);
  plc_engine_close(engine);
}

void test_many_requests() {
  plc_engine* engine = opened();
  int more = 7;
  CHECK(plc_step(engine, &more) == PLC_OK && more == 0);
  CHECK(plc_step(engine, nullptr) == PLC_OK);
  plc_event* event = nullptr;
  CHECK(plc_poll(engine, &event) == PLC_OK && event == nullptr);
  Asked asked;
  const char* words[] = {"one", "three", "", "seventeen"};
  std::map<uint64_t, std::string> expected, found;
  for (const char* word : words) {
    asked.field.text = word;
    uint64_t number = 0;
    CHECK(plc_submit(engine, &asked.request, &number) == PLC_OK && expected.count(number) == 0);
    expected[number] = word;
  }
  std::vector<plc_event*> kept;
  do {
    CHECK(plc_step(engine, &more) == PLC_OK);
    for (int place = 0; place < 2; ++place) {  // fewer than there are: `more` counts events, too
      CHECK(plc_poll(engine, &event) == PLC_OK);
      if (event != nullptr) kept.push_back(event);
    }
  } while (more != 0);
  plc_engine_close(engine);  // events stay
  for (plc_event* each : kept) {
    found[plc_event_number(each)] += plc_event_text(each, nullptr);
    if (plc_event_is_last(each)) CHECK(expected[plc_event_number(each)] == plc_event_result(each)->text);
    plc_event_free(each);
  }
  CHECK(found == expected);
  plc_event_free(nullptr);

  engine = opened();
  uint64_t number = 0;
  CHECK(plc_submit(engine, &asked.request, &number) == PLC_OK);
  fake::fails_step = true;
  REFUSED(PLC_ERROR_RUNTIME, "it failed", plc_step(engine, &more));
  CHECK(more == 1 && plc_poll(engine, &event) == PLC_OK && plc_event_number(event) == number);
  CHECK(plc_event_is_last(event) && plc_event_status(event) == PLC_ERROR_RUNTIME);
  plc_event_free(event);
  CHECK(plc_submit(engine, &asked.request, &number) == PLC_OK);
  CHECK(plc_cancel(engine, number) == PLC_OK && plc_cancel(engine, number) == PLC_OK);
  CHECK(plc_poll(engine, &event) == PLC_OK && plc_event_status(event) == PLC_CANCELLED);
  plc_event_free(event);
  CHECK(plc_cancel(engine, number) == PLC_OK);  // finished
  REFUSED(PLC_ERROR_ARGUMENT, "engine is null", plc_step(nullptr, &more));
  REFUSED(PLC_ERROR_ARGUMENT, "engine is null", plc_poll(nullptr, &event));
  REFUSED(PLC_ERROR_ARGUMENT, "event is null", plc_poll(engine, nullptr));
  REFUSED(PLC_ERROR_ARGUMENT, "engine is null", plc_cancel(nullptr, 1));
  plc_engine_close(engine);
}

void test_null_events() {
  size_t length = 5;
  CHECK(plc_event_number(nullptr) == 0 && plc_event_is_last(nullptr) == 0);
  CHECK(std::string(plc_event_text(nullptr, &length)).empty() && length == 0);
  CHECK(plc_event_status(nullptr) == PLC_ERROR_ARGUMENT && plc_event_error(nullptr)[0] == 0);
  CHECK(plc_event_result(nullptr) == nullptr && plc_event_label(nullptr, 0) == nullptr);
  CHECK(plc_event_log_prob(nullptr, 0, 0) == nullptr);
}

void test_tokens() {
  plc_engine* engine = opened();
  int32_t ids[4] = {-1, -1, -1, -1};
  size_t count = 0;
  CHECK(plc_encode(engine, "abc", PLC_LENGTH_OF_TEXT, ids, 4, &count) == PLC_OK && count == 3);
  CHECK(ids[2] == 'c' && ids[3] == -1);
  CHECK(plc_encode(engine, "a\0c", 3, ids, 3, &count) == PLC_OK && count == 3 && ids[1] == 0);
  ids[2] = -1;
  REFUSED(PLC_ERROR_ROOM, "expected room for 3", plc_encode(engine, "xyz", 3, ids, 2, &count));
  CHECK(count == 3 && ids[0] == 'x' && ids[1] == 'y' && ids[2] == -1);
  REFUSED(PLC_ERROR_ROOM, "room", plc_encode(engine, "xyz", 3, nullptr, 0, &count));
  CHECK(plc_encode(engine, nullptr, 0, nullptr, 0, &count) == PLC_OK && count == 0);
  REFUSED(PLC_ERROR_ARGUMENT, "text is null", plc_encode(engine, nullptr, 1, ids, 4, &count));
  REFUSED(PLC_ERROR_ARGUMENT, "text is null", plc_encode(engine, nullptr, PLC_LENGTH_OF_TEXT, ids, 4, &count));
  REFUSED(PLC_ERROR_ARGUMENT, "ids is null", plc_encode(engine, "a", 1, nullptr, 1, &count));
  REFUSED(PLC_ERROR_ARGUMENT, "count is null", plc_encode(engine, "a", 1, ids, 1, nullptr));
  REFUSED(PLC_ERROR_ARGUMENT, "not UTF-8", plc_encode(engine, "\xe9", 1, ids, 1, &count));
  REFUSED(PLC_ERROR_ARGUMENT, "engine is null", plc_encode(nullptr, "a", 1, ids, 1, &count));
  char text[4] = "###";
  const int32_t given[] = {'o', 'k'};
  CHECK(plc_decode(engine, given, 2, text, 4, &count) == PLC_OK && count == 2);
  CHECK(std::string(text) == "ok#");  // no 0 byte
  REFUSED(PLC_ERROR_ROOM, "expected room for 2", plc_decode(engine, given, 2, text, 1, &count));
  CHECK(plc_decode(engine, nullptr, 0, nullptr, 0, &count) == PLC_OK && count == 0);
  REFUSED(PLC_ERROR_ARGUMENT, "ids is null", plc_decode(engine, nullptr, 1, text, 4, &count));
  REFUSED(PLC_ERROR_ARGUMENT, "text is null", plc_decode(engine, given, 2, nullptr, 4, &count));
  REFUSED(PLC_ERROR_ARGUMENT, "count is null", plc_decode(engine, given, 2, text, 4, nullptr));
  REFUSED(PLC_ERROR_ARGUMENT, "engine is null", plc_decode(nullptr, given, 2, text, 4, &count));
  plc_engine_close(engine);
}

void test_threads() {
  fake::is_seen = false;
  plc_engine* engine = opened();
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 6; ++thread) {
    threads.emplace_back([engine, thread] {
      for (int round = 0; round < 40; ++round) {
        const std::string word = std::to_string(thread * 1000 + round);
        Asked asked;
        asked.field.text = word.c_str();
        Heard heard;
        CHECK(plc_generate(engine, &asked.request, hear, &heard) == PLC_OK && heard.result == word);
        REFUSED(PLC_ERROR_REQUEST, word, plc_engine_remove(engine, ("none" + word).c_str()));
        CHECK(plc_task_count(engine) >= 4 && plc_task_field(engine, "mood", 0) != nullptr);
      }
    });
  }
  std::atomic<int> answered{0};
  std::atomic<bool> is_submitted{false};
  threads.emplace_back([&] {
    for (int round = 0; round < 40; ++round) {
      Asked asked;
      uint64_t number = 0;
      CHECK(plc_submit(engine, &asked.request, &number) == PLC_OK);
    }
    is_submitted = true;
  });
  for (int thread = 0; thread < 2; ++thread) {
    threads.emplace_back([&] {
      while (answered < 40) {
        int more = 0;
        CHECK(plc_step(engine, &more) == PLC_OK);
        plc_event* event = nullptr;
        CHECK(plc_poll(engine, &event) == PLC_OK);
        if (event != nullptr) answered += plc_event_is_last(event);
        plc_event_free(event);
        if (is_submitted && answered < 40 && more == 0) std::this_thread::yield();
      }
    });
  }
  threads.emplace_back([engine] {
    for (int round = 0; round < 40; ++round) {
      CHECK(plc_engine_add(engine, "more") == PLC_OK && plc_engine_remove(engine, "more") == PLC_OK);
    }
  });
  for (std::thread& thread : threads) thread.join();
  CHECK(answered == 40);

  // A thread cancels what another one waits for.
  std::atomic<uint64_t> number{0};
  const auto note = [](void* user, const plc_event* event) {
    static_cast<std::atomic<uint64_t>*>(user)->store(plc_event_number(event));
    return 0;
  };
  std::thread waits([&] {
    Asked endless("endless");
    REFUSED(PLC_CANCELLED, "cancelled", plc_generate(engine, &endless.request, note, &number));
  });
  while (number == 0) std::this_thread::yield();
  CHECK(plc_cancel(engine, number) == PLC_OK);
  waits.join();
  plc_engine_close(engine);
  fake::is_seen = true;
}

void test_closing_while_others_wait() {
  fake::is_seen = false;
  for (int round = 0; round < 30; ++round) {
    plc_engine* engine = opened();
    std::atomic<int> begun[3] = {}, ended{0};  // pieces of each request
    const auto note = [](void* user, const plc_event* event) {
      CHECK(!plc_event_is_last(event));  // they are given nothing more
      if (plc_event_text(event, nullptr)[0] == 'x') ++*static_cast<std::atomic<int>*>(user);
      return 0;
    };
    std::vector<std::thread> threads;
    for (int thread = 0; thread < 3; ++thread) {
      threads.emplace_back([&, thread] {
        Asked endless("endless");
        REFUSED(PLC_ERROR_ARGUMENT, "was closed",
                plc_generate(engine, &endless.request, note, &begun[thread]));
        ++ended;
      });
    }
    for (const std::atomic<int>& pieces : begun) {
      while (pieces <= round % 3) std::this_thread::yield();
    }
    plc_engine_close(engine);
    for (std::thread& thread : threads) thread.join();
    CHECK(ended == 3 && fake::sessions == 0);
  }
  fake::is_seen = true;
}

void test_in_cpp() {
  using plc_runtime::Engine;
  using plc_runtime::Request;
  const auto missing = Engine::open("missing");
  CHECK(!missing && missing.error().status == PLC_ERROR_FILE);
  auto engine = Engine::open("bundle");
  CHECK(engine.has_value() && engine->tasks().size() == 4 && engine->tasks()[0] == "echo");
  Request request("echo");
  request.field("text", "it works").stop("END").bad_word("never").bias("good", 2.0f);
  request.options.max_tokens = 20;
  std::string pieces;
  const auto answer = engine->generate(request, [&](std::string_view piece) { pieces += piece; });
  CHECK(answer && answer->text == "it works" && pieces == answer->text && answer->token_ids.size() == 8);
  CHECK(answer->finish_reason == PLC_STOP && answer->shared_tokens == 5);
  CHECK(fake::seen().request->stop.at(0) == "END" && fake::seen().request->bad_words.at(0) == "never");
  CHECK(fake::seen().request->bias.at(0).second == 2.0f && fake::seen().request->max_tokens == 20);
  CHECK(!engine->generate(Request("none")) && engine->generate(Request("none")).error().status == PLC_ERROR_REQUEST);

  bool is_thrown = false;
  try {
    (void)engine->generate(request, [](std::string_view) { throw std::out_of_range("mine"); });
  } catch (const std::out_of_range&) {
    is_thrown = true;
  }
  CHECK(is_thrown);

  const auto labels = engine->score(Request("mood"));
  CHECK(labels.has_value() && (*labels).size() == 2 && (*labels)[1].text == "bad");
  const auto best = engine->classify(Request("mood"));
  CHECK(best && best->text == "good" && std::isnan(best->probability));

  const auto number = engine->submit(request);
  const auto failing = engine->submit(Request("overflow"));
  CHECK(number && failing && !engine->submit(Request("none")));
  std::map<uint64_t, std::string> texts, results;
  for (bool more = true; more;) {
    more = *engine->step();
    while (const auto event = engine->poll()) {
      texts[event->number()] += event->text();
      if (!event->is_last()) continue;
      const auto error = event->error();
      results[event->number()] = error ? error->message : event->answer()->text;
      CHECK(event->labels().empty());
    }
  }
  CHECK(texts[*number] == "it works" && results[*number] == "it works");
  CHECK(results[*failing].find("not finite") != std::string::npos);
  engine->cancel(*number);
  Engine moved = std::move(*engine);
  CHECK(moved.get() != nullptr && fake::sessions == 1);
}

plc_engine* left_open = nullptr;  // at exit

}  // namespace

int main() {
  test_version_and_errors();
  test_opening();
  test_refused_options();
  test_structs_that_grew();
  test_tasks();
  test_requests_arrive_whole();
  test_refused_requests();
  test_generate();
  test_calls_inside_callbacks();
  test_many_requests();
  test_null_events();
  test_tokens();
  test_threads();
  test_closing_while_others_wait();
  test_in_cpp();
  CHECK(fake::sessions == 0);

  left_open = opened();
  Asked asked;
  Heard heard;
  CHECK(plc_generate(left_open, &asked.request, hear, &heard) == PLC_OK);
  std::fprintf(stderr, "%d failures\n", failures.load());
  return failures != 0;
}
