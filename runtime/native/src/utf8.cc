#include "utf8.h"

#include <cstring>

namespace plc {
namespace {

// Table 3-7 of the Unicode standard: by its first byte, how long a character is, and between which
// bounds its second byte lies.
struct Shape {
  size_t bytes;  // 0: no character begins so
  unsigned low, high;
};

Shape shape_of(unsigned first) {
  if (first < 0x80) return {1, 0, 0};
  if (first < 0xC2 || first > 0xF4) return {0, 0, 0};
  if (first < 0xE0) return {2, 0x80, 0xBF};
  if (first < 0xF0) return {3, first == 0xE0 ? 0xA0u : 0x80u, first == 0xED ? 0x9Fu : 0xBFu};
  return {4, first == 0xF0 ? 0x90u : 0x80u, first == 0xF4 ? 0x8Fu : 0xBFu};
}

char byte_of(uint32_t bits) { return static_cast<char>(static_cast<unsigned char>(bits)); }

}  // namespace

Utf8Step utf8_step(std::string_view text) {
  Shape shape = shape_of(static_cast<unsigned char>(text[0]));
  if (shape.bytes == 0) return {1, false, false};
  for (size_t k = 1; k < shape.bytes; ++k) {
    if (k == text.size()) return {k, false, true};
    const unsigned byte = static_cast<unsigned char>(text[k]);
    if (byte < shape.low || byte > shape.high) return {k, false, false};
    shape.low = 0x80;
    shape.high = 0xBF;
  }
  return {shape.bytes, true, false};
}

size_t utf8_valid_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    uint64_t eight;
    if (at + sizeof eight <= text.size()) {
      std::memcpy(&eight, text.data() + at, sizeof eight);
      if ((eight & 0x8080808080808080u) == 0) {
        at += sizeof eight;
        continue;
      }
    }
    const Utf8Step step = utf8_step(text.substr(at));
    if (!step.valid) return at;
    at += step.bytes;
  }
  return at;
}

void append_replaced(std::string_view text, std::string& out) {
  while (!text.empty()) {
    const size_t valid = utf8_valid_prefix(text);
    out.append(text.substr(0, valid));
    text.remove_prefix(valid);
    if (text.empty()) return;
    out.append(kReplacement);
    text.remove_prefix(utf8_step(text).bytes);
  }
}

void append_code_point(uint32_t point, std::string& out) {
  if (point < 0x80) {
    out += byte_of(point);
    return;
  }
  if (point < 0x800) {
    out += byte_of(0xC0 | point >> 6);
  } else {
    if (point < 0x10000) {
      out += byte_of(0xE0 | point >> 12);
    } else {
      out += byte_of(0xF0 | point >> 18);
      out += byte_of(0x80 | (point >> 12 & 63));
    }
    out += byte_of(0x80 | (point >> 6 & 63));
  }
  out += byte_of(0x80 | (point & 63));
}

std::string_view shortened(std::string_view text, size_t most) {
  if (text.size() <= most) return text;
  while (most > 0 && (text[most] & 0xC0) == 0x80) --most;
  return text.substr(0, most);
}

}  // namespace plc
