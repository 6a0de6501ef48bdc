#include "renderer.h"

#include <algorithm>
#include <unordered_map>

#include "unicode.h"
#include "utf8.h"
#include "words.h"

namespace plc {
namespace {

constexpr size_t kNoField = static_cast<size_t>(-1);

// How many trees of answers a task keeps. Blanks at the end of a field need a tree of their own.
constexpr size_t kMostTries = 16;

// Characters of a text that a message shows, in bytes.
constexpr size_t kShown = 60;

// One value of each kind that changes the tokens of what follows a field.
constexpr std::string_view kKindsOfValues[] = {"", " ", "a", "a "};

Error refused(Words message) { return {ErrorCode::kArgument, joined(message)}; }

std::string shown(std::string_view text) {
  if (text.size() <= kShown) return joined({"'", text, "'"});
  size_t end = kShown;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return joined({"'", text.substr(0, end), "…'"});
}

void append_list(const std::vector<int32_t>& numbers, std::string& out) {
  out += '[';
  for (size_t k = 0; k < numbers.size(); ++k) append({k == 0 ? "" : ", ", numbers[k]}, out);
  out += ']';
}

// Without blanks (U+0020) at its end.
std::string_view without_blanks(std::string_view text) {
  return text.substr(0, text.find_last_not_of(' ') + 1);
}

std::string listed(const std::vector<std::string>& texts, std::string_view between) {
  std::string all;
  for (const std::string& each : texts) append({all.empty() ? "" : between, each}, all);
  return all;
}

}  // namespace

std::vector<int64_t> Rendered::input_ids(size_t vocab) const {
  std::vector<int64_t> ids(size());
  for (size_t k = 0; k < ids.size(); ++k)
    ids[k] = virtual_rows[k] < 0 ? token_ids[k] : static_cast<int64_t>(vocab) + virtual_rows[k];
  return ids;
}

Rendered Rendered::without_virtual() const {
  Rendered rest;
  for (size_t k = 0; k < size(); ++k)
    if (virtual_rows[k] < 0) rest.token_ids.push_back(token_ids[k]);
  rest.virtual_rows.assign(rest.size(), -1);
  return rest;
}

Rendered Rendered::after(size_t count) const {
  const auto from = static_cast<std::ptrdiff_t>(std::min(count, size()));
  return {{token_ids.begin() + from, token_ids.end()}, {virtual_rows.begin() + from, virtual_rows.end()}};
}

std::string layout_of(const Rendered& rendered) {
  std::string text = "[";
  append_list(rendered.token_ids, text);
  text += ", ";
  append_list(rendered.virtual_rows, text);
  return text + "]";
}

// A text of the template, tokenised as a part of one whole text.
struct Renderer::Part {
  std::vector<int32_t> ids{};
  bool opens = false;  // whether the text that follows opens a section
};

// The tokens of parts of a field, as answers.
class Renderer::AnswerPieces : public PieceMaker {
 public:
  AnswerPieces(Encoder& encoder, size_t vocab, const State& state)
      : encoder_(encoder), vocab_(vocab), state_(state) {}

  // A span begins and ends with a word, so no rule of white space takes anything off it.
  void pieces(std::string_view text, std::vector<Piece>& found) override {
    State state = state_;
    const std::string body = with_text(text, state);
    const auto before = static_cast<int64_t>(body.size() - text.size());
    ids_.clear();
    places_.clear();
    const EncodeOptions options{AddedTokens::kAsCharacters, state_.opens};
    if (!encoder_.encode(body, options, ids_, &places_).ok()) return;
    for (const int32_t id : ids_)
      if (static_cast<size_t>(id) >= vocab_) return;  // the base has no row for it: no answer
    for (size_t k = 0; k < ids_.size(); ++k)
      found.push_back({ids_[k], places_[k].begin - before, places_[k].end - before});
  }

 private:
  Encoder& encoder_;
  const size_t vocab_;
  const State state_;
  std::vector<int32_t> ids_{};
  std::vector<Place> places_{};
};

Renderer::Renderer(const TaskRecord& task, const Template& parsed, Encoder& encoder, size_t vocab)
    : task_(&task), template_(&parsed), encoder_(&encoder), vocab_(vocab) {
  const TokenizerTables& tables = encoder.tokenizer().tables();
  opens_sections_ = tables.add_prefix_space;
  for (const NormalStep& step : tables.steps)
    if (step.kind == NormalStep::Kind::kOpen ||
        (step.kind == NormalStep::Kind::kPrepend && !step.what.empty()))
      opens_sections_ = true;
  const std::vector<std::string>& names = parsed.input_fields;
  for (const Segment& segment : parsed.segments) {
    const auto found = std::find(names.begin(), names.end(), segment.text);
    const bool is_input = segment.kind == Segment::Kind::kField && found != names.end();
    field_of_.push_back(is_input ? static_cast<size_t>(found - names.begin()) : kNoField);
  }
}

Result<Renderer> Renderer::of(const TaskRecord& task, const Template& parsed, Encoder& encoder,
                              size_t vocab) {
  Renderer renderer(task, parsed, encoder, vocab);
  const Status checked = renderer.check_rows();
  if (!checked.ok())
    return Error{checked.error().code,
                 joined({"reading task '", task.taskname, "': ", checked.error().message})};
  return renderer;
}

// Whether the base has a row for each token of the task's own text. The text is tokenised twice: as
// in a prompt with empty fields, and as in one with text.
Status Renderer::check_rows() {
  const SequenceRules& rules = task_->rules;
  std::vector<int32_t> ids(rules.end_ids);
  if (rules.eos_id) ids.insert(ids.begin(), *rules.eos_id);
  if (rules.bos_id) ids.insert(ids.begin(), *rules.bos_id);
  for (const int32_t id : ids)
    if (Status done = check_row(id, "its BOS, EOS and further ends"); !done.ok()) return done;
  for (const std::string_view value : {"", "a"}) {
    State state = opened().state;
    for (size_t index = 0; index < template_->segments.size(); ++index) {
      if (index == template_->answer_index)
        if (const auto made = choices_at(for_answer(state)); !made.ok()) return made.error();
      if (Status done = after(index, value, state); !done.ok()) return done;
    }
  }
  return {};
}

Status Renderer::check_row(int32_t id, std::string_view doing) const {
  if (id >= 0 && static_cast<size_t>(id) < vocab_) return {};
  const std::string_view bytes = encoder_->tokenizer().bytes(id);
  const std::string name = !bytes.empty() && is_utf8(bytes)
                               ? joined({"the token ", shown(bytes), " with id "})
                               : std::string("the id ");
  return refused({doing, ": ", name, id, ", which the base has no row for; expected ids below ", vocab_,
                  ". Leave it out, or give the base a row for it (resize_token_embeddings in "
                  "transformers) and save it again."});
}

// For text that is not markup, a BOS before it makes no difference.
Renderer::State Renderer::for_answer(State state) {
  state.first = false;
  return state;
}

// What is tokenised at a place of a text that is not markup; the state becomes that after it.
std::string Renderer::with_text(std::string_view text, State& state) {
  std::string whole(state.waiting, ' ');
  whole += text;
  if (state.empty) whole.erase(0, std::min(whole.find_first_not_of(' '), whole.size()));
  const size_t body = without_blanks(whole).size();
  state.waiting = whole.size() - body;
  whole.resize(body);
  if (body != 0) state.opens = state.empty = state.first = false;
  return whole;
}

bool Renderer::is_virtual(size_t index) const {
  return index < template_->segments.size() && template_->segments[index].kind == Segment::Kind::kVirtual;
}

// The text of a segment with the white space that the task keeps.
std::string_view Renderer::laid_out(std::string_view text, size_t index) const {
  if (task_->whitespace != WhiteSpace::kNemo) return text;
  if (index > 0 && is_virtual(index - 1)) text = without_space_at_start(text);
  if (is_virtual(index + 1)) text = without_space_at_end(text);
  return text;
}

// A sequence that holds nothing but its BOS, if it has one.
Renderer::Sequence Renderer::opened() const {
  Sequence sequence;
  if (const auto bos = task_->rules.bos_id) {
    sequence.made = {{*bos}, {-1}};
    sequence.state.first = false;
  }
  return sequence;
}

// `tokenizers` takes white space off a field before a token with `lstrip`, and off what follows one
// with `rstrip`. There are none: tables are refused such tokens when they are written.
Status Renderer::append(size_t index, const Values& values, Sequence& sequence) {
  const Segment& segment = template_->segments[index];
  if (segment.kind == Segment::Kind::kVirtual) return add_virtual(segment, sequence);
  const bool is_text = segment.kind == Segment::Kind::kText;
  const std::string_view text = is_text ? segment.text : values[field_of_[index]];
  return add_text(laid_out(text, index), is_text, sequence);
}

Status Renderer::add_virtual(const Segment& segment, Sequence& sequence) {
  State& state = sequence.state;
  Rendered& made = sequence.made;
  if (state.waiting != 0 && task_->whitespace != WhiteSpace::kNemo) {
    // Blanks cannot move across virtual tokens.
    const std::string blanks(state.waiting, ' ');
    if (Status done = encode(blanks, state.opens, false, made.token_ids); !done.ok()) return done;
    made.virtual_rows.resize(made.token_ids.size(), -1);
    state.first = false;
  }
  made.token_ids.resize(made.size() + segment.count, 0);
  for (size_t row = 0; row < segment.count; ++row)
    made.virtual_rows.push_back(static_cast<int32_t>(segment.start + row));
  state.waiting = 0;
  state.empty = false;
  return {};
}

Status Renderer::add_text(std::string_view text, bool markup, Sequence& sequence) {
  const State here = sequence.state;
  Rendered& made = sequence.made;
  const std::string body = with_text(text, sequence.state);
  if (body.empty()) return {};
  if (markup && task_->whitespace == WhiteSpace::kTransformers) {
    const auto piece = encode_as_one(body, here.opens, here.first);
    if (!piece.ok()) return piece.error();
    const std::vector<int32_t>& ids = piece.value().ids;
    made.token_ids.insert(made.token_ids.end(), ids.begin(), ids.end());
    sequence.state.opens = piece.value().opens;
  } else if (Status done = encode(body, here.opens, markup, made.token_ids); !done.ok()) {
    return done;
  }
  made.virtual_rows.resize(made.token_ids.size(), -1);
  return {};
}

// Appends the ids of a text: of the template (markup) or of data.
Status Renderer::encode(std::string_view text, bool opens, bool markup, std::vector<int32_t>& ids,
                        std::vector<Place>* places) {
  const size_t before = ids.size();
  const EncodeOptions options{markup ? AddedTokens::kAll : AddedTokens::kAsCharacters, opens};
  if (Status done = encoder_->encode(text, options, ids, places); !done.ok()) return done;
  const auto largest = std::max_element(ids.begin() + static_cast<std::ptrdiff_t>(before), ids.end());
  if (largest == ids.end()) return {};
  return check_row(*largest, joined({"tokenising ", shown(text)}));
}

bool Renderer::is_added(int32_t id) const {
  const TokenKind kind = encoder_->tokenizer().tables().kind_of(static_cast<uint32_t>(id));
  return kind == TokenKind::kSpecial || kind == TokenKind::kAdded;
}

size_t Renderer::first_added(const std::vector<int32_t>& ids) const {
  const auto found = std::find_if(ids.begin(), ids.end(), [this](int32_t id) { return is_added(id); });
  return static_cast<size_t>(found - ids.begin());
}

// docs/artifact-format.md, "Joined". No added token is `normalized` beside a Prepend, and none
// has `rstrip`: tables are refused them.
Result<Renderer::Part> Renderer::encode_as_one(std::string_view text, bool opens, bool first) {
  Part made;
  if (Status done = encode(text, opens, true, made.ids); !done.ok()) return done.error();
  const std::vector<int32_t>& front = encoder_->tokenizer().tables().front;
  if (first && !front.empty() && made.ids.size() >= front.size() &&
      std::equal(front.begin(), front.end(), made.ids.begin())) {
    // What the tokenizer itself puts before a text is no part of it: the rest opens.
    std::vector<int32_t> ids;
    std::vector<Place> places;
    if (Status done = encode(text, opens, true, ids, &places); !done.ok()) return done.error();
    const std::string_view rest = text.substr(places[front.size() - 1].end);
    if (rest.empty()) return Part{front, true};
    auto later = encode_as_one(rest, true, false);
    if (later.ok()) {
      std::vector<int32_t>& all = later.value().ids;
      all.insert(all.begin(), front.begin(), front.end());
    }
    return later;
  }
  if (!opens && opens_sections_) {
    // The first section goes on; each after an added token has a blank put before it.
    std::vector<int32_t> opened;
    if (Status done = encode(text, true, true, opened); !done.ok()) return done.error();
    made.ids.resize(first_added(made.ids));
    made.ids.insert(made.ids.end(), opened.begin() + static_cast<std::ptrdiff_t>(first_added(opened)),
                    opened.end());
  }
  made.opens = !made.ids.empty() && is_added(made.ids.back()) && opens_sections_;
  return made;
}

// The state becomes that after a segment; `value` fills it, if it is a field.
Status Renderer::after(size_t index, std::string_view value, State& state) {
  if (template_->segments[index].kind == Segment::Kind::kField) {
    with_text(laid_out(value, index), state);
    return {};
  }
  Sequence sequence;
  sequence.state = state;
  Status done = append(index, {}, sequence);
  if (done.ok()) state = sequence.state;
  return done;
}

Result<Renderer::State> Renderer::state_of_answer(const Values& values) {
  State state = opened().state;
  for (size_t index = 0; index < template_->answer_index; ++index) {
    const size_t field = field_of_[index];
    const std::string_view value = field == kNoField ? std::string_view() : values[field];
    if (const Status done = after(index, value, state); !done.ok()) return done.error();
  }
  return for_answer(state);
}

Result<Renderer::Values> Renderer::values_of(const Fields& fields) const {
  const std::vector<std::string>& wanted = template_->input_fields;
  Values values(wanted.size());
  std::vector<bool> given(wanted.size());
  std::vector<std::string> problems, unknown;
  for (const FieldGiven& field : fields) {
    const auto found = std::find(wanted.begin(), wanted.end(), field.name);
    if (found == wanted.end()) {
      unknown.push_back(template_->answer_field == field.name
                            ? joined({"field '", field.name, "' is what the model writes: leave it out"})
                            : joined({"field '", field.name, "' is not in the template"}));
      continue;
    }
    const auto place = static_cast<size_t>(found - wanted.begin());
    auto text = field.value.text();
    if (given[place]) problems.push_back(joined({"field '", field.name, "' is given twice"}));
    else if (!text.ok()) problems.push_back(joined({"field '", field.name, "' is ", text.error().message}));
    else values[place] = std::move(text.value());
    given[place] = true;
  }
  for (size_t place = 0; place < wanted.size(); ++place)
    if (!given[place]) problems.push_back(joined({"field '", wanted[place], "' is missing"}));
  problems.insert(problems.end(), unknown.begin(), unknown.end());
  if (problems.empty()) return values;
  return refused({"rendering task '", task_->taskname, "': ", listed(problems, "; "),
                  ". Its fields: ", wanted.empty() ? std::string("none") : listed(wanted, ", "), "."});
}

Result<Renderer::Sequence> Renderer::rendered(const Values& values) {
  Sequence sequence = opened();
  for (size_t index = 0; index < template_->answer_index; ++index)
    if (const Status done = append(index, values, sequence); !done.ok()) return done.error();
  return sequence;
}

// Calls `make` with the values, and cuts the truncate field until what it made fits. `make` gives
// its length in tokens; `counted` says what that counts besides the prompt.
template <typename Make>
Status Renderer::fitted(Values& values, std::optional<size_t> most, std::string_view counted, Make make) {
  const std::vector<std::string>& names = template_->input_fields;
  const auto found =
      task_->truncate_field ? std::find(names.begin(), names.end(), *task_->truncate_field) : names.end();
  // Each cut takes one token more than needed, since the text that is left may be tokenised a little
  // differently. In the rare case that it still does not fit, it is cut again.
  for (;;) {
    const Result<size_t> length = make();
    if (!length.ok()) return length.error();
    if (!most || length.value() <= *most) return {};
    const bool can_cut = found != names.end();
    std::string* const text = can_cut ? &values[static_cast<size_t>(found - names.begin())] : nullptr;
    const size_t before = can_cut ? text->size() : 0;
    if (before != 0)
      if (Status done = cut(*text, length.value() - *most + 1); !done.ok()) return done;
    if (before == 0 || text->size() == before)
      return refused(
          {"rendering task '", task_->taskname, "': ", length.value(), " tokens", counted,
           can_cut ? joined({", its field '", *found, "' used up"}) : std::string(", no truncate_field"),
           "; expected at most ", *most,
           ". Shorten the example, or name a longer truncate_field in the task."});
  }
}

// Takes so many tokens off the end of a text; the whole characters that the others cover are left.
Status Renderer::cut(std::string& text, size_t tokens) {
  std::vector<int32_t> ids;
  std::vector<Place> places;
  const EncodeOptions options{AddedTokens::kAsCharacters, false};
  if (Status done = encoder_->encode(text, options, ids, &places); !done.ok()) return done;
  // The first token may begin later than the text, where a normalizer replaces what it begins with.
  if (!places.empty()) text.resize(places[places.size() - std::min(tokens, places.size())].begin);
  return {};
}

Result<Rendered> Renderer::prompt(const Fields& fields, std::optional<size_t> max_length) {
  auto values = values_of(fields);
  if (!values.ok()) return values.error();
  Rendered made;
  const Status done = fitted(values.value(), max_length, "", [&]() -> Result<size_t> {
    auto sequence = rendered(values.value());
    if (!sequence.ok()) return sequence.error();
    made = std::move(sequence.value().made);
    return made.size();
  });
  if (!done.ok()) return done.error();
  return made;
}

Result<PromptAndChoices> Renderer::prompt_and_choices(const Fields& fields, size_t max_length) {
  auto values = values_of(fields);
  if (!values.ok()) return values.error();
  PromptAndChoices made;
  const Status done = fitted(values.value(), max_length, " with the longest choice", [&]() -> Result<size_t> {
    auto sequence = rendered(values.value());
    if (!sequence.ok()) return sequence.error();
    // A cut field may end in other blanks, and then the choices have other tokens.
    auto choices = trie_at(for_answer(sequence.value().state));
    if (!choices.ok()) return choices.error();
    made = {std::move(sequence.value().made), std::move(choices.value())};
    return made.prompt.size() + made.choices->longest();
  });
  if (!done.ok()) return done.error();
  return made;
}

Result<PromptAndSpans> Renderer::prompt_and_spans(const Fields& fields, std::optional<size_t> max_length) {
  const std::vector<std::string>& names = template_->input_fields;
  const auto copied =
      task_->copied_from ? std::find(names.begin(), names.end(), *task_->copied_from) : names.end();
  if (copied == names.end())
    return refused({"rendering task '", task_->taskname,
                    "': its answers are not copied from a field; expected a task with 'answer: span'."});
  if (!encoder_->tokenizer().has_places())
    return refused({"rendering task '", task_->taskname,
                    "': its answers are copied, and the base's tokenizer leaves out characters that it has "
                    "no token for; expected a token for each byte. Serve this task with the Python "
                    "runtime."});
  auto values = values_of(fields);
  if (!values.ok()) return values.error();
  Sequence made;
  const Status done = fitted(values.value(), max_length, "", [&]() -> Result<size_t> {
    auto sequence = rendered(values.value());
    if (!sequence.ok()) return sequence.error();
    made = std::move(sequence.value());
    return made.made.size();
  });
  if (!done.ok()) return done.error();
  auto pieces = std::make_unique<AnswerPieces>(*encoder_, vocab_, for_answer(made.state));
  std::string& text = values.value()[static_cast<size_t>(copied - names.begin())];
  return PromptAndSpans{std::move(made.made), std::make_unique<SpanWalk>(std::move(text), std::move(pieces))};
}

Result<Rendered> Renderer::opening() {
  Sequence sequence = opened();
  for (size_t index = 0; index < template_->answer_index; ++index) {
    if (template_->segments[index].kind == Segment::Kind::kField) break;
    if (const Status done = append(index, {}, sequence); !done.ok()) return done.error();
  }
  return std::move(sequence.made);
}

Result<std::shared_ptr<const LabelTrie>> Renderer::label_trie(const Fields& fields) {
  const auto values = values_of(fields);
  if (!values.ok()) return values.error();
  const auto state = state_of_answer(values.value());
  if (!state.ok()) return state.error();
  return trie_at(state.value());
}

Result<std::shared_ptr<const LabelTrie>> Renderer::label_trie() {
  const auto state = state_of_answer(Values(template_->input_fields.size()));
  if (!state.ok()) return state.error();
  return trie_at(state.value());
}

Result<std::shared_ptr<const LabelTrie>> Renderer::trie_at(const State& state) {
  for (const auto& [place, trie] : tries_)
    if (place == state) return trie;
  const auto ids = choices_at(state);
  if (!ids.ok()) return ids.error();
  if (tries_.size() == kMostTries) tries_.erase(tries_.begin());
  auto made = std::make_shared<const LabelTrie>(LabelTrie::of(task_->choices, ids.value(), is_fixed()));
  tries_.emplace_back(state, made);
  return std::shared_ptr<const LabelTrie>(made);
}

// The ids of the task's choices, EOS included. Two choices with equal ids are refused.
Result<std::vector<std::vector<int32_t>>> Renderer::choices_at(const State& state) {
  std::vector<std::vector<int32_t>> found;
  std::unordered_map<std::string, size_t> seen;  // by their ids, as bytes
  for (const std::string& choice : task_->choices) {
    Sequence sequence;
    sequence.state = state;
    if (const Status done = add_text(laid_out(choice, template_->answer_index), false, sequence); !done.ok())
      return done.error();
    std::vector<int32_t>& ids = sequence.made.token_ids;
    if (task_->rules.eos_id) ids.push_back(*task_->rules.eos_id);
    std::string key;
    if (!ids.empty()) key.assign(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof ids[0]);
    const auto [other, is_new] = seen.emplace(std::move(key), found.size());
    if (!is_new && task_->choices[other->second] != choice)
      return refused({"tokenising its choices: ", shown(task_->choices[other->second]), " and ",
                      shown(choice),
                      " are the same tokens; expected choices that have different tokens in the "
                      "base's tokenizer. The tokenizer may ignore capitals, or lack a character: "
                      "change a choice."});
    found.push_back(std::move(ids));
  }
  return found;
}

// Whether the answer stands in the same state after every prompt.
bool Renderer::is_fixed() {
  if (fixed_) return *fixed_;
  std::vector<State> states = {opened().state};
  for (size_t index = 0; index < template_->answer_index; ++index) {
    const bool is_field = template_->segments[index].kind == Segment::Kind::kField;
    std::vector<State> later;
    for (const State& before : states) {
      for (const std::string_view value : kKindsOfValues) {
        State state = before;
        // An error: such a prompt is refused, and nothing follows it.
        if (after(index, value, state).ok() && std::find(later.begin(), later.end(), state) == later.end())
          later.push_back(state);
        if (!is_field) break;
      }
    }
    states.swap(later);
  }
  for (State& state : states) state = for_answer(state);
  const auto differs = [&states](const State& state) { return !(state == states[0]); };
  fixed_ = !states.empty() && std::none_of(states.begin(), states.end(), differs);
  return *fixed_;
}

}  // namespace plc
