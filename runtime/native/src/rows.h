// A request under way, as a row: its prompt, cut to fit, and its answer, token by token.
// (runtime/rows.py is the same in Python.)
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "answer_text.h"
#include "blocking.h"
#include "engine.h"
#include "label_trie.h"
#include "random.h"
#include "requests.h"
#include "served_task.h"
#include "spans.h"
#include "tokenizer.h"

namespace plc {

// What an engine gives for a row after the tokens that it was fed; valid until the next step.
class Output {
 public:
  Output(const float* after, size_t outputs, size_t vocab, int64_t token)
      : after_(after), outputs_(outputs), vocab_(vocab), token_(token) {}

  size_t outputs() const { return outputs_; }
  size_t vocab() const { return vocab_; }
  int64_t token() const { return token_; }  // that the graph chose; -1 where it chose none

  // After one of the tokens that were asked for; after the last one.
  const float* after(size_t place) const { return after_ + place * vocab_; }
  const float* logits() const { return after(outputs_ - 1); }
  // Only what follows one of the tokens that were asked for.
  Output only(size_t place, int64_t token) const { return {after(place), 1, vocab_, token}; }

  // The token of the largest of `logits`, or of one that is no number. Found once.
  size_t largest();
  // Whether all logits are numbers; if not, any token could seem the likeliest. Those that were not
  // computed do not matter.
  bool is_finite();

 private:
  const float* after_;
  size_t outputs_, vocab_;
  int64_t token_;
  std::optional<size_t> largest_{};
};

// What a row is fed next; as in `Feed`.
struct RowFeed {
  std::vector<int64_t> ids{}, wanted{}, parents{};
  std::optional<size_t> after{};  // entries that it keeps before this, of those that it holds; all if absent
};

// What a row begins with.
struct RowParts {
  Request request;
  std::shared_ptr<ServedTask> task;
  EnginePrompt prompt;             // that of the task, or without its prefix
  std::vector<int64_t> input_ids;  // the part of the prompt that is fed
  size_t held = 0;                 // cache entries before them, from the task's prefix
  size_t prompt_tokens = 0, cut_tokens = 0;
  size_t limit = 0;                       // most tokens of the answer
  size_t room = 0;                        // entries that the cache has after the prompt
  bool branches = false;                  // as in `Engine`
  std::shared_ptr<const LabelTrie> trie;  // the closed set of answers; null where it is open
  std::vector<TokenBias> bias;
  std::vector<int32_t> seen;  // real tokens of the prompt
  std::shared_ptr<const Tokenizer> tokenizer;
  std::optional<Ngrams> ngrams;  // sequences that must not be repeated
  std::optional<BadWords> bad_words;
  std::unique_ptr<SpanWalk> spans;  // the parts of a field of which the answer is one
};

// Writes an answer that is open, or one of a closed set.
class Row {
 public:
  explicit Row(RowParts parts);
  virtual ~Row() = default;
  Row(const Row&) = delete;
  Row& operator=(const Row&) = delete;

  const RowParts& parts() const { return parts_; }

  // Whether there is more to write.
  virtual bool is_live() const { return !finished_ && !error; }
  // How many tokens of prompt and answer were not fed.
  virtual size_t left() const { return parts_.input_ids.size() + token_ids_.size() - fed_; }
  // Notes that the cache holds the first tokens of `input_ids`: they are not fed.
  void begin_with(size_t count) { shared_ = fed_ = count; }
  // The next `count` tokens, at most `left`: of the prompt as long as there are some, then of the
  // answer.
  virtual RowFeed take(size_t count);
  // Says in a feed whose logits `advance` looks at, after what was taken; none within a prompt.
  virtual void look(Feed& feed) const;
  // What the graph needs to choose the next token; none where it is chosen here. It draws the noise,
  // so it is called once for each token.
  virtual std::optional<GraphDraw> draw(size_t candidates, const std::vector<std::string>& inputs);
  // Whether the row can go on by what it is given: all that it needs is finite.
  virtual bool has_numbers(Output& output) const { return output.is_finite(); }
  // Takes the graph's token, or chooses one from the logits: the text that became certain, with the
  // answer once it is finished.
  virtual Event advance(Output& output) { return choose(output); }
  // Ends the answer as it is, whether it was begun or not, with the text that was held.
  virtual Event time_out();

  std::optional<Error> error{};  // why there is no answer

 protected:
  // Takes the next token.
  virtual Event choose(Output& output);
  // The only tokens that may come next; none where any may.
  virtual std::optional<std::vector<int32_t>> allowed() const;

  // Ends the answer where no token may follow.
  Event stop();
  // Notes a token of the answer, and what text becomes certain by it.
  Event write(int32_t token);
  // Whether the answer has no bad word with a token; one that ends it is no text.
  bool fits(int32_t token) const;
  bool ends(int32_t token) const;

  RowParts parts_;
  Random random_;
  std::vector<int32_t> token_ids_{};
  size_t fed_ = 0;  // tokens of prompt and answer

 private:
  std::optional<int32_t> next(Output& output);
  void take_token(int32_t token);
  Event write_choice(int32_t token);
  Event event(std::string piece, std::string_view text);

  std::optional<TrieWalk> choices_{};
  size_t chosen_ = 0;  // bytes of a choice that are certain
  AnswerText text_;
  bool is_plain_;  // whether the largest logit is the next token, if it may come
  std::optional<FinishReason> finished_{};
  size_t shared_ = 0;
  std::vector<std::vector<LogProb>> log_probs_{};
};

}  // namespace plc
