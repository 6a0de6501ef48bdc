#include "problems.h"

namespace plc {
namespace {

constexpr size_t kMostShown = 20;

}  // namespace

Error wrong_file(std::string_view doing, Words found, Words expected, std::string_view fix) {
  std::string message = joined({doing, ": "});
  append(found, message);
  append({"; expected "}, message);
  append(expected, message);
  append({". ", fix}, message);
  return {ErrorCode::kFormat, std::move(message)};
}

void Problems::add(Words words) {
  if (++count_ <= kMostShown) first_.push_back(joined(words));
}

std::string Problems::listed() const {
  if (count_ == 1) return first_[0];
  std::string text = joined({count_, " problems:"});
  for (const std::string& each : first_) append({"\n  - ", each}, text);
  if (count_ > kMostShown) append({"\n  - and ", count_ - kMostShown, " more"}, text);
  return text;
}

}  // namespace plc
