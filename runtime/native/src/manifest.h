// What manifest.json says: docs/artifact-format.md, "Bundle".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "contract.h"
#include "result.h"

namespace plc {

struct BaseIdentity {
  std::string name;         // for people
  std::string fingerprint;  // says which base it is
  int64_t hidden = 0;
  int64_t vocab = 0;
};

struct FileRecord {
  std::string path;  // in the bundle
  std::string sha256;
  int64_t bytes = 0;
};

enum class Parity { kPassed, kFailed, kNotMeasured };

struct Manifest {
  BaseIdentity base;
  std::string target;
  GraphContract graph;
  Precision precision;
  std::vector<std::string> tasks;
  std::vector<std::pair<std::string, std::string>> toolchain;  // package, version
  Parity parity = Parity::kNotMeasured;
  int64_t kernels = 2;              // the first interface of our kernels that computes the graph right
  std::vector<FileRecord> files;    // sorted by path
  std::string no_tokenizer_tables;  // why the export could not write them; empty where it did

  const FileRecord* file(std::string_view path) const;
  std::string version_of(std::string_view package) const;  // empty where it is not in `toolchain`
};

// Reads the bytes of a manifest, without looking at the files. `doing` begins an error's message.
Result<Manifest> read_manifest(std::string_view bytes, const std::string& doing);

// The sum over the names and sums of the files that say what a base computes.
std::string sum_of_base(const std::vector<FileRecord>& files);

}  // namespace plc
