#include "template.h"

#include <algorithm>
#include <string_view>

#include "problems.h"
#include "unicode.h"
#include "utf8.h"
#include "words.h"

namespace plc {
namespace {

constexpr size_t kMostVirtualTokens = 1000000;
// Digits of a marker's number that are read: no task has as many markers.
constexpr size_t kMostDigits = 9;

constexpr std::string_view kMarker = "<|VIRTUAL_PROMPT_", kMarkerEnd = "|>";

bool is_ascii_digit(char byte) { return byte >= '0' && byte <= '9'; }

bool is_one_of(char byte, std::string_view bytes) { return bytes.find(byte) != std::string_view::npos; }

// The decimal digits 0 of Unicode's scripts (14.0); 1 to 9 follow each.
constexpr uint32_t kZeros[] = {
    0x30,    0x660,   0x6F0,   0x7C0,   0x966,   0x9E6,   0xA66,   0xAE6,   0xB66,   0xBE6,   0xC66,
    0xCE6,   0xD66,   0xDE6,   0xE50,   0xED0,   0xF20,   0x1040,  0x1090,  0x17E0,  0x1810,  0x1946,
    0x19D0,  0x1A80,  0x1A90,  0x1B50,  0x1BB0,  0x1C40,  0x1C50,  0xA620,  0xA8D0,  0xA900,  0xA9D0,
    0xA9F0,  0xAA50,  0xABF0,  0xFF10,  0x104A0, 0x10D30, 0x11066, 0x110F0, 0x11136, 0x111D0, 0x112F0,
    0x11450, 0x114D0, 0x11650, 0x116C0, 0x11730, 0x118E0, 0x11950, 0x11C50, 0x11D50, 0x11DA0, 0x16A60,
    0x16AC0, 0x16B50, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7EC, 0x1D7F6, 0x1E140, 0x1E2F0, 0x1E950, 0x1FBF0};

bool is_digit(uint32_t point) {
  for (const uint32_t zero : kZeros)
    if (point >= zero && point < zero + 10) return true;
  return false;
}

// Code points that are taken from a text's start while they fit. 0 stands for its end.
class Points {
 public:
  explicit Points(std::string_view text) : at_(text.data()), end_(at_ + text.size()) {}

  bool done() const { return at_ == end_; }
  uint32_t peek() const {
    const char* at = at_;
    return done() ? 0 : next_code_point(at);
  }
  void skip() { next_code_point(at_); }
  bool take(std::string_view bytes) {
    const uint32_t point = peek();
    if (done() || point >= 0x80 || !is_one_of(static_cast<char>(point), bytes)) return false;
    skip();
    return true;
  }
  bool take_digits() {
    const char* const start = at_;
    while (!done() && is_digit(peek())) skip();
    return at_ > start;
  }

 private:
  const char* at_;
  const char* end_;
};

// Whether a text is a format of Python's `str.format`, without its alignment.
bool is_format(Points rest) {
  rest.take("-+ ");
  rest.take("#");
  rest.take_digits();
  rest.take("_,");
  if (rest.take(".") && !rest.take_digits()) return false;
  rest.take("bcdeEfFgGnosxX%");
  return rest.done();
}

// Whether a text is a format, one that a name is unlikely to end in.
bool is_unlikely_format(std::string_view text) {
  bool unlikely = false;
  for (Points each(text); !each.done() && each.peek() != '\n'; each.skip()) {
    Points found = each;
    unlikely |= is_digit(each.peek()) || found.take("<>=^.,");
  }
  if (!unlikely) return false;
  if (is_format(Points(text))) return true;
  Points aligned(text);
  if (aligned.take("<>=^") && is_format(aligned)) return true;
  Points filled(text);
  if (filled.done() || filled.peek() == '\n') return false;
  filled.skip();
  return filled.take("<>=^") && is_format(filled);
}

// The name before what Python's `str.format` takes for a conversion or a format; all of a field
// without one.
std::string_view name_of(std::string_view field) {
  const size_t end = field.find_first_of("!:");
  if (end == 0 || end == std::string_view::npos) return field;
  const std::string_view name = field.substr(0, end);
  std::string_view rest = field.substr(end + 1);
  if (field[end] == ':') return is_unlikely_format(rest) ? name : field;
  if (rest.empty() || !is_one_of(rest[0], "rsa")) return field;
  rest.remove_prefix(1);
  if (rest.empty()) return name;
  return rest[0] == ':' && rest.find('\n') == std::string_view::npos ? name : field;
}

std::string listed_numbers(const std::vector<size_t>& numbers) {
  std::string text = "[";
  for (const size_t number : numbers) append({text.size() > 1 ? ", " : "", number}, text);
  return text + "]";
}

class Parser {
 public:
  explicit Parser(const TaskRecord& task) : task_(task) {
    splits_ = task.virtual_token_splits;
    if (splits_.empty()) splits_.push_back(task.total_virtual_tokens);
  }

  Result<Template> parse() {
    split();
    if (task_.answer_only_loss) drop_blanks_at_end();
    for (const Segment& piece : pieces_)
      if (piece.kind == Segment::Kind::kField) fields_.push_back(piece.text);
    ends_in_field_ = !pieces_.empty() && pieces_.back().kind == Segment::Kind::kField;
    if (task_.answer_field && !task_.answer_field->empty()) {
      answer_ = task_.answer_field;
    } else if (ends_in_field_) {
      answer_ = fields_.back();
    }
    check_markers();
    check_fields();
    check_copied();
    if (problems_.none()) return made();
    return Error{ErrorCode::kFormat,
                 joined({"parsing the template of task '", task_.taskname, "': ", problems_.listed(),
                         ". Correct the task, and export it again."})};
  }

 private:
  void problem(Words words) { problems_.add(words); }

  size_t count_of(std::string_view field) const {
    return static_cast<size_t>(std::count(fields_.begin(), fields_.end(), field));
  }

  void end_text() {
    if (!text_.empty()) pieces_.push_back({Segment::Kind::kText, std::move(text_), 0, 0});
    text_.clear();
  }

  // Markers become virtual pieces with their number as `start`, until they are given their rows.
  void split() {
    const std::string_view whole = task_.prompt_template;
    size_t characters = 0, counted = 0;  // that begin before byte `counted`
    const auto number_of = [&](size_t at) {
      for (; counted < at; ++counted) characters += (whole[counted] & 0xC0) != 0x80;
      return characters + 1;
    };
    for (size_t at = 0; at < whole.size();) {
      const std::string_view rest = whole.substr(at);
      if (const size_t bytes = take_marker(rest); bytes > 0) {
        at += bytes;
        continue;
      }
      if (rest[0] != '{' && rest[0] != '}') {
        text_ += rest[0];
        ++at;
        continue;
      }
      if (rest.size() > 1 && rest[1] == rest[0]) {
        text_ += rest[0];
        at += 2;
        continue;
      }
      const size_t brace = rest.find_first_of("{}", 1);
      if (rest[0] == '{' && brace != std::string_view::npos && rest[brace] == '}') {
        add_field(rest.substr(1, brace - 1), number_of(at));
        at += brace + 1;
        continue;
      }
      const std::string_view one = rest.substr(0, 1);
      problem({"a single '", one, "' at character ", number_of(at), ": write '", one, one, "' for a brace"});
      ++at;
    }
    end_text();
  }

  // The bytes of a marker that the text begins with; 0 for none.
  size_t take_marker(std::string_view rest) {
    if (rest.substr(0, kMarker.size()) != kMarker) return 0;
    size_t end = kMarker.size();
    while (end < rest.size() && is_ascii_digit(rest[end])) ++end;
    if (end == kMarker.size() || rest.substr(end, kMarkerEnd.size()) != kMarkerEnd) return 0;
    size_t first = kMarker.size();
    while (first < end && rest[first] == '0') ++first;
    size_t number = 0;  // what is left of a very long one is refused later
    for (size_t k = first; k < std::min(end, first + kMostDigits); ++k)
      number = number * 10 + static_cast<size_t>(rest[k] - '0');
    end_text();
    markers_.push_back(number);
    pieces_.push_back({Segment::Kind::kVirtual, {}, number, 0});
    return end + kMarkerEnd.size();
  }

  void add_field(std::string_view field, size_t character) {
    end_text();
    if (without_space(field).empty()) {
      problem({"an empty field at character ", character, ": name it"});
      return;
    }
    const std::string_view name = name_of(field);
    if (name.size() < field.size())
      problem({"{", shortened(field, 200), "} at character ", character,
               ": a field is a name alone, without a format; write {", shortened(name, 200), "}"});
    pieces_.push_back({Segment::Kind::kField, std::string(name), 0, 0});
  }

  // Blanks after a last field: no text follows that they could move to.
  void drop_blanks_at_end() {
    if (pieces_.size() < 2) return;
    const Segment &last = pieces_.back(), &before = pieces_[pieces_.size() - 2];
    if (last.kind == Segment::Kind::kText && before.kind == Segment::Kind::kField &&
        last.text.find_first_not_of(' ') == std::string::npos)
      pieces_.pop_back();
  }

  void check_markers() {
    const size_t total = task_.total_virtual_tokens;
    if (total < 1 || total > kMostVirtualTokens)
      problem({"total_virtual_tokens is ", total, ", expected 1 to ", kMostVirtualTokens});
    bool in_order = true;
    for (size_t k = 0; k < markers_.size(); ++k) in_order &= markers_[k] == k;
    if (markers_.size() != splits_.size()) {
      problem({"the template has ", markers_.size(), " <|VIRTUAL_PROMPT_n|> markers, but ",
               task_.virtual_token_splits.empty()
                   ? "no virtual_token_splits say how many tokens stand at each"
                   : joined({"virtual_token_splits has ", splits_.size(), " numbers"})});
    } else if (!in_order) {
      problem({"markers are numbered ", shortened(listed_numbers(markers_), 200),
               ", expected 0, 1, 2 … in this order"});
    }
    const std::string shown(shortened(listed_numbers(splits_), 200));
    size_t left = total;
    bool sums = true;
    for (const size_t split : splits_) {
      sums &= split <= left;
      left -= std::min(split, left);
    }
    if (!sums || left != 0)
      problem({"virtual_token_splits ", shown, " do not sum to total_virtual_tokens, ", total});
    if (std::count(splits_.begin(), splits_.end(), size_t{0}) > 0)
      problem({"virtual_token_splits ", shown, ": each must be at least 1"});
  }

  void unknown_field(std::string_view key, std::string_view name) {
    std::vector<std::string_view> seen;
    std::string known;
    for (const std::string& field : fields_) {
      if (known.size() > 500) break;
      if (std::find(seen.begin(), seen.end(), field) != seen.end()) continue;
      append({seen.empty() ? "Known fields: " : ", ", shortened(field, 100)}, known);
      seen.push_back(field);
    }
    problem({key, ": field '", shortened(name, 100), "' does not exist. ",
             known.empty() ? "There is no field yet" : known});
  }

  void check_fields() {
    if (count_of("taskname") > 0) problem({"a field may not be called 'taskname': that key names the task"});
    if (task_.truncate_field && count_of(*task_.truncate_field) == 0)
      unknown_field("truncate_field", *task_.truncate_field);
    if (task_.answer_field && count_of(*task_.answer_field) == 0)
      unknown_field("answer_field", *task_.answer_field);
    if (answer_ && count_of(*answer_) > 1)
      problem({"the answer field '", shortened(*answer_, 100), "' is used ", count_of(*answer_), " times"});
    if (answer_ && answer_ == task_.truncate_field)
      problem({"truncate_field and answer_field are both '", shortened(*answer_, 100), "'"});
    if (task_.answer_only_loss && !(ends_in_field_ && answer_ == fields_.back()))
      problem(
          {"answer_only_loss needs the answer at the end of the template, but it ends in other "
           "text; move the answer or set answer_only_loss: false"});
  }

  void check_copied() {
    if (!task_.copied_from) return;
    const std::string& name = *task_.copied_from;
    const auto place = [this](const std::string& field) {
      return std::find(fields_.begin(), fields_.end(), field);
    };
    if (count_of(name) == 0) {
      unknown_field("answer.span", name);
    } else if (!answer_) {
      problem({"answer.span is '", shortened(name, 100), "', but no field is the answer"});
    } else if (place(name) >= place(*answer_)) {
      problem({"answer.span: '", shortened(name, 100), "' does not stand before the answer, '",
               shortened(*answer_, 100), "': it cannot be copied from there"});
    }
  }

  // Gives marker k the next `splits[k]` rows of the prompt.
  Template made() {
    Template found;
    size_t start = 0;
    for (Segment& piece : pieces_) {
      if (piece.kind == Segment::Kind::kVirtual) {
        piece.count = splits_[piece.start];  // markers are 0, 1, 2 …
        piece.start = start;
        start += piece.count;
      }
      if (piece.kind == Segment::Kind::kField && answer_ == piece.text)
        found.answer_index = found.segments.size();
      found.segments.push_back(std::move(piece));
    }
    if (!answer_) found.answer_index = found.segments.size();
    found.answer_field = answer_;
    const std::vector<bool> is_first = first_uses();
    for (size_t k = 0; k < fields_.size(); ++k)
      if (is_first[k] && answer_ != fields_[k]) found.input_fields.push_back(fields_[k]);
    return found;
  }

  // For each field whether no other of its name stands before. A template may have a million of
  // them: they are sorted.
  std::vector<bool> first_uses() const {
    std::vector<size_t> places(fields_.size());
    for (size_t k = 0; k < places.size(); ++k) places[k] = k;
    std::sort(places.begin(), places.end(), [this](size_t one, size_t other) {
      const int order = fields_[one].compare(fields_[other]);
      return order != 0 ? order < 0 : one < other;
    });
    std::vector<bool> is_first(fields_.size());
    for (size_t k = 0; k < places.size(); ++k)
      is_first[places[k]] = k == 0 || fields_[places[k]] != fields_[places[k - 1]];
    return is_first;
  }

  const TaskRecord& task_;
  std::vector<size_t> splits_{};
  Problems problems_{};
  std::string text_{};
  std::vector<Segment> pieces_{};
  std::vector<size_t> markers_{};
  std::vector<std::string> fields_{};
  std::optional<std::string> answer_{};
  bool ends_in_field_ = false;
};

}  // namespace

Result<Template> parse_template(const TaskRecord& task) { return Parser(task).parse(); }

}  // namespace plc
