// Answers for all lines of standard input at once, in their order.
//
//     lines BUNDLE TASK FIELD < texts.txt
//
// All lines are submitted, and step together: that takes much less time than one after the other.
#include <cstdio>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include <plc_runtime.hpp>

int main(int count, char** arguments) {
  if (count != 4) return std::cerr << "usage: " << arguments[0] << " BUNDLE TASK FIELD\n", 2;
  auto engine = plc_runtime::Engine::open(arguments[1]);
  if (!engine) return std::cerr << engine.error().message << "\n", 1;

  std::map<uint64_t, size_t> places;  // of lines, by their requests' numbers
  std::vector<std::string> answers;
  for (std::string line; std::getline(std::cin, line);) {
    plc_runtime::Request request(arguments[2]);
    request.field(arguments[3], line);
    const auto number = engine->submit(request);
    if (number) places[*number] = answers.size();
    answers.push_back(number ? "" : number.error().message);
  }

  for (bool more = true; more;) {
    const auto stepped = engine->step();
    if (!stepped) return std::cerr << stepped.error().message << "\n", 1;
    more = *stepped;
    while (const auto event = engine->poll()) {
      if (!event->is_last()) continue;
      const auto error = event->error();
      answers[places[event->number()]] = error ? error->message : event->answer()->text;
    }
  }
  for (const std::string& answer : answers) std::cout << answer << "\n";
}
