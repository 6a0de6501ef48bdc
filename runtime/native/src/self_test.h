// Compares what an engine computes with the vectors of a bundle: docs/artifact-format.md, "Self-test".
#pragma once

#include <cstddef>

#include "bundle.h"
#include "engine.h"
#include "result.h"
#include "served_task.h"

namespace plc {

// Runs the vectors of a task, one row after the other, in a slot that is free; so many rows, 0 where
// there are no vectors. An error where logits differ by more than they may. `on_cpu`: whether the
// engine runs on the processor, as the export does.
Result<size_t> run_self_test(const ServedTask& task, Engine& engine, size_t slot, bool on_cpu);

}  // namespace plc
