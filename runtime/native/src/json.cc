#include "json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "problems.h"
#include "utf8.h"

namespace plc {
namespace {

// Deeper than any file of ours, and shallow enough for the stack of any thread.
constexpr int kMostDepth = 256;

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool is_digit(char byte) { return byte >= '0' && byte <= '9'; }

int hex_digit(char byte) {
  if (is_digit(byte)) return byte - '0';
  if (byte >= 'a' && byte <= 'f') return byte - 'a' + 10;
  return byte >= 'A' && byte <= 'F' ? byte - 'A' + 10 : -1;
}

class Parser {
 public:
  Parser(std::string_view text, const std::string& doing)
      : begin_(text.data()), at_(begin_), end_(begin_ + text.size()), doing_(doing) {}

  Result<Json> parse() {
    Json value;
    blanks();
    if (read_value(value, 0)) {
      blanks();
      if (at_ == end_) return value;
      wrong("more after the value", at_);
    }
    return place(found_, wrong_at_);
  }

 private:
  // Remembers the first problem, and where it is.
  bool wrong(const char* found, const char* at) {
    if (wrong_at_ == nullptr) {
      found_ = found;
      wrong_at_ = at;
    }
    return false;
  }

  Error place(const std::string& found, const char* at) const {
    size_t line = 1;
    const char* start = begin_;
    for (const char* each = begin_; each < at; ++each)
      if (*each == '\n') {
        ++line;
        start = each + 1;
      }
    size_t column = 1;  // in characters: bytes that go on with one are not counted
    for (const char* each = start; each < at; ++each) column += (*each & 0xC0) != 0x80;
    return wrong_file(doing_, {found, " at line ", line, ", column ", column}, {"JSON"});
  }

  void blanks() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
  }

  // Whether the byte comes next; then it is taken.
  bool take(char byte) {
    if (at_ == end_ || *at_ != byte) return false;
    ++at_;
    return true;
  }

  bool read_word(std::string_view word, Json made, Json& value) {
    if (std::string_view(at_, static_cast<size_t>(end_ - at_)).substr(0, word.size()) != word)
      return wrong("no value", at_);
    at_ += word.size();
    value = std::move(made);
    return true;
  }

  bool read_value(Json& value, int depth) {
    if (depth > kMostDepth) return wrong("values nested too deep", at_);
    if (at_ == end_) return wrong("its end, where a value should be", at_);
    switch (*at_) {
      case '{':
        return read_object(value, depth);
      case '[':
        return read_list(value, depth);
      case '"': {
        std::string text;
        if (!read_text(text)) return false;
        value = Json(std::move(text));
        return true;
      }
      case 't':
        return read_word("true", Json(true), value);
      case 'f':
        return read_word("false", Json(false), value);
      case 'n':
        return read_word("null", Json(), value);
      default:
        return read_number(value);
    }
  }

  bool read_list(Json& value, int depth) {
    Json::List items;
    ++at_;
    blanks();
    if (!take(']')) {
      do {
        blanks();
        items.emplace_back();
        if (!read_value(items.back(), depth + 1)) return false;
        blanks();
      } while (take(','));
      if (!take(']')) return wrong("no comma and no ]", at_);
    }
    value = Json(std::move(items));
    return true;
  }

  bool read_object(Json& value, int depth) {
    const char* const start = at_;
    Json::Object members;
    ++at_;
    blanks();
    if (!take('}')) {
      do {
        blanks();
        std::string key;
        if (at_ == end_ || *at_ != '"') return wrong("no key in quotes", at_);
        if (!read_text(key)) return false;
        blanks();
        if (!take(':')) return wrong("no colon after a key", at_);
        blanks();
        members.emplace_back().first = std::move(key);
        if (!read_value(members.back().second, depth + 1)) return false;
        blanks();
      } while (take(','));
      if (!take('}')) return wrong("no comma and no }", at_);
    }
    if (!keys_differ(members, start)) return false;
    value = Json(std::move(members));
    return true;
  }

  // Sorted keys are compared with their neighbours: a file may have a million of them.
  bool keys_differ(const Json::Object& members, const char* start) {
    std::vector<std::string_view> keys;
    keys.reserve(members.size());
    for (const auto& member : members) keys.push_back(member.first);
    std::sort(keys.begin(), keys.end());
    const auto twice = std::adjacent_find(keys.begin(), keys.end());
    if (twice == keys.end()) return true;
    return wrong(joined({"the key '", shortened(*twice, 80), "' twice in the object"}), start);
  }

  bool read_text(std::string& text) {
    const char* const start = at_++;
    for (;;) {
      const char* const run = at_;
      while (at_ < end_ && *at_ != '"' && *at_ != '\\' && static_cast<unsigned char>(*at_) >= 0x20) ++at_;
      text.append(run, at_);
      if (at_ == end_) return wrong("a text without an end", start);
      if (take('"')) return true;
      if (*at_ != '\\') return wrong("a control character in a text", at_);
      if (!read_escape(text)) return false;
    }
  }

  bool read_escape(std::string& text) {
    const char* const start = at_++;
    constexpr std::string_view letters = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
    if (at_ == end_) return wrong("a text without an end", start);
    const size_t place = letters.find(*at_);
    if (place != std::string_view::npos) {
      text += meant[place];
      ++at_;
      return true;
    }
    uint32_t point, low;
    if (!read_unit(point)) return wrong("a wrong escape in a text", start);
    if (point >= 0xD800 && point < 0xDC00) {
      if (!take('\\') || !read_unit(low) || low < 0xDC00 || low >= 0xE000)
        return wrong("half of a surrogate pair, which is not text", start);
      point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
    }
    if (!is_scalar(point)) return wrong("half of a surrogate pair, which is not text", start);
    append_code_point(point, text);
    return true;
  }

  // The u and four digits of an escape.
  bool read_unit(uint32_t& unit) {
    if (!take('u') || end_ - at_ < 4) return false;
    unit = 0;
    for (int k = 0; k < 4; ++k) {
      const int digit = hex_digit(*at_++);
      if (digit < 0) return false;
      unit = unit << 4 | static_cast<uint32_t>(digit);
    }
    return true;
  }

  bool digits() {
    const char* const start = at_;
    while (at_ < end_ && is_digit(*at_)) ++at_;
    return at_ > start;
  }

  bool read_number(Json& value) {
    const char* const start = at_;
    take('-');
    const char* const whole_part = at_;
    if (!digits()) return wrong("no value", start);
    if (*whole_part == '0' && at_ - whole_part > 1) return wrong("a number that begins with 0", start);
    bool is_whole = true;
    if (take('.')) {
      is_whole = false;
      if (!digits()) return wrong("no digit after a point", at_);
    }
    if (take('e') || take('E')) {
      is_whole = false;
      if (!take('+')) take('-');
      if (!digits()) return wrong("no digit in an exponent", at_);
    }
    if (is_whole) {
      int64_t number;
      const auto read = std::from_chars(start, at_, number);
      if (read.ec == std::errc() && number != std::numeric_limits<int64_t>::min()) {
        value = Json(number);
        return true;
      }
    }
    double number;
    if (!read_double(start, number)) return wrong("a number beyond the range of a double", start);
    value = Json(number);
    return true;
  }

  // The double that the number from `start` to here is nearest to; false where it is beyond them.
  bool read_double(const char* start, double& number) const {
    // The standard library reads numbers near 0 and those beyond the range as the same error.
    const auto read = std::from_chars(start, at_, number);
    if (read.ec == std::errc()) return std::isfinite(number);
    number = *start == '-' ? -0.0 : 0.0;
    return !is_above_1(start);
  }

  // Whether a number is above 1 in size; only for those that are far from it.
  bool is_above_1(const char* start) const {
    int64_t before = 0;  // digits between the first one that is not 0 and the point, or less than 0
    bool point = false, begun = false;
    const char* each = start;
    for (; each < at_ && *each != 'e' && *each != 'E'; ++each) {
      if (*each == '.') point = true;
      if (!is_digit(*each)) continue;
      if (*each != '0') begun = true;
      if (!point && begun) ++before;
      if (point && !begun) --before;
    }
    if (!begun || each == at_) return begun && before > 0;
    if (*++each == '+') ++each;
    int64_t exponent = 0;
    if (std::from_chars(each, at_, exponent).ec != std::errc()) return *each != '-';
    return exponent > -before;
  }

  const char* const begin_;
  const char* at_;
  const char* const end_;
  const std::string& doing_;
  std::string found_{};
  const char* wrong_at_ = nullptr;

  bool wrong(const std::string& found, const char* at) { return wrong(found.c_str(), at); }
};

}  // namespace

const Json* Json::find(std::string_view key) const {
  if (const Object* const members = object())
    for (const auto& [name, value] : *members)
      if (name == key) return &value;
  return nullptr;
}

std::string Json::kind() const {
  if (const bool* const value = truth()) return *value ? "true" : "false";
  if (const int64_t* const value = whole()) return std::to_string(*value);
  if (number() != nullptr) return "a number with a fraction, or a very large one";
  if (const std::string* const value = text()) return joined({"'", shortened(*value, 200), "'"});
  if (const List* const value = list()) return joined({"a list of ", value->size()});
  return object() != nullptr ? "an object" : "null";
}

Result<Json> parse_json(std::string_view text, const std::string& doing) {
  const size_t valid = utf8_valid_prefix(text);
  if (valid < text.size()) {
    const auto line = std::count(text.begin(), text.begin() + static_cast<ptrdiff_t>(valid), '\n');
    return wrong_file(doing, {"a byte at line ", line + 1, " that is not UTF-8"}, {"JSON in UTF-8"});
  }
  return Parser(text, doing).parse();
}

Result<Json> parse_json_file(std::string_view bytes, const std::string& doing) {
  if (bytes.size() > kMostJsonBytes)
    return wrong_file(doing, {bytes.size(), " bytes"}, {"at most 16 MiB, as each such file has"});
  if (bytes.substr(0, 23) == "version https://git-lfs")
    return wrong_file(doing, {"a pointer of Git LFS, not the file"}, {"JSON"},
                      "Run `git lfs pull` in the clone, or download the file itself.");
  if (bytes.substr(0, kByteOrderMark.size()) == kByteOrderMark) bytes.remove_prefix(kByteOrderMark.size());
  return parse_json(bytes, doing);
}

void append_json_text(std::string_view text, std::string& out) {
  constexpr std::string_view named = "\"\\\n\r\t\b\f", letters = "\"\\nrtbf";
  const auto append_unit = [&out](uint32_t unit) {
    out += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) out += "0123456789abcdef"[unit >> shift & 15];
  };
  out += '"';
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    const uint32_t point = next_code_point(at);
    const size_t place = point < 0x80 ? named.find(static_cast<char>(point)) : std::string_view::npos;
    if (place != std::string_view::npos) {
      out += '\\';
      out += letters[place];
    } else if (point >= 0x20 && point < 0x7F) {
      out += static_cast<char>(point);
    } else if (point < 0x10000) {
      append_unit(point);
    } else {
      append_unit(0xD800 + ((point - 0x10000) >> 10));
      append_unit(0xDC00 + ((point - 0x10000) & 0x3FF));
    }
  }
  out += '"';
}

JsonRecord::JsonRecord(const Json& value, const std::string& doing, std::string name)
    : value_(value), doing_(doing), name_(std::move(name)) {
  if (value_.object() == nullptr) problem({value_.kind()}, {"an object"});
}

const Json* JsonRecord::asked(std::string_view key) {
  asked_.push_back(key);
  const Json* const found = value_.find(key);
  if (found == nullptr) problem({"'", key, "' is missing"}, {"it"});
  return ok() ? found : nullptr;
}

void JsonRecord::problem(Words found, Words expected) {
  if (!ok()) return;
  error_ = wrong_file(joined({doing_, ": damaged ", name_}), found, expected);
}

void JsonRecord::problem(const Error& error) {
  if (ok()) error_ = error;
}

void JsonRecord::mismatch(std::string_view key, const Json& found, Words expected) {
  problem({"'", key, "' is ", found.kind()}, expected);
}

bool JsonRecord::has_value(std::string_view key) {
  const Json* const found = value_.find(key);
  if (found == nullptr) return false;
  if (!found->is_null()) return true;
  asked_.push_back(key);
  return false;
}

int64_t JsonRecord::whole(std::string_view key, int64_t least, int64_t most) {
  const Json* const found = asked(key);
  if (found == nullptr) return 0;
  const int64_t* const number = found->whole();
  if (number != nullptr && *number >= least && *number <= most) return *number;
  mismatch(key, *found, {"a whole number from ", least, " to ", most});
  return 0;
}

std::string JsonRecord::text(std::string_view key) {
  const Json* const found = asked(key);
  if (found == nullptr) return {};
  if (const std::string* const text = found->text()) return *text;
  mismatch(key, *found, {"text"});
  return {};
}

std::vector<std::string> JsonRecord::texts(std::string_view key) {
  std::vector<std::string> texts;
  const Json* const found = asked(key);
  if (found == nullptr) return texts;
  const Json::List* const items = found->list();
  if (items == nullptr) mismatch(key, *found, {"a list of texts"});
  for (size_t k = 0; items != nullptr && k < items->size(); ++k) {
    const std::string* const text = (*items)[k].text();
    if (text == nullptr) {
      problem({"'", key, "' has at place ", k, " ", (*items)[k].kind()}, {"text"});
      return {};
    }
    texts.push_back(*text);
  }
  return texts;
}

std::vector<int64_t> JsonRecord::wholes(std::string_view key, int64_t least, int64_t most) {
  std::vector<int64_t> numbers;
  const Json* const found = asked(key);
  if (found == nullptr) return numbers;
  const Json::List* const items = found->list();
  if (items == nullptr) mismatch(key, *found, {"a list of whole numbers"});
  for (size_t k = 0; items != nullptr && k < items->size(); ++k) {
    const int64_t* const number = (*items)[k].whole();
    if (number == nullptr || *number < least || *number > most) {
      problem({"'", key, "' has at place ", k, " ", (*items)[k].kind()},
              {"a whole number from ", least, " to ", most});
      return {};
    }
    numbers.push_back(*number);
  }
  return numbers;
}

bool JsonRecord::truth(std::string_view key) {
  const Json* const found = asked(key);
  if (found == nullptr) return false;
  if (const bool* const value = found->truth()) return *value;
  mismatch(key, *found, {"true or false"});
  return false;
}

const Json* JsonRecord::object(std::string_view key) {
  const Json* const found = asked(key);
  if (found == nullptr || found->object() != nullptr) return found;
  mismatch(key, *found, {"an object"});
  return nullptr;
}

size_t JsonRecord::choice(std::string_view key, std::initializer_list<std::string_view> names) {
  const Json* const found = asked(key);
  if (found == nullptr) return 0;
  const std::string* const text = found->text();
  const auto place = std::find(names.begin(), names.end(), text == nullptr ? "" : *text);
  if (text != nullptr && place != names.end()) return static_cast<size_t>(place - names.begin());
  std::string listed;
  for (const std::string_view name : names) append({listed.empty() ? "" : ", ", name}, listed);
  mismatch(key, *found, {"one of ", listed});
  return 0;
}

Status JsonRecord::finish() {
  if (ok())
    for (const auto& [key, unused] : *value_.object())
      if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) {
        problem({"unknown key '", shortened(key, 200), "'"},
                {"no other keys than those of this version of the format"});
        break;
      }
  if (ok()) return {};
  return *error_;
}

}  // namespace plc
