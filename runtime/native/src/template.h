// Parses the template of a task: docs/artifact-format.md, "Templates".
// (pl_compile/text/template.py does the same.)
#pragma once

#include "result.h"
#include "task_record.h"

namespace plc {

// An error has all that is wrong with the template and with the numbers beside it.
Result<Template> parse_template(const TaskRecord& task);

}  // namespace plc
