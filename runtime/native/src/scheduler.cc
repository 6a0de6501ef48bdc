#include "scheduler.h"

#include <algorithm>

namespace plc {
namespace {

// Most pieces of prompts in a step where fewer rows write than prompts are under way.
constexpr size_t kRush = 8;

}  // namespace

Scheduler::Scheduler(size_t slots, size_t piece, size_t budget, size_t rush)
    : slots_(slots), piece_(piece), budget_(budget), rush_(std::max(budget, rush)) {}

Scheduler Scheduler::of_engine(size_t slots, size_t piece, bool together) {
  return together ? Scheduler(slots, 0, piece, kRush * piece) : Scheduler(slots, piece, piece);
}

void Scheduler::submit(uint64_t request, size_t tokens, int64_t priority) {
  const Entry entry{request, priority, count_++, tokens};
  const auto place =
      std::upper_bound(waiting_.begin(), waiting_.end(), entry,
                       [](const Entry& left, const Entry& right) { return left.comes_before(right); });
  waiting_.insert(place, entry);
}

std::optional<size_t> Scheduler::withdraw(uint64_t request) {
  const auto is_it = [request](const Entry& entry) { return entry.request == request; };
  const auto held = std::find_if(running_.begin(), running_.end(), is_it);
  if (held != running_.end()) {
    const size_t slot = held->slot;
    running_.erase(held);
    return slot;
  }
  const auto queued = std::find_if(waiting_.begin(), waiting_.end(), is_it);
  if (queued != waiting_.end()) waiting_.erase(queued);
  return std::nullopt;
}

void Scheduler::finish(const std::vector<size_t>& slots) {
  for (const size_t slot : slots) running_.erase(running_.begin() + (&entry_in(slot) - running_.data()));
}

void Scheduler::ask(size_t slot, size_t tokens) { entry_in(slot).asked = tokens; }

std::vector<Held> Scheduler::admit() {
  std::vector<Held> admitted;
  if (waiting_.empty() || running_.size() == slots_) return admitted;
  std::vector<char> is_held(slots_, 0);
  for (const Entry& entry : running_) is_held[entry.slot] = 1;
  for (size_t slot = 0; slot < slots_ && !waiting_.empty(); ++slot) {
    if (is_held[slot] != 0) continue;
    running_.push_back(waiting_.front());
    waiting_.pop_front();
    running_.back().slot = slot;
    admitted.push_back({slot, running_.back().request});
  }
  return admitted;
}

std::vector<Held> Scheduler::not_begun() const {
  std::vector<Held> found;
  for (const Entry& entry : running_)
    if (!entry.begun) found.push_back({entry.slot, entry.request});
  return found;
}

void Scheduler::shorten(size_t slot, size_t tokens) { entry_in(slot).unfed = tokens; }

std::vector<FedTokens> Scheduler::turn(Alike alike, void* context) {
  std::vector<FedTokens> fed;
  std::vector<Entry*> prompts;
  for (Entry& entry : running_) {
    if (entry.unfed == 0) fed.push_back({entry.slot, entry.request, entry.asked});
    else prompts.push_back(&entry);
  }
  std::sort(prompts.begin(), prompts.end(),
            [](const Entry* left, const Entry* right) { return left->comes_before(*right); });
  size_t left = fed.size() < prompts.size() ? rush_ : budget_;
  std::vector<size_t> under_way;
  for (Entry* entry : prompts) {
    const size_t piece = std::min(piece_ == 0 ? left : piece_, entry->unfed);
    if (piece == 0 || piece > left) break;
    const auto waits_for = [&](size_t other) { return alike(context, entry->slot, other); };
    const bool may_wait = alike != nullptr && !entry->begun;
    if (may_wait && std::any_of(under_way.begin(), under_way.end(), waits_for)) continue;
    under_way.push_back(entry->slot);
    fed.push_back({entry->slot, entry->request, piece});
    left -= piece;
    entry->unfed -= piece;
    entry->begun = true;
  }
  std::sort(fed.begin(), fed.end(),
            [](const FedTokens& one, const FedTokens& other) { return one.slot < other.slot; });
  return fed;
}

// The slot is one that a request holds.
Scheduler::Entry& Scheduler::entry_in(size_t slot) {
  return *std::find_if(running_.begin(), running_.end(),
                       [slot](const Entry& entry) { return entry.slot == slot; });
}

void Deadlines::remove(uint64_t request) {
  const auto it = std::find_if(times_.begin(), times_.end(),
                               [request](const auto& each) { return each.first == request; });
  if (it != times_.end()) times_.erase(it);
}

std::vector<uint64_t> Deadlines::overdue(double now) const {
  std::vector<uint64_t> found;
  for (const auto& [request, time] : times_)
    if (time <= now) found.push_back(request);
  return found;
}

}  // namespace plc
