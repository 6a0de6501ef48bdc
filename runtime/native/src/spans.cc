#include "spans.h"

#include <algorithm>
#include <utility>

#include "unicode.h"
#include "utf8.h"

namespace plc {
namespace {

// As in Python: words that are tokenised from each place at first, tokens that are known ahead of
// an answer, and words that are added up to white space.
constexpr size_t kWords = 3, kAhead = 4, kTouching = 64;

// What both texts begin with, in whole characters.
std::string_view common_start(std::string_view a, std::string_view b) {
  size_t alike = 0;
  while (alike < a.size() && alike < b.size() && a[alike] == b[alike]) ++alike;
  const auto cuts = [alike](std::string_view text) {
    return alike < text.size() && (static_cast<unsigned char>(text[alike]) & 0xC0) == 0x80;
  };
  if (cuts(a) || cuts(b))
    while (alike > 0 && (static_cast<unsigned char>(a[--alike]) & 0xC0) == 0x80) continue;
  return a.substr(0, alike);
}

bool holds(const std::vector<size_t>& sorted, size_t value) {
  return std::binary_search(sorted.begin(), sorted.end(), value);
}

}  // namespace

std::vector<WordOfText> words_of(std::string_view text) {
  std::vector<WordOfText> words;
  bool joins = false;  // whether a letter would continue the last word
  for (const char* at = text.data(); at < text.data() + text.size();) {
    const auto begin = static_cast<size_t>(at - text.data());
    const CharacterKind kind = kind_of(next_code_point(at));
    const auto end = static_cast<size_t>(at - text.data());
    if (kind == CharacterKind::kWideWhiteSpace) {
      joins = false;
      continue;
    }
    const bool is_letter = kind == CharacterKind::kLetter;
    const bool touches = !words.empty() && words.back().end == begin;
    if (touches && (kind == CharacterKind::kMark || (joins && is_letter))) {
      words.back().end = end;
    } else {
      words.push_back({begin, end});
      joins = is_letter;
    }
  }
  return words;
}

bool SpanWalk::Path::ends_after(size_t count) const {
  return std::binary_search(ends.begin(), ends.end(), static_cast<uint32_t>(count));
}

bool SpanWalk::Path::reaches(size_t count) const {
  return words == 0 || (count < known.size() && known[count] <= sure);
}

SpanWalk::SpanWalk(std::string text, std::unique_ptr<PieceMaker> maker)
    : text_(std::move(text)), maker_(std::move(maker)), words_(words_of(text_)) {
  for (const WordOfText& word : words_) add_paths(word.begin, kWords, live_);
  const auto is_empty = [](const Path& path) { return path.ids.empty(); };
  live_.erase(std::remove_if(live_.begin(), live_.end(), is_empty), live_.end());
}

std::vector<int32_t> SpanWalk::allowed() const {
  std::vector<int32_t> ids;
  for (const Path& path : live_)
    if (ids_.size() < path.ids.size()) ids.push_back(path.ids[ids_.size()]);
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

bool SpanWalk::is_span() const {
  return std::any_of(live_.begin(), live_.end(),
                     [this](const Path& path) { return path.ends_after(ids_.size()); });
}

size_t SpanWalk::places() const {
  size_t count = 0;
  for (size_t k = 0; k < live_.size(); ++k)  // paths of one place are neighbours
    if (k == 0 || live_[k].start != live_[k - 1].start) ++count;
  return count;
}

std::vector<int32_t> SpanWalk::ahead(size_t count) {
  look_ahead(count);
  const Path* longest = nullptr;
  for (const Path& path : live_) {
    if (path.start != live_.front().start) break;
    if (longest == nullptr || path.ids.size() > longest->ids.size()) longest = &path;
  }
  std::vector<int32_t> ids;
  for (size_t k = ids_.size(); longest != nullptr && k < longest->ids.size() && ids.size() < count; ++k)
    ids.push_back(longest->ids[k]);
  return ids;
}

void SpanWalk::push(int32_t id, std::string& text) {
  const auto fails = [this, id](const Path& path) { return !path.goes_on_with(ids_.size(), id); };
  live_.erase(std::remove_if(live_.begin(), live_.end(), fails), live_.end());
  ids_.push_back(id);
  look_ahead(kAhead);
  // A tokenizer that normalises gives equal tokens to texts that differ. Then certain is what they
  // begin with alike.
  std::string_view alike = live_.empty() ? std::string_view() : up_to(live_[0], ids_.size());
  for (const Path& path : live_) alike = common_start(alike, up_to(path, ids_.size()));
  append_rest(alike, text);
  given_ = alike.size();
}

void SpanWalk::peek(int32_t id, std::string& text) const {
  for (const Path& path : live_)
    if (path.goes_on_with(ids_.size(), id)) return append_rest(up_to(path, ids_.size() + 1), text);
}

void SpanWalk::pending(std::string& text) const {
  if (ids_.empty() || live_.empty()) return;
  const Path* chosen = &live_.front();
  for (const Path& path : live_)
    if (path.ends_after(ids_.size())) {
      chosen = &path;
      break;
    }
  append_rest(up_to(*chosen, ids_.size()), text);
}

void SpanWalk::finish(std::string& text) {
  const size_t before = text.size();
  pending(text);
  given_ += text.size() - before;
}

std::string_view SpanWalk::up_to(const Path& path, size_t count) const {
  const size_t end = std::max(path.start, path.known[std::min(count, path.known.size() - 1)]);
  return std::string_view(text_).substr(path.start, end - path.start);
}

void SpanWalk::append_rest(std::string_view all, std::string& text) const {
  if (all.size() > given_) text.append(all.substr(given_));
}

// Tokenises more words until so many tokens are known at each place, if there are.
void SpanWalk::look_ahead(size_t count) {
  std::vector<Path> known, longer;
  for (Path& path : live_) {
    longer.assign(1, path);
    while (!longer[0].reaches(ids_.size() + count)) {
      const size_t words = 2 * longer[0].words;
      longer.clear();
      add_paths(path.start, words, longer);
    }
    // What is written stays possible, whatever a tokenizer makes of the longer text.
    const auto fails = [this](const Path& each) {
      return each.ids.size() < ids_.size() || !std::equal(ids_.begin(), ids_.end(), each.ids.begin());
    };
    longer.erase(std::remove_if(longer.begin(), longer.end(), fails), longer.end());
    if (longer.empty()) longer.push_back(std::move(path));
    for (Path& each : longer) {
      bool is_new = true;
      for (auto other = known.rbegin(); other != known.rend() && other->start == each.start; ++other)
        if (*other == each) is_new = false;
      if (is_new) known.push_back(std::move(each));
    }
  }
  live_ = std::move(known);
}

// The paths from a place on, over so many words; the one of all of them is the first.
void SpanWalk::add_paths(size_t start, size_t count, std::vector<Path>& found) {
  const auto first =
      std::lower_bound(words_.begin(), words_.end(), start,
                       [](const WordOfText& word, size_t place) { return word.begin < place; });
  const auto index = static_cast<size_t>(first - words_.begin());
  const size_t known = std::min(count, words_.size() - index);
  size_t reach = index + known;
  for (size_t k = 0; k < kTouching && reach < words_.size(); ++k)
    if (words_[reach - 1].end == words_[reach].begin) ++reach;
  const size_t stop = words_[reach - 1].end;
  std::vector<size_t> ends;
  for (size_t k = index; k < reach; ++k) {
    // A span that ends before white space other than a blank is tokenised by itself.
    const size_t end = words_[k].end;
    const char* next = text_.data() + end;
    if (end == stop || text_[end] == ' ' || !is_wide_white_space(next_code_point(next))) ends.push_back(end);
  }
  const size_t more = known < words_.size() - index ? count : 0;
  Path main = path_of(start, stop, ends, more, words_[index + known - 1].end);
  std::vector<size_t> reached;
  for (const uint32_t each : main.ends) reached.push_back(main.known[each]);
  std::sort(reached.begin(), reached.end());
  found.push_back(std::move(main));
  for (size_t k = index; k < index + known; ++k)
    if (!holds(reached, words_[k].end)) found.push_back(path_of(start, words_[k].end, {words_[k].end}, 0, 0));
}

SpanWalk::Path SpanWalk::path_of(size_t start, size_t stop, const std::vector<size_t>& ends, size_t words,
                                 size_t sure) {
  Path path;
  path.start = start;
  path.words = words;
  path.sure = sure;
  path.known.push_back(start);
  pieces_.clear();
  maker_->pieces(std::string_view(text_).substr(start, stop - start), pieces_);
  const auto place_of = [start](int64_t place) {
    return start + static_cast<size_t>(std::max<int64_t>(place, 0));
  };
  std::vector<size_t> seen;
  for (size_t k = 0; k < pieces_.size(); ++k) {
    const Piece& piece = pieces_[k];
    // Tokens of the same character say the same places: it is whole after the last of them.
    const int64_t begin_next = k + 1 < pieces_.size() ? pieces_[k + 1].begin : piece.end;
    const size_t place = place_of(piece.end);
    const bool is_whole = begin_next >= piece.end;
    path.ids.push_back(piece.id);
    path.known.push_back(std::max(path.known.back(), is_whole ? place : place_of(begin_next)));
    if (is_whole && holds(ends, place) && std::find(seen.begin(), seen.end(), place) == seen.end()) {
      seen.push_back(place);
      path.ends.push_back(static_cast<uint32_t>(k + 1));
    }
  }
  return path;
}

}  // namespace plc
