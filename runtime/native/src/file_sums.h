// Compares the files of a folder with their record.
#pragma once

#include <string>
#include <vector>

#include "manifest.h"
#include "result.h"

namespace plc {

// Whether the folder holds the files of a manifest, with their sizes and sums, no others but the
// manifest and the reports, and no links, pipes or devices. An error has all that is wrong.
// `without_sum`: a file whose bytes are not read.
Status check_files(const std::string& folder, const std::vector<FileRecord>& files,
                   std::string_view without_sum, const std::string& doing);

}  // namespace plc
