#include "file_sums.h"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "problems.h"
#include "sha256.h"
#include "utf8.h"

namespace plc {
namespace {

constexpr std::string_view kExpected = "the files of manifest.json, as they are there";

struct Found {
  std::string path;  // in the folder
  int64_t bytes;
};

// A name for messages: a file system takes any bytes.
std::string shown(const std::string& name) {
  std::string text;
  append_replaced(name, text);
  return std::string(shortened(text, 200));
}

bool is_unnoted(const std::string& path) {
  return path == "manifest.json" || path == "report.json" || path == "report.html";
}

// All files in a folder, and everything in it that is none. Links are not followed, since they may
// lead out of the folder.
class Listing {
 public:
  explicit Listing(const std::string& folder) : folder_(folder) {
    for (std::vector<std::string> waiting{""}; !waiting.empty();) {
      const std::string inside = std::move(waiting.back());
      waiting.pop_back();
      list(inside, waiting);
    }
    std::sort(files.begin(), files.end(),
              [](const Found& one, const Found& other) { return one.path < other.path; });
  }

  std::vector<Found> files{};  // sorted
  Problems odd{};

 private:
  void list(const std::string& inside, std::vector<std::string>& waiting) {
    DIR* const folder = ::opendir((folder_ + "/" + inside).c_str());
    if (folder == nullptr) return unreadable(inside);
    for (;;) {
      errno = 0;
      const dirent* const entry = ::readdir(folder);
      if (entry == nullptr) break;
      const std::string name = entry->d_name;
      if (name != "." && name != "..") add(inside + name, waiting);
    }
    if (errno != 0) unreadable(inside);
    ::closedir(folder);
  }

  void add(const std::string& path, std::vector<std::string>& waiting) {
    struct stat about {};
    if (::lstat((folder_ + "/" + path).c_str(), &about) != 0) return unreadable(path);
    if (S_ISLNK(about.st_mode)) return odd.add({shown(path), " is a link"});
    if (S_ISDIR(about.st_mode)) return waiting.push_back(path + "/");
    if (S_ISREG(about.st_mode)) return files.push_back({path, about.st_size});
    odd.add({shown(path), " is a pipe, a device or a socket"});
  }

  void unreadable(const std::string& path) {
    const std::string reason = std::generic_category().message(errno);
    odd.add({path.empty() ? "the folder" : shown(path), " cannot be read (", reason, ")"});
  }

  const std::string& folder_;
};

const Found* find(const std::vector<Found>& files, const std::string& path) {
  const auto place =
      std::lower_bound(files.begin(), files.end(), path,
                       [](const Found& file, const std::string& name) { return file.path < name; });
  return place != files.end() && place->path == path ? &*place : nullptr;
}

}  // namespace

Status check_files(const std::string& folder, const std::vector<FileRecord>& files,
                   std::string_view without_sum, const std::string& doing) {
  const Listing listing(folder);
  if (!listing.odd.none()) return wrong_file(doing, {listing.odd.listed()}, {kExpected});
  Problems problems;
  for (const Found& found : listing.files) {
    const bool is_noted = std::binary_search(
        files.begin(), files.end(), FileRecord{found.path, {}, 0},
        [](const FileRecord& one, const FileRecord& other) { return one.path < other.path; });
    if (!is_noted && !is_unnoted(found.path)) problems.add({shown(found.path), " is not in the manifest"});
  }
  bool is_damaged = false;
  const auto damaged = [&](Words words) {
    problems.add(words);
    is_damaged = true;
  };
  std::vector<const FileRecord*> to_read;
  for (const FileRecord& file : files) {
    const Found* const found = find(listing.files, file.path);
    if (found == nullptr) {
      damaged({shown(file.path), " is missing"});
    } else if (found->bytes != file.bytes) {
      damaged({shown(file.path), " has ", found->bytes, " bytes, expected ", file.bytes});
    } else if (file.path != without_sum) {
      to_read.push_back(&file);
    }
  }
  for (const FileRecord* const file : to_read) {
    const auto sum = sha256_of_file(folder + "/" + file->path);
    if (!sum.ok()) {
      damaged({sum.error().message});
    } else if (sum.value() != file->sha256) {
      damaged({shown(file->path), " has sha256 ", sum.value(), ", expected ", shortened(file->sha256, 64)});
    }
  }
  if (problems.none()) return {};
  return wrong_file(doing, {problems.listed()}, {kExpected},
                    is_damaged ? kCopyOrExport
                               : "Move elsewhere what the manifest does not name: another program "
                                 "may have put it there.");
}

}  // namespace plc
