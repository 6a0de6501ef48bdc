// Requests as rows: each is checked, its prompt is rendered and cut to fit.
// (runtime/row_maker.py is the same in Python.)
#pragma once

#include <memory>

#include "engine.h"
#include "requests.h"
#include "result.h"
#include "rows.h"
#include "served_task.h"
#include "step_costs.h"

namespace plc {

// A request, which `Request::check` has let pass, as a row of its task. `costs`: of steps, where open
// answers draft; they outlive the row. Null: nothing is looked up.
Result<std::unique_ptr<Row>> make_row(const Request& request, const std::shared_ptr<ServedTask>& task,
                                      const std::shared_ptr<const Tokenizer>& tokenizer, const Engine& engine,
                                      const StepCosts* costs);

}  // namespace plc
