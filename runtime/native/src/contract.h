// What a bundle says of its graph and of its numbers: docs/artifact-format.md, "Bundle" and "Graph".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace plc {

enum class PromptsMode { kInput, kBaked };
enum class RowsMode { kPadded, kRagged };
enum class Dtype { kFloat32, kFloat16, kBfloat16 };
enum class Quantization { kNone, kInt8, kInt4 };

struct GraphContract {
  int64_t layers = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t hidden = 0;
  int64_t vocab = 0;
  int64_t capacity = 0;
  PromptsMode prompts = PromptsMode::kInput;
  std::vector<std::string> baked_tasks;
  int64_t candidates = 0;
  std::vector<std::string> sampling_inputs;
  int64_t ranks = 1;
  RowsMode rows = RowsMode::kPadded;
  bool logit_tiles = false;
};

struct Precision {
  Dtype dtype = Dtype::kFloat32;
  Quantization quantization = Quantization::kNone;
  int prefix_bits = 32;
  int cache_bits = 32;
  std::string method;  // empty where nothing is rounded
};

}  // namespace plc
