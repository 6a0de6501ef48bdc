// Sums over the ranks of one machine's CPU, which meet in shared memory. All add in the order of the ranks, so
// the sums are the same bits on each.
#include <algorithm>
#include <cstring>

#include "collective.h"

#if defined(__linux__)
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

namespace plc::kernels {
namespace {

// Floats of a rank that are summed at once; longer tensors take several turns.
constexpr size_t kPiece = size_t{1} << 18;

// What stands at the head of the shared memory. Behind it: two buffers, each with a piece per rank.
struct alignas(128) Meeting {
  std::atomic<uint32_t> arrived;
  std::atomic<uint32_t> turn;
};

// The ranks of one machine. A process is a rank of one group at most.
class Group {
 public:
  size_t ranks = 0;

  // Maps the file that the leader made; a message where that fails.
  const char* join(const char* path, size_t rank, size_t count) {
#if defined(__linux__)
    if (ranks) return "this process is a rank already";
    if (rank >= count) return "a rank beyond the number of ranks";
    const size_t bytes = sizeof(Meeting) + 2 * count * kPiece * sizeof(float);
    const int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0) return "the shared memory does not open";
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return "the shared memory does not map";
    meeting_ = static_cast<Meeting*>(memory);
    pieces_ = reinterpret_cast<float*>(meeting_ + 1);
    rank_ = rank;
    leader_ = getppid();
    ranks = count;
    return nullptr;
#else
    (void)path, (void)rank, (void)count;
    return "ranks on CPU need Linux";
#endif
  }

  void all_reduce(const float* x, float* y, size_t size) {
    for (size_t done = 0; done < size; done += kPiece) {
      const size_t count = std::min(kPiece, size - done);
      // In turns: nobody writes a buffer again before all have met once more, and so have read it.
      float* buffer = pieces_ + (buffer_ ^= 1) * ranks * kPiece;
      std::memcpy(buffer + rank_ * kPiece, x + done, count * sizeof(float));
      meet();
      std::memcpy(y + done, buffer, count * sizeof(float));
      for (size_t rank = 1; rank < ranks; ++rank) {
        const float* piece = buffer + rank * kPiece;
        for (size_t i = 0; i < count; ++i) y[done + i] += piece[i];
      }
    }
  }

 private:
  // Returns when all ranks have called it. The leader ends all ranks when one of them ends; where
  // it has ended itself, nobody would.
  void meet() {
#if defined(__linux__)
    const uint32_t turn = meeting_->turn.load(std::memory_order_acquire);
    if (meeting_->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == ranks) {
      meeting_->arrived.store(0, std::memory_order_relaxed);
      meeting_->turn.store(turn + 1, std::memory_order_release);
      futex(FUTEX_WAKE, INT32_MAX, nullptr);
      return;
    }
    for (size_t tries = 0; meeting_->turn.load(std::memory_order_acquire) == turn; ++tries) {
      if (tries < kSpins) continue;
      const timespec soon{0, 50'000'000};
      futex(FUTEX_WAIT, turn, &soon);
      expect(getppid() == leader_, "the process that started the ranks has ended");
    }
#endif
  }

#if defined(__linux__)
  void futex(int operation, uint32_t value, const timespec* timeout) {
    syscall(SYS_futex, &meeting_->turn, operation, value, timeout, nullptr, 0);
  }

  pid_t leader_ = 0;
#endif

  static constexpr size_t kSpins = 2000;

  Meeting* meeting_ = nullptr;
  float* pieces_ = nullptr;
  size_t rank_ = 0, buffer_ = 0;
};

Group group;

struct CpuCollective {
  static constexpr const char* kName = "DistCollective";
  static constexpr const char* kProvider = nullptr;  // CPU
  static constexpr ort::ElementType kInputs[] = {ort::kFloat};
  static constexpr ort::ElementType kOutputs[] = {ort::kFloat};
  static constexpr size_t kNeeded = 1;

  explicit CpuCollective(const ort::KernelInfo* info) { check_sum(info, group.ranks); }

  void compute(ort::KernelContext* context) const {
    const Tensor x = input(context, 0);
    group.all_reduce(x.as<float>(), static_cast<float*>(output(context, 0, x.shape)), x.size());
  }
};

}  // namespace

std::vector<const ort::CustomOp*> group_ops() {
  static Definition<CpuCollective> on_cpu;
  return {&on_cpu};
}

}  // namespace plc::kernels

// Bytes of the shared memory for this many ranks.
PLC_EXPORT size_t plc_group_bytes(size_t ranks) {
  return sizeof(plc::kernels::Meeting) + 2 * ranks * plc::kernels::kPiece * sizeof(float);
}

// Makes this process a rank on CPU; null, or a message.
PLC_EXPORT const char* plc_join_group(const char* path, size_t rank, size_t ranks) {
  return plc::kernels::group.join(path, rank, ranks);
}
