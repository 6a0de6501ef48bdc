// How long the native runtime's tokenizer takes. benchmarks/tokenizer_speed.py builds and asks it.
//
//   tokenizer_speed TABLES TEXTS
//
// TEXTS holds one text after the other, each with its size before it (u32). For each line of standard
// input, all are encoded as data, on one thread; the answer is the processor's time in seconds, and how
// many ids there are.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <iostream>
#include <string>
#include <string_view>
#include <vector>

#include "mapped_file.h"
#include "tokenizer.h"

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "tokenizer_speed TABLES TEXTS\n");
    return 2;
  }
  const auto opened = plc::Tokenizer::open(arguments[1]);
  const auto file = plc::MappedFile::open(arguments[2]);
  if (!opened.ok() || !file.ok()) {
    std::fprintf(stderr, "%s\n", (opened.ok() ? file.error() : opened.error()).message.c_str());
    return 1;
  }
  std::vector<std::string_view> texts;
  for (std::string_view rest = file.value().bytes(); rest.size() >= sizeof(uint32_t);) {
    uint32_t size;
    std::memcpy(&size, rest.data(), sizeof size);
    texts.push_back(rest.substr(sizeof size, size));
    rest.remove_prefix(sizeof size + texts.back().size());
  }
  plc::Encoder encoder(opened.value());
  std::vector<int32_t> ids;
  for (std::string line; std::getline(std::cin, line);) {
    size_t total = 0;
    const std::clock_t begin = std::clock();
    for (const std::string_view text : texts) {
      ids.clear();
      if (!encoder.encode(text, {}, ids).ok()) return 1;
      total += ids.size();
    }
    const double seconds = static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
    std::printf("%.6f %zu\n", seconds, total);
    std::fflush(stdout);
  }
  return 0;
}
