// A lock that no thread can keep for itself by asking for it again and again.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>

namespace plc {

// Threads get it in the order in which they ask. With a plain lock, a thread that runs one step after
// the other would let nobody else in: it takes the lock again before the operating system has woken up
// another thread.
class FairLock {
 public:
  void lock() {
    std::unique_lock<std::mutex> held(mutex_);
    const uint64_t ticket = next_++;
    turn_.wait(held, [this, ticket] { return serving_ == ticket; });
  }

  void unlock() {
    const std::lock_guard<std::mutex> held(mutex_);
    ++serving_;
    turn_.notify_all();
  }

 private:
  std::mutex mutex_{};
  std::condition_variable turn_{};
  uint64_t next_ = 0, serving_ = 0;
};

}  // namespace plc
