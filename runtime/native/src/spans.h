// Answers that are copied from a field: which tokens may come next. (docs/artifact-format.md,
// "Copied answers"; pl_compile/text/spans.py explains how they are found, and does the same.)
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace plc {

// A word of a text: the bytes from `begin` to before `end`.
struct WordOfText {
  size_t begin, end;
};

// The words of a text in valid UTF-8, in order. They do not overlap; white space is in none.
std::vector<WordOfText> words_of(std::string_view text);

// A token of an answer, and the bytes that it writes. What lies before the answer is below 0.
struct Piece {
  int32_t id;
  int64_t begin, end;
};

// Tokenises parts of a text as answers.
class PieceMaker {
 public:
  virtual ~PieceMaker() = default;
  // The tokens of a text, with places in it; none where the base cannot be given it.
  virtual void pieces(std::string_view text, std::vector<Piece>& found) = 0;
};

// One answer that is being written: a span of a text. It is the stream of its own text: that of the
// field, whatever the tokens decode to.
class SpanWalk {
 public:
  // The text of the field, as it was rendered: valid UTF-8.
  SpanWalk(std::string text, std::unique_ptr<PieceMaker> maker);

  // The tokens that continue a span, in ascending order; none at the end of the text.
  std::vector<int32_t> allowed() const;

  // Whether the answer so far is a span: it may end here.
  bool is_span() const;

  // How many places of the text the answer may begin at.
  size_t places() const;

  // The next tokens of the longest span that begins at the first place; at most `count`.
  std::vector<int32_t> ahead(size_t count);

  // Goes on with one of the allowed tokens; appends the text that became certain.
  void push(int32_t id, std::string& text);

  // Appends the text that was not handed out yet, if a token were the last one.
  void peek(int32_t id, std::string& text) const;

  // Appends the text that would follow if no more tokens came.
  void pending(std::string& text) const;

  // Appends the rest: of equal answers, the first of the text is given.
  void finish(std::string& text);

 private:
  // Tokens of an answer that begins at one place.
  struct Path {
    size_t start = 0;
    std::vector<int32_t> ids{};
    std::vector<size_t> known{};   // for each count of tokens, from 0, up to where the text is whole
    std::vector<uint32_t> ends{};  // counts of tokens after which the answer is a span; ascending
    size_t words = 0;              // of how many words all shorter spans are known; 0: more would add nothing
    size_t sure = 0;               // the place where those words end

    bool ends_after(size_t count) const;
    bool reaches(size_t count) const;
    bool goes_on_with(size_t count, int32_t id) const { return count < ids.size() && ids[count] == id; }
    friend bool operator==(const Path& a, const Path& b) {
      return a.start == b.start && a.words == b.words && a.sure == b.sure && a.ids == b.ids &&
             a.known == b.known && a.ends == b.ends;
    }
  };

  Path path_of(size_t start, size_t stop, const std::vector<size_t>& ends, size_t words, size_t sure);
  void add_paths(size_t start, size_t count, std::vector<Path>& found);
  void look_ahead(size_t count);
  std::string_view up_to(const Path& path, size_t count) const;
  void append_rest(std::string_view all, std::string& text) const;

  std::string text_;
  std::unique_ptr<PieceMaker> maker_;
  std::vector<WordOfText> words_;
  std::vector<Path> live_{};
  std::vector<int32_t> ids_{};
  std::vector<Piece> pieces_{};
  size_t given_ = 0;  // bytes that were handed out
};

}  // namespace plc
