// Bytes as hexadecimal digits: in the lines that these programs are given, and in what they say.
#pragma once

#include <string>

inline std::string from_hex(const std::string& text) {
  std::string bytes;
  for (size_t k = 0; k + 1 < text.size(); k += 2)
    bytes += static_cast<char>(std::stoi(text.substr(k, 2), nullptr, 16));
  return bytes;
}

inline std::string to_hex(const std::string& bytes) {
  std::string text;
  for (const char byte : bytes) {
    const unsigned bits = static_cast<unsigned char>(byte);
    text += "0123456789abcdef"[bits >> 4];
    text += "0123456789abcdef"[bits & 15];
  }
  return text;
}
