#include "words.h"

namespace plc {

void Word::append_to(std::string& out) const {
  if (!is_number_) {
    out.append(text_);
    return;
  }
  if (is_below_0_) out += '-';
  out.append(std::to_string(is_below_0_ ? 0 - number_ : number_));
}

void append(Words words, std::string& out) {
  for (const Word& word : words) word.append_to(out);
}

}  // namespace plc
