// DistCollective of the domain plc.dist: y is the sum of x over all ranks, each of which is a process that
// runs its own graph.
//
//   DistCollective(x) -> y        attributes collective_operation "all_reduce", reduce_op "sum", nb_rank
#pragma once

#include <string>
#include <vector>

#include "custom_op.h"

namespace plc::kernels {

// What an operator of `ranks` processes asks of its graph.
inline void check_sum(const ort::KernelInfo* info, size_t ranks) {
  expect(text_attribute(info, "collective_operation") == "all_reduce", "only all_reduce is known");
  expect(text_attribute(info, "reduce_op") == "sum", "only sums are known");
  expect(ranks, "this process is no rank of a group");
  expect(attribute(info, "nb_rank") == ranks, "the graph is for another number of ranks");
}

// The operator for the CPU's provider, and for CUDA's.
std::vector<const ort::CustomOp*> group_ops();
std::vector<const ort::CustomOp*> nccl_ops();

}  // namespace plc::kernels
