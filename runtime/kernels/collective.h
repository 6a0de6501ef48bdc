// Sums over ranks: the operator DistCollective of the domain plc.dist.
#pragma once

#include <vector>

#include "onnxruntime_abi.h"

namespace plc {

// The operator, for each provider that has it.
std::vector<const ort::CustomOp*> collective_ops();

}  // namespace plc
