#include "mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace plc {
namespace {

Error unreadable(const std::string& path, const std::string& found) {
  return {ErrorCode::kFile,
          "reading " + path + ": " + found + "; expected a file that this process may read"};
}

// What the operating system says; unlike strerror, this may be asked by several threads.
Error refused(const std::string& path) { return unreadable(path, std::generic_category().message(errno)); }

// A descriptor that is closed at the end of its block.
struct Descriptor {
  int number;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

}  // namespace

Result<MappedFile> MappedFile::open(const std::string& path) {
  // Without O_NONBLOCK, a named pipe would wait for somebody to write.
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (file.number < 0) return refused(path);
  struct stat about {};
  if (::fstat(file.number, &about) != 0) return refused(path);
  if (!S_ISREG(about.st_mode)) return unreadable(path, "this is no regular file");
  if (about.st_size == 0) return MappedFile();
  const auto size = static_cast<size_t>(about.st_size);
  void* memory = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.number, 0);
  if (memory == MAP_FAILED) return refused(path);
  return MappedFile(std::string_view(static_cast<const char*>(memory), size));
}

MappedFile::MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  // What mmap gave was not constant; nothing was written to it.
  if (!bytes_.empty()) ::munmap(const_cast<char*>(bytes_.data()), bytes_.size());
}

}  // namespace plc
