#include "served_task.h"

#include <algorithm>

#include "problems.h"
#include "sha256.h"

namespace plc {
namespace {

Result<std::shared_ptr<ServedTask>> serve(const std::shared_ptr<const Bundle>& bundle, const BundleTask& task,
                                          const std::shared_ptr<Encoder>& encoder) {
  const TaskRecord& record = task.record;
  const auto vocab = static_cast<size_t>(bundle->manifest().graph.vocab);
  auto renderer = Renderer::of(record, task.parsed, *encoder, vocab);
  const auto unreadable = [&](const Error& error) {
    return Error{ErrorCode::kFormat, joined({"reading task '", record.taskname, "' of the bundle ",
                                             bundle->folder(), ": ", error.message})};
  };
  if (!renderer.ok()) return unreadable(renderer.error());
  const std::shared_ptr<ServedTask> made(
      new ServedTask{bundle, encoder, record, task.parsed, std::move(renderer.value()), {}, nullptr, {}});
  if (record.rules.eos_id) made->ends.push_back(*record.rules.eos_id);
  made->ends.insert(made->ends.end(), record.rules.end_ids.begin(), record.rules.end_ids.end());

  if (!record.choices.empty()) {
    auto choices = made->renderer.label_trie();
    if (!choices.ok()) return unreadable(choices.error());
    made->choices = std::move(choices.value());
  }
  const bool has_choices = made->choices != nullptr;
  // Served as it is, a path with a wrong text would become the answer.
  if (task.labels.has_value() != has_choices || (has_choices && !(*task.labels == *made->choices)))
    return Error{ErrorCode::kFormat,
                 joined({"reading ", bundle->path_of("tasks/" + record.taskname + "/labels.json"),
                         ": another tree of labels than template, choices and tokenizer give. Export "
                         "the bundle again."})};

  const auto opening = made->renderer.opening();
  if (!opening.ok()) return unreadable(opening.error());
  const std::string layout = sha256_of(layout_of(opening.value()));
  auto prompt = bundle->prompt(task, layout, opening.value().size());
  if (!prompt.ok()) return prompt.error();
  made->prompt = std::move(prompt.value());
  made->prompt.owner = bundle;
  return made;
}

}  // namespace

Result<std::shared_ptr<const LabelTrie>> ServedTask::choices_after(const Fields& fields) {
  if (choices == nullptr || choices->fixed()) return choices;
  return renderer.label_trie(fields);
}

size_t held_by_prefix(const Rendered& rendered, const EnginePrompt& prompt) {
  if (rendered.size() == 0) return 0;
  size_t most = rendered.size() - 1;
  if (prompt.virtual_rows == 0) {
    const std::vector<int32_t>& rows = rendered.virtual_rows;
    const auto count = std::count_if(rows.begin(), rows.end(), [](int32_t row) { return row >= 0; });
    most = std::max(most, static_cast<size_t>(count));
  }
  return std::min(prompt.prefix == nullptr ? 0 : prompt.prefix_length, most);
}

Result<std::vector<std::shared_ptr<ServedTask>>> serve_tasks(const std::shared_ptr<const Bundle>& bundle,
                                                             const std::shared_ptr<Encoder>& encoder) {
  std::vector<std::shared_ptr<ServedTask>> tasks;
  for (const BundleTask& task : bundle->tasks()) {
    auto served = serve(bundle, task, encoder);
    if (!served.ok()) return served.error();
    tasks.push_back(std::move(served.value()));
  }
  return tasks;
}

}  // namespace plc
