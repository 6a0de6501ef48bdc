// A task of a bundle, ready to be served: how it is rendered, and what the engine is given for it.
// (runtime/served_task.py is the same in Python.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle.h"
#include "engine.h"
#include "label_trie.h"
#include "renderer.h"
#include "result.h"
#include "tokenizer.h"

namespace plc {

// For one thread at a time. Rows hold it, so it lives as long as one of them after it was removed.
struct ServedTask {
  std::shared_ptr<const Bundle> bundle;  // that holds `record` and `parsed`
  std::shared_ptr<Encoder> encoder;      // that the renderer uses
  const TaskRecord& record;
  const Template& parsed;
  Renderer renderer;
  EnginePrompt prompt;                       // its owner is the bundle
  std::shared_ptr<const LabelTrie> choices;  // null where answers are open
  std::vector<int32_t> ends;                 // the tokens that end an answer

  const std::string& name() const { return record.taskname; }

  // The tree of answers to a prompt with these fields.
  Result<std::shared_ptr<const LabelTrie>> choices_after(const Fields& fields);
};

// How many tokens of a rendered prompt the prefix of its task holds: those after them are fed. At
// least the last token is fed, since a step without tokens has no logits. The exception is a last
// token that is virtual and of a learned prefix: it has no row to be given.
size_t held_by_prefix(const Rendered& rendered, const EnginePrompt& prompt);

// All tasks of a bundle, each with its folded prefix where it has one. An error where a task cannot
// be rendered, where a prefix was computed from something that this bundle does not hold, or where
// labels are not those of the task. `encoder`: of the bundle's tokenizer.
Result<std::vector<std::shared_ptr<ServedTask>>> serve_tasks(const std::shared_ptr<const Bundle>& bundle,
                                                             const std::shared_ptr<Encoder>& encoder);

}  // namespace plc
