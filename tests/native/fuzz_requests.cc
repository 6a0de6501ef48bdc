// A target for libFuzzer: requests to the tasks of the bundle that PLC_BUNDLE names, on an engine whose
// numbers are made up. An input is some requests, and when they come and are cancelled.
//
// Whatever they are: nothing crashes or hangs; what is refused says so in UTF-8; each request that was
// let in ends once, unless it is cancelled; texts and labels are UTF-8; an answer of a closed set is one
// of it.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "continuous.h"
#include "row_maker.h"
#include "served_task.h"
#include "step_costs.h"
#include "tokenizer.h"
#include "utf8.h"

namespace {

using plc::Event;
using plc::Feed;
using plc::Request;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

// Logits that a row's tokens decide. Every 64th token has numbers that are not finite.
class MadeUpEngine final : public plc::Engine {
 public:
  explicit MadeUpEngine(const plc::GraphContract& contract) : Engine(contract, 4), sums_(4) {
    piece = 32;
    branches = together = true;
    candidates = 0;
  }

  plc::Result<size_t> admit(size_t slot, const plc::EnginePrompt& prompt) override {
    sums_[slot] = 1;
    return prompt.prefix == nullptr ? size_t{0} : prompt.prefix_length;
  }
  size_t share(size_t, const std::vector<int64_t>&) override { return 0; }
  bool alike(size_t, size_t) override { return false; }
  plc::Status step(const std::vector<Feed>& feeds, std::vector<plc::Fed>& results) override {
    results.clear();
    size_t outputs = 0;
    for (const Feed& feed : feeds) outputs += std::max<size_t>(1, feed.wanted.size());
    logits_.resize(outputs * vocab);
    float* to = logits_.data();
    for (const Feed& feed : feeds) {
      expect(feed.slot < max_batch && !feed.ids.empty(), "a feed is for a row");
      expect(feed.past + feed.ids.size() <= capacity, "a feed fits");
      plc::Fed fed;
      fed.logits = to;
      fed.outputs = std::max<size_t>(1, feed.wanted.size());
      for (const int64_t id : feed.ids) sums_[feed.slot] = sums_[feed.slot] * 31 + static_cast<uint64_t>(id) + 7;
      for (size_t output = 0; output < fed.outputs; ++output, to += vocab) write(sums_[feed.slot] + output, to);
      results.push_back(fed);
    }
    return {};
  }
  void clear(const std::vector<size_t>&) override {}
  void retire(const std::vector<size_t>&) override {}

 private:
  void write(uint64_t sum, float* to) const {
    for (size_t token = 0; token < vocab; ++token) {
      sum = sum * 6364136223846793005u + 1442695040888963407u;
      to[token] = static_cast<float>(static_cast<int32_t>(sum >> 32)) / 3e8f;
    }
    if (sum % 64 == 0) to[sum % vocab] = std::nanf("");
  }

  std::vector<uint64_t> sums_;  // of what each slot was fed
  std::vector<float> logits_{};
};

struct Served {
  std::shared_ptr<const plc::Bundle> bundle;
  std::shared_ptr<const plc::Tokenizer> tokenizer;
  std::vector<std::shared_ptr<plc::ServedTask>> tasks;
};

const Served& served() {
  static const Served found = [] {
    const char* const folder = std::getenv("PLC_BUNDLE");
    expect(folder != nullptr, "PLC_BUNDLE names a bundle");
    auto bundle = plc::Bundle::open(folder);
    expect(bundle.ok(), "the bundle is good");
    auto tokenizer = plc::Tokenizer::open(bundle.value()->path_of("tokenizer.tables"));
    expect(tokenizer.ok(), "its tokenizer is good");
    auto tasks = plc::serve_tasks(bundle.value(), std::make_shared<plc::Encoder>(tokenizer.value()));
    expect(tasks.ok() && !tasks.value().empty(), "it has tasks");
    return Served{bundle.value(), tokenizer.value(), tasks.value()};
  }();
  return found;
}

// Mostly within a range.
template <typename Number>
Number number(FuzzedDataProvider& input, Number least, Number most) {
  if (input.ConsumeIntegralInRange(0, 15) == 0) {
    if constexpr (std::is_floating_point_v<Number>) return input.ConsumeFloatingPoint<Number>();
    else return input.ConsumeIntegral<Number>();
  }
  if constexpr (std::is_floating_point_v<Number>) return input.ConsumeFloatingPointInRange(least, most);
  else return input.ConsumeIntegralInRange(least, most);
}

// In UTF-8: the interface in C refuses others (c_interface_test.cc).
std::string text_of(FuzzedDataProvider& input, size_t most) {
  std::string text;
  plc::append_replaced(input.ConsumeRandomLengthString(most), text);
  return text;
}

std::vector<std::string> texts(FuzzedDataProvider& input) {
  std::vector<std::string> found(input.ConsumeIntegralInRange<size_t>(0, 3));
  for (std::string& text : found) text = text_of(input, 12);
  return found;
}

Request request_of(FuzzedDataProvider& input, const plc::ServedTask& task) {
  Request request;
  request.task = task.name();
  for (const std::string& name : task.parsed.input_fields) {
    if (input.ConsumeIntegralInRange(0, 31) == 0) continue;
    request.fields.emplace_back(name, text_of(input, 200));
  }
  if (input.ConsumeIntegralInRange(0, 31) == 0) request.fields.emplace_back("a", "b");
  request.kind = static_cast<plc::Kind>(input.ConsumeIntegralInRange(0, 2));
  request.max_tokens = number<int64_t>(input, 1, 20);
  if (!input.ConsumeBool()) return request;
  request.min_tokens = number<int64_t>(input, 0, 3);
  request.constrain = input.ConsumeBool();
  request.use_prompt = input.ConsumeBool();
  request.stop = texts(input);
  request.bad_words = texts(input);
  for (const std::string& text : texts(input)) request.bias.emplace_back(text, number(input, -100.0f, 100.0f));
  request.priority = number<int64_t>(input, -5, 5);
  request.timeout = input.ConsumeBool() ? 0.0 : number(input, 1e-5, 10.0);
  request.log_probs = number<int64_t>(input, -1, 20);
  plc::Sampling& sampling = request.sampling;
  sampling.temperature = number(input, 0.0, 2.0);
  sampling.top_k = number<int64_t>(input, 0, 30);
  sampling.top_p = number(input, 0.0, 1.0);
  sampling.min_p = number(input, 0.0, 1.0);
  sampling.repetition_penalty = number(input, 0.1, 3.0);
  sampling.no_repeat_ngram = number<int64_t>(input, 0, 4);
  sampling.seed = {input.ConsumeIntegral<uint64_t>()};
  return request;
}

bool is_utf8(const std::vector<plc::LabelScore>& labels) {
  return std::all_of(labels.begin(), labels.end(), [](const auto& label) { return plc::is_utf8(label.text); });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const Served& all = served();
  FuzzedDataProvider input(data, size);
  MadeUpEngine engine(all.bundle->manifest().graph);
  plc::StepCosts costs;
  const bool drafts = input.ConsumeBool();
  plc::Continuous flow(engine, drafts ? &costs : nullptr);
  std::map<uint64_t, Request> live;
  uint64_t next = 1;
  constexpr uint64_t kMost = 6;
  // An answer has 20 tokens at most, unless its request asks for more: then it is cancelled.
  for (int turn = 0; turn < 400; ++turn) {
    if (input.remaining_bytes() > 0 && next <= kMost && input.ConsumeIntegralInRange(0, 2) == 0) {
      const auto& task = all.tasks[input.ConsumeIntegralInRange<size_t>(0, all.tasks.size() - 1)];
      const Request request = request_of(input, *task);
      plc::Status checked = request.check();
      if (checked.ok()) {
        auto row = plc::make_row(request, task, all.tokenizer, engine, drafts ? &costs : nullptr);
        if (row.ok()) {
          live.emplace(next, request);
          flow.submit(next++, std::move(row.value()));
        } else {
          checked = row.error();
        }
      }
      if (!checked.ok()) expect(plc::is_utf8(checked.error().message), "a refusal is UTF-8");
    }
    if (!live.empty() && (turn > 300 || input.ConsumeIntegralInRange(0, 63) == 1)) {
      flow.cancel(live.begin()->first);
      live.erase(live.begin());
    }
    std::vector<Event> events;
    if (flow.is_busy()) expect(flow.step(events).ok(), "a step succeeds");
    for (const Event& event : events) {
      const auto found = live.find(event.number);
      expect(found != live.end(), "events are for requests under way");
      expect(plc::is_utf8(event.text) && is_utf8(event.labels), "texts are UTF-8");
      if (!event.is_last) continue;
      expect(event.error || event.answer || !event.labels.empty(), "the last event says how it ended");
      if (event.error) expect(plc::is_utf8(event.error->message), "an error is UTF-8");
      if (event.answer) expect(plc::is_utf8(event.answer->text), "an answer is UTF-8");
      live.erase(found);
    }
    if (live.empty()) {
      expect(!flow.is_busy(), "what has ended has left");
      if (input.remaining_bytes() == 0) break;
    }
  }
  expect(live.empty(), "every request ends");
  return 0;
}
