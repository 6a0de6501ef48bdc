// JSON as bundles have it: I-JSON (RFC 7493), docs/artifact-format.md, "Conventions".
// (pl_compile/config/strict_json.py reads the same.)
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "result.h"
#include "words.h"

namespace plc {

// No file of JSON is larger.
constexpr size_t kMostJsonBytes = size_t{16} << 20;

// A value. At most one of these functions gives something.
class Json {
 public:
  using List = std::vector<Json>;
  using Object = std::vector<std::pair<std::string, Json>>;  // no key twice; in the file's order

  Json() = default;
  template <typename Held>
  explicit Json(Held held) : held_(std::move(held)) {}

  bool is_null() const { return std::holds_alternative<std::monostate>(held_); }
  const bool* truth() const { return std::get_if<bool>(&held_); }
  // Between -2^63 and 2^63, both excluded, without fraction and exponent.
  const int64_t* whole() const { return std::get_if<int64_t>(&held_); }
  // Any other number.
  const double* number() const { return std::get_if<double>(&held_); }
  const std::string* text() const { return std::get_if<std::string>(&held_); }
  const List* list() const { return std::get_if<List>(&held_); }
  const Object* object() const { return std::get_if<Object>(&held_); }

  // The value of a key; null where this is no object or has no such key. It looks at each key.
  const Json* find(std::string_view key) const;

  // "text", "a list of 3", …: what it is, for messages.
  std::string kind() const;

 private:
  std::variant<std::monostate, bool, int64_t, double, std::string, List, Object> held_;
};

// The value of a text. An error says what is wrong, and at which line and column; `doing` begins
// its message.
Result<Json> parse_json(std::string_view text, const std::string& doing);

// The same of a file's bytes: a byte order mark is skipped, and they may be too many.
Result<Json> parse_json_file(std::string_view bytes, const std::string& doing);

// Appends a text as "JSON text for sums" writes it: only ASCII is left.
void append_json_text(std::string_view text, std::string& out);

// Reads the keys of an object one after another, and keeps the first problem. What is asked for
// after a problem is 0 or empty.
class JsonRecord {
 public:
  // `doing` begins an error's message, and `name` says where the object stands: "manifest.json",
  // or "manifest.json: graph". Both and the value outlive the record.
  JsonRecord(const Json& value, const std::string& doing, std::string name);

  // Of a key that must be there.
  int64_t whole(std::string_view key, int64_t least, int64_t most);
  std::string text(std::string_view key);
  std::vector<std::string> texts(std::string_view key);
  std::vector<int64_t> wholes(std::string_view key, int64_t least, int64_t most);
  bool truth(std::string_view key);
  // A JsonRecord can read it; null where there is a problem.
  const Json* object(std::string_view key);
  // The place among `names` of the text that is there.
  size_t choice(std::string_view key, std::initializer_list<std::string_view> names);

  // Whether a key is there; one that may be missing is asked for first.
  bool has(std::string_view key) const { return value_.find(key) != nullptr; }
  // The same, but null counts as missing.
  bool has_value(std::string_view key);

  // Notes a problem, unless there is one already.
  void problem(Words found, Words expected);
  void problem(const Error& error);
  bool ok() const { return !error_.has_value(); }

  // What went wrong; also an error where keys are there that nobody asked for.
  Status finish();

  const std::string& name() const { return name_; }

 private:
  const Json* asked(std::string_view key);
  void mismatch(std::string_view key, const Json& found, Words expected);

  const Json& value_;
  const std::string& doing_;
  std::string name_;
  std::vector<std::string_view> asked_{};
  std::optional<Error> error_{};
};

}  // namespace plc
