#include "touched_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <utility>

#include "words.h"

namespace plc {
namespace {

Error refused(Words found) {
  return {ErrorCode::kArgument,
          joined({"taking memory for the rows of a batch: ", joined(found),
                  "; expected as many as it has left. Lower max_batch or context_mib, or export with a "
                  "smaller --capacity."})};
}

}  // namespace

Result<TouchedMemory> TouchedMemory::zeros(std::initializer_list<size_t> sizes) {
  size_t bytes = 1;
  for (const size_t size : sizes)
    if (__builtin_mul_overflow(bytes, size, &bytes)) return refused({"more bytes than can be counted"});
  if (bytes == 0) return TouchedMemory();
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return refused({bytes, " bytes, which the system refuses"});
#ifdef MADV_NOHUGEPAGE
  ::madvise(memory, bytes, MADV_NOHUGEPAGE);  // a Linux without large pages refuses this advice
#endif
  return TouchedMemory(static_cast<char*>(memory), bytes);
}

TouchedMemory::TouchedMemory(TouchedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

TouchedMemory& TouchedMemory::operator=(TouchedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

TouchedMemory::~TouchedMemory() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

void TouchedMemory::give_back(size_t begin, size_t end) {
#ifdef __linux__  // elsewhere the same advice leaves the numbers as they are
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t first = (begin + page - 1) / page * page, last = end / page * page;
  if (first < last) ::madvise(data_ + first, last - first, MADV_DONTNEED);
#else
  static_cast<void>(begin), static_cast<void>(end);
#endif
}

}  // namespace plc
