// A request's fields as the tokens of a prompt: docs/artifact-format.md, "Rendering a request".
// (pl_compile/text/render.py is the same.)
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "field_value.h"
#include "label_trie.h"
#include "result.h"
#include "spans.h"
#include "task_record.h"
#include "tokenizer.h"

namespace plc {

// A sequence of real and virtual tokens.
struct Rendered {
  std::vector<int32_t> token_ids;     // 0 where the token is virtual
  std::vector<int32_t> virtual_rows;  // the row of the task's prompt, -1 where the token is real

  size_t size() const { return token_ids.size(); }

  // What a graph takes: row `r` of the prompt is `vocab + r`.
  std::vector<int64_t> input_ids(size_t vocab) const;

  // The same without its virtual tokens, for the base alone.
  Rendered without_virtual() const;

  // The same without its first `count` tokens.
  Rendered after(size_t count) const;
};

// As JSON: what the identity of a folded prefix is made of (docs/artifact-format.md, "A folded
// prefix").
std::string layout_of(const Rendered& rendered);

struct PromptAndChoices {
  Rendered prompt;
  std::shared_ptr<const LabelTrie> choices;
};

struct PromptAndSpans {
  Rendered prompt;
  std::unique_ptr<SpanWalk> spans;
};

// Renders the requests of one task. For one thread at a time.
class Renderer {
 public:
  // `vocab` is the base's number of rows. What is referred to must outlive the renderer and the
  // spans that it makes; the encoder may serve many. An error where the base has no row for a token
  // that the task always has, or where two choices are the same tokens.
  static Result<Renderer> of(const TaskRecord& task, const Template& parsed, Encoder& encoder, size_t vocab);

  // What the model is given to continue: all that stands before the answer. `max_length` is the
  // longest allowed, in tokens; the truncate field is cut to fit.
  Result<Rendered> prompt(const Fields& fields, std::optional<size_t> max_length = {});

  // A prompt of a task with choices that leaves room for each of them, and their tree. The longest
  // choice is a part of `max_length`.
  Result<PromptAndChoices> prompt_and_choices(const Fields& fields, size_t max_length);

  // A prompt of a task whose answers are copied, and the answers that can be: parts of the field as
  // it stands in the prompt, which may have been cut.
  Result<PromptAndSpans> prompt_and_spans(const Fields& fields, std::optional<size_t> max_length = {});

  // What every prompt of the task begins with: all that stands before the first field.
  Result<Rendered> opening();

  // The task's choices after a prompt. The tree depends on the fields only where it is not `fixed`.
  Result<std::shared_ptr<const LabelTrie>> label_trie(const Fields& fields);

  // The tree for empty fields, which labels.json holds.
  Result<std::shared_ptr<const LabelTrie>> label_trie();

 private:
  // The values of the template's input fields, in their order.
  using Values = std::vector<std::string>;

  // A place in a sequence. The tokens of a text depend on the text and on this, nothing else.
  struct State {
    size_t waiting = 0;  // blanks that wait for the text that follows
    bool opens = true;   // whether no text stands before, or none since an added token
    bool empty = true;   // whether nothing but BOS stands before
    bool first = true;   // whether no real token stands before

    friend bool operator==(const State& a, const State& b) {
      return a.waiting == b.waiting && a.opens == b.opens && a.empty == b.empty && a.first == b.first;
    }
  };

  // A sequence under construction.
  struct Sequence {
    Rendered made{};
    State state{};
  };

  class AnswerPieces;
  struct Part;

  Renderer(const TaskRecord& task, const Template& parsed, Encoder& encoder, size_t vocab);

  static std::string with_text(std::string_view text, State& state);
  static State for_answer(State state);
  Result<Values> values_of(const Fields& fields) const;
  std::string_view laid_out(std::string_view text, size_t index) const;
  bool is_virtual(size_t index) const;
  Sequence opened() const;
  Status append(size_t index, const Values& values, Sequence& sequence);
  Status add_virtual(const Segment& segment, Sequence& sequence);
  Status add_text(std::string_view text, bool markup, Sequence& sequence);
  Status encode(std::string_view text, bool opens, bool markup, std::vector<int32_t>& ids,
                std::vector<Place>* places = nullptr);
  Status check_row(int32_t id, std::string_view doing) const;
  Result<Part> encode_as_one(std::string_view text, bool opens, bool first);
  bool is_added(int32_t id) const;
  size_t first_added(const std::vector<int32_t>& ids) const;
  Status after(size_t index, std::string_view value, State& state);
  Result<State> state_of_answer(const Values& values);
  Status check_rows();
  Result<Sequence> rendered(const Values& values);
  Result<std::vector<std::vector<int32_t>>> choices_at(const State& state);
  Result<std::shared_ptr<const LabelTrie>> trie_at(const State& state);
  bool is_fixed();
  template <typename Make>
  Status fitted(Values& values, std::optional<size_t> most, std::string_view counted, Make make);
  Status cut(std::string& text, size_t tokens);

  const TaskRecord* task_;
  const Template* template_;
  Encoder* encoder_;
  size_t vocab_;
  bool opens_sections_ = false;     // whether the tokenizer puts a blank before each section
  std::vector<size_t> field_of_{};  // of each segment: its place among the input fields
  std::optional<bool> fixed_{};
  std::vector<std::pair<State, std::shared_ptr<const LabelTrie>>> tries_{};
};

}  // namespace plc
