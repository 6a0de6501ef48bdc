#include "log_probs.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "field_value.h"
#include "text_stream.h"
#include "unicode.h"
#include "utf8.h"
#include "words.h"

namespace plc {
namespace {

// Two at once: compilers make one instruction of each operation.
typedef double Two __attribute__((vector_size(16)));
typedef uint64_t TwoBits __attribute__((vector_size(16)));

constexpr size_t kLeaf = 128;

// 1 / k! for k from 2 to 13.
constexpr double k2 = 1.0 / 2, k3 = 1.0 / 6, k4 = 1.0 / 24, k5 = 1.0 / 120, k6 = 1.0 / 720;
constexpr double k7 = 1.0 / 5040, k8 = 1.0 / 40320, k9 = 1.0 / 362880, k10 = 1.0 / 3628800;
constexpr double k11 = 1.0 / 39916800, k12 = 1.0 / 479001600, k13 = 1.0 / 6227020800;

// e to some numbers of at most 0, an even count of them; what is below -708 counts as that, which is
// next to nothing.
// e^x is 2^n · e^r, where n is the nearest whole number to x / ln 2, so r is at most ln 2 / 2 in size.
void exponentials(double* numbers, size_t count) {
  // Adding this leaves the nearest whole number in the lowest bits.
  constexpr double kRound = 0x1.8p52, kPerLn2 = 0x1.71547652b82fep+0;
  constexpr double kLn2High = 0x1.62e42fee00000p-1, kLn2Low = 0x1.a39ef35793c76p-33;
  for (size_t at = 0; at < count; at += 2) {
    Two x;
    std::memcpy(&x, numbers + at, sizeof x);
    const Two least = {-708, -708};
    x = x > least ? x : least;
    const Two shifted = x * kPerLn2 + kRound;
    const Two whole = shifted - kRound;
    const Two r = x - whole * kLn2High - whole * kLn2Low;
    const Two r2 = r * r, r4 = r2 * r2;
    const Two low = (r + 1) + r2 * (r * k3 + k2);
    const Two middle = (r * k5 + k4) + r2 * (r * k7 + k6);
    const Two high = (r * k9 + k8) + r2 * (r * k11 + k10) + r4 * (r * k13 + k12);
    const Two power = low + r4 * (middle + r4 * high);
    const TwoBits found = (TwoBits)power + ((TwoBits)shifted << 52);
    std::memcpy(numbers + at, &found, sizeof found);
  }
}

// In the order of `pairwise_sum`, without memory for all numbers.
double sum_of_exponentials(const float* logits, size_t count, double most) {
  if (count > kLeaf) {
    size_t half = count / 2;
    half -= half % 8;
    return sum_of_exponentials(logits, half, most) + sum_of_exponentials(logits + half, count - half, most);
  }
  double numbers[kLeaf] = {};
  for (size_t k = 0; k < count; ++k) numbers[k] = logits[k] - most;
  exponentials(numbers, count + count % 2);
  return pairwise_sum(numbers, count);
}

// How GPT-2's vocabulary writes a byte: printable ones as themselves, the others from U+0100 on.
uint32_t sign_of_byte(unsigned byte) {
  const auto is_printable = [](unsigned each) {
    return (each >= 0x21 && each < 0x7F) || (each >= 0xA1 && each != 0xAD);
  };
  if (is_printable(byte)) return byte;
  uint32_t sign = 0x100;
  for (unsigned each = 0; each < byte; ++each) sign += is_printable(each) ? 0 : 1;
  return sign;
}

// A token's text without outer white space; for one that has none, such as EOS, its name.
std::string text_for_bias(const std::shared_ptr<const Tokenizer>& tokenizer, int32_t token) {
  const std::string text = decode(tokenizer, {token}, true);
  const std::string_view plain = without_space(text);
  return plain.empty() ? token_name(*tokenizer, token) : std::string(plain);
}

}  // namespace

double log_total(const float* logits, size_t vocab) {
  const double most = logits[argmax(logits, vocab)];
  return most + std::log(sum_of_exponentials(logits, vocab, most));
}

std::string token_name(const Tokenizer& tokenizer, int32_t token) {
  if (!tokenizer.has(token)) return "None";
  const TokenizerTables& tables = tokenizer.tables();
  for (const AddedToken& added : tables.added)
    if (added.id == static_cast<uint32_t>(token)) return std::string(added.text);
  const std::string_view bytes = tokenizer.bytes(token);
  std::string name;
  if (tables.kind_of(static_cast<uint32_t>(token)) == TokenKind::kByte) {
    const unsigned byte = static_cast<unsigned char>(bytes[0]);
    name = "<0x";
    name += "0123456789ABCDEF"[byte >> 4];
    name += "0123456789ABCDEF"[byte & 15];
    return name + ">";
  }
  if (!tables.byte_level) return std::string(bytes);
  for (const char byte : bytes) append_code_point(sign_of_byte(static_cast<unsigned char>(byte)), name);
  return name;
}

Result<std::vector<TokenBias>> bias_by_token(const std::vector<std::pair<std::string, double>>& bias,
                                             const std::vector<int32_t>* tokens,
                                             const std::shared_ptr<const Tokenizer>& tokenizer,
                                             const std::string& doing) {
  std::vector<TokenBias> found;
  if (bias.empty()) return found;
  if (tokens == nullptr)
    return Error{ErrorCode::kArgument,
                 joined({doing, ": logit_bias {'", bias[0].first, "': ", written(bias[0].second),
                         "}, and an open answer; expected a task with choices, and an answer constrained to "
                         "them."})};
  std::vector<int32_t> ids = *tokens;
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  std::vector<std::string> texts;
  texts.reserve(ids.size());
  for (const int32_t id : ids) texts.push_back(text_for_bias(tokenizer, id));
  for (const auto& [text, number] : bias) {
    const size_t before = found.size();
    for (size_t k = 0; k < ids.size(); ++k)
      if (texts[k] == text) found.push_back({ids[k], static_cast<float>(number)});
    if (found.size() > before) continue;
    std::string message =
        joined({doing, ": logit_bias: token '", text, "' does not exist in the choices. Known tokens: "});
    constexpr size_t kShown = 50;
    std::vector<std::string> known;
    for (const std::string& each : texts)
      if (std::find(known.begin(), known.end(), each) == known.end()) known.push_back(each);
    for (size_t k = 0; k < std::min(known.size(), kShown); ++k)
      append({k == 0 ? "" : ", ", known[k]}, message);
    if (known.size() > kShown) append({" and ", known.size() - kShown, " more"}, message);
    return Error{ErrorCode::kArgument, message + "."};
  }
  return found;
}

}  // namespace plc
