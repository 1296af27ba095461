#include "lookup.h"

#include <algorithm>

namespace hydrapack {
namespace {

// Tokens that must stand alike, and how many are guessed after them.
struct Rule {
  size_t alike;
  int64_t count;
};
constexpr Rule kRules[] = {{3, 5}, {2, 3}, {1, 3}};
// In plain steps: what a guess costs, what wrong ones may cost at most, what a plain step earns, and
// from which credit one token alike is enough.
constexpr double kCost = 0.1, kMostCredit = 4, kEarned = 0.02, kOneToken = 1.5;

// The place after the last one where the text's end stood before, or its size.
size_t place_after(const std::vector<int64_t>& text, size_t alike) {
  for (size_t end = text.size() - 1; end >= alike; end--) {
    if (std::equal(text.end() - alike, text.end(), text.begin() + (end - alike))) return end;
  }
  return text.size();
}

}  // namespace

bool Lookup::known(int64_t token) {
  if (guessed_.empty()) return false;
  if (guessed_.front() != token) {
    guessed_.clear();
    return false;
  }
  text_.push_back(token);
  credit_ = std::min(credit_ + 1, kMostCredit);
  guessed_.erase(guessed_.begin());
  return true;
}

std::vector<int64_t> Lookup::guess(int64_t token, int64_t most) {
  text_.push_back(token);
  guessed_.clear();
  if (credit_ > 0 && most > 0) {
    for (const Rule& rule : kRules) {
      if (text_.size() <= rule.alike || (rule.alike == 1 && credit_ < kOneToken)) continue;
      const size_t place = place_after(text_, rule.alike);
      if (place == text_.size()) continue;
      const size_t count = std::min<size_t>(std::min(rule.count, most), text_.size() - place);
      guessed_.assign(text_.begin() + place, text_.begin() + place + count);
      break;
    }
  }
  credit_ += guessed_.empty() ? kEarned : -kCost * static_cast<double>(guessed_.size());
  return guessed_;
}

}  // namespace hydrapack
