// A session as a program, for the tests beside it.
//
//     session_program BUNDLE ONNXRUNTIME [OPTION=VALUE]...
//
// The options are threads, max_batch, context_mib and drafts. Reads lines from standard input, and
// answers each with a line; what is refused is answered with "refused", a code and why. Texts are
// hexadecimal.
//
//     submit KEY=VALUE...     a request: "ok". The keys are those of `read_option`
//     step COUNT              so many steps: whether requests are left
//     cancel PLACE            of a request, counted from 0
//     leave PLACE             likewise
//     result PLACE            runs steps until the request is finished: what `shown` writes
//     add FOLDER, remove TASK
//     tasks                   names, fields and choices
//     selftest TASK           rows
//     encode TEXT, decode IDS
//     threads COUNT FOLDER    answers all finished requests again in so many threads, with some that
//                             are cancelled, while the tasks of a bundle come and go: how many
//                             answers are the same
//     starve COUNT            of the allocations that steps make, that many later one fails
//     close                   closes the session while another thread waits for a request: its error
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <new>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "hex.h"
#include "session.h"

namespace {

thread_local long allocations_left = -1;  // before one fails; below 0: none does

}  // namespace

// ONNX Runtime is not tried: it does not promise to go on after an allocation that failed.
static bool is_ours(void* caller) {
  Dl_info about;
  return dladdr(caller, &about) == 0 || about.dli_fname == nullptr ||
         std::strstr(about.dli_fname, "onnxruntime") == nullptr;
}

// Not inline: a compiler that sees both takes them for a mismatch.
__attribute__((noinline)) void* operator new(size_t size) {
  if (allocations_left >= 0 && is_ours(__builtin_return_address(0)) && allocations_left-- == 0)
    throw std::bad_alloc();
  if (void* const memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}
__attribute__((noinline)) void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return std::malloc(size == 0 ? 1 : size);
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

using plc::Error;
using plc::Request;

// An empty text would be no word of a line.
std::string hex_word(const std::string& text) {
  return text.empty() ? "-" : to_hex(text);
}

std::string shown(double number) {
  char text[40];
  std::snprintf(text, sizeof text, "%.17g", number);
  return text;
}

std::string refused(const Error& error) {
  return "refused " + std::to_string(static_cast<int>(error.code)) + " " + hex_word(error.message);
}

std::pair<std::string, std::string> parted(const std::string& text, char at) {
  const size_t place = text.find(at);
  if (place == std::string::npos) return {text, ""};
  return {text.substr(0, place), text.substr(place + 1)};
}

void read_option(const std::string& key, const std::string& value, Request& request) {
  const auto whole = [&value]() { return static_cast<int64_t>(std::stoll(value)); };
  const auto real = [&value]() { return std::strtod(value.c_str(), nullptr); };
  if (key == "task") request.task = from_hex(value);
  if (key == "field") {
    const auto [name, text] = parted(value, ':');
    request.fields.emplace_back(from_hex(name), from_hex(text));
  }
  if (key == "kind") request.kind = static_cast<plc::Kind>(whole());
  if (key == "max_tokens") request.max_tokens = whole();
  if (key == "min_tokens") request.min_tokens = whole();
  if (key == "temperature") request.sampling.temperature = real();
  if (key == "top_k") request.sampling.top_k = whole();
  if (key == "top_p") request.sampling.top_p = real();
  if (key == "min_p") request.sampling.min_p = real();
  if (key == "repetition_penalty") request.sampling.repetition_penalty = real();
  if (key == "no_repeat_ngram") request.sampling.no_repeat_ngram = whole();
  if (key == "seed") request.sampling.seed = plc::Seed(static_cast<uint64_t>(whole()));
  if (key == "stop") request.stop.push_back(from_hex(value));
  if (key == "bad_words") request.bad_words.push_back(from_hex(value));
  if (key == "bias") {
    const auto [text, number] = parted(value, ':');
    request.bias.emplace_back(from_hex(text), std::strtof(number.c_str(), nullptr));
  }
  if (key == "constrain") request.constrain = whole() != 0;
  if (key == "use_prompt") request.use_prompt = whole() != 0;
  if (key == "priority") request.priority = whole();
  if (key == "timeout") request.timeout = real();
  if (key == "log_probs") request.log_probs = whole();
}

std::string shown(const plc::Event& event, const std::string& pieces) {
  if (event.error)
    return "error " + std::to_string(static_cast<int>(event.error->code)) + " " +
           hex_word(event.error->message);
  std::string text;
  if (!event.answer) {
    text = "labels";
    for (const plc::LabelScore& label : event.labels)
      text += " " + hex_word(label.text) + ":" + shown(label.probability) + ":" +
              shown(label.log_probability);
    return text;
  }
  const plc::Answer& answer = *event.answer;
  text = "answer " + hex_word(answer.text) + " " + hex_word(pieces) + " ";
  for (size_t k = 0; k < answer.token_ids.size(); ++k)
    text += (k == 0 ? "" : ",") + std::to_string(answer.token_ids[k]);
  if (answer.token_ids.empty()) text += "-";
  const char* const reasons[] = {"stop", "length", "timeout"};
  text += std::string(" ") + reasons[static_cast<int>(answer.finish_reason)];
  for (const size_t count :
       {answer.prompt_tokens, answer.cut_tokens, answer.prefix_tokens})
    text += " " + std::to_string(count);
  text += " ";
  for (const auto& of_token : answer.log_probs) {
    for (const plc::LogProb& each : of_token)
      text += std::to_string(each.token_id) + ":" + shown(each.log_prob) + "/";
    text += ";";
  }
  if (answer.log_probs.empty()) text += "-";
  return text;
}

struct Asked {
  Request request;
  uint64_t number = 0;
  plc::Inbox inbox{};
  std::string pieces{}, answer{};
};

std::string answered(plc::Session& session, Asked& asked) {
  while (auto event = session.wait(&asked.inbox, asked.number)) {
    asked.pieces += event->text;
    if (event->is_last) return shown(*event, asked.pieces);
    if (asked.request.kind != plc::Kind::kAnswer) return "an event that says nothing";
  }
  return "none";
}

class Program {
 public:
  explicit Program(std::unique_ptr<plc::Session> session) : session_(std::move(session)) {}

  std::string answer(const std::string& line) {
    std::istringstream in(line);
    std::string command, word;
    in >> command;
    if (command == "submit") return submit(in);
    in >> word;
    if (command == "step") {
      bool more = true;
      for (long count = std::stol(word); count > 0; --count) {
        const auto done = session_->step();
        if (!done.ok()) return refused(done.error());
        more = done.value();
      }
      return more ? "more" : "none";
    }
    if (command == "starve") {
      allocations_left = std::stol(word);
      const auto done = session_->step();
      allocations_left = -1;
      return done.ok() ? "ok" : "failed";
    }
    if (command == "cancel") return session_->cancel(asked(word).number), "ok";
    if (command == "leave") return session_->leave(asked(word).number), "ok";
    if (command == "result") {
      Asked& one = asked(word);
      one.answer = answered(*session_, one);
      return one.answer;
    }
    if (command == "add") return of(session_->add(word));
    if (command == "remove") return of(session_->remove(word));
    if (command == "tasks") return tasks();
    if (command == "selftest") {
      const auto rows = session_->self_test(word);
      return rows.ok() ? "rows " + std::to_string(rows.value()) : refused(rows.error());
    }
    if (command == "encode") {
      std::vector<int32_t> ids;
      const auto done = session_->encode(from_hex(word), ids);
      std::string text = "ids";
      for (const int32_t id : ids) text += " " + std::to_string(id);
      return done.ok() ? text : refused(done.error());
    }
    if (command == "decode") {
      std::vector<int32_t> ids;
      std::istringstream numbers(word);
      for (std::string each; std::getline(numbers, each, ',');) ids.push_back(std::stoi(each));
      return hex_word(session_->decode(ids));
    }
    if (command == "threads") {
      std::string folder;
      in >> folder;
      return threads(std::stoul(word), folder);
    }
    if (command == "close") return close();
    return "what?";
  }

 private:
  static std::string of(const plc::Status& done) { return done.ok() ? "ok" : refused(done.error()); }

  Asked& asked(const std::string& place) { return *asked_.at(std::stoul(place)); }

  std::string submit(std::istringstream& in) {
    auto one = std::make_unique<Asked>();
    for (std::string word; in >> word;) {
      const auto [key, value] = parted(word, '=');
      read_option(key, value, one->request);
    }
    const auto number = session_->submit(one->request, &one->inbox);
    asked_.push_back(std::move(one));
    if (!number.ok()) return refused(number.error());
    asked_.back()->number = number.value();
    return "ok";
  }

  std::string tasks() const {
    std::string text;
    for (const plc::TaskInfo& task : session_->tasks()) {
      text += task.name + ":";
      for (const std::string& field : task.fields) text += field + ",";
      text += ":";
      for (const std::string& choice : task.choices) text += choice + ",";
      text += ";";
    }
    return text;
  }

  std::string threads(size_t count, const std::string& folder) {
    std::atomic<size_t> same{0}, other{0};
    std::atomic<bool> over{false};
    const auto ask = [&](size_t thread) {
      const size_t all = asked_.size();
      for (size_t k = 0; k < all; ++k) {
        const Asked& before = *asked_[(k * 7 + thread * 3) % all];
        if (before.answer.empty() || before.answer == "none") continue;  // it was refused
        Asked again{before.request};
        const auto number = session_->submit(again.request, &again.inbox);
        if (!number.ok()) {
          ++other;
          continue;
        }
        again.number = number.value();
        if (k % 7 == 3) session_->cancel(again.number);
        if (k % 11 == 5) {
          session_->leave(again.number);
          continue;
        }
        const std::string found = answered(*session_, again);
        const bool was_cancelled = found.rfind("error 9", 0) == 0;
        ++(found == before.answer || (was_cancelled && k % 7 == 3) ? same : other);
      }
    };
    std::vector<std::thread> all;
    for (size_t thread = 0; thread < count; ++thread) all.emplace_back(ask, thread);
    std::thread changes([&]() {
      while (!over) {
        if (!session_->add(folder).ok()) ++other;
        for (const plc::TaskInfo& task : session_->tasks())
          if (task.name.rfind("more", 0) == 0 && !session_->remove(task.name).ok()) ++other;
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      }
    });
    for (std::thread& each : all) each.join();
    over = true;
    changes.join();
    return "same " + std::to_string(same) + " other " + std::to_string(other);
  }

  std::string close() {
    Asked one{asked_.at(0)->request};
    one.request.max_tokens = one.request.min_tokens = 1000000;
    const auto number = session_->submit(one.request, &one.inbox);
    if (!number.ok()) return refused(number.error());
    one.number = number.value();
    std::string found;
    std::thread waits([&, session = session_.get()]() {
      plc::Event last;
      while (!last.is_last)
        if (auto event = session->wait(&one.inbox, one.number)) last = std::move(*event);
      found = last.error ? "error " + std::to_string(static_cast<int>(last.error->code)) : "answer";
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    session_->close();
    waits.join();
    const auto refused_now = session_->submit(one.request, &one.inbox);
    return found + (refused_now.ok() ? " and goes on" : " and is closed");
  }

  std::unique_ptr<plc::Session> session_;
  std::vector<std::unique_ptr<Asked>> asked_{};
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) return 2;
  plc::SessionOptions options;
  options.onnxruntime = arguments[2];
  options.threads = 1;
  for (int k = 3; k < count; ++k) {
    const auto [key, value] = parted(arguments[k], '=');
    if (key == "threads") options.threads = std::stoi(value);
    if (key == "max_batch") options.max_batch = std::stoul(value);
    if (key == "context_mib") options.context_mib = std::stoll(value);
    if (key == "drafts") options.drafts = value == "1";
  }
  auto opened = plc::Session::open(arguments[1], options);
  if (!opened.ok()) {
    for (std::string line; std::getline(std::cin, line);)
      std::cout << refused(opened.error()) << std::endl;
    return 0;
  }
  Program program(std::move(opened.value()));
  for (std::string line; std::getline(std::cin, line);) std::cout << program.answer(line) << std::endl;
}
