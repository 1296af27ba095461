#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

namespace hydrapack {

Error Sampler::check(const Sampling& s) {
  if (!(s.temperature >= 0 && s.temperature <= 100)) {
    return {Code::Invalid, "temperature must be from 0 to 100"};
  }
  if (s.top_k < 0 || s.top_k > (1 << 20)) {
    return {Code::Invalid, "top_k must be from 0 to " + std::to_string(1 << 20)};
  }
  if (!(s.top_p > 0 && s.top_p <= 1)) return {Code::Invalid, "top_p must be above 0, at most 1"};
  return {};
}

// SplitMix64 (Steele, Lea and Flood 2014): one line in any language.
double Sampler::uniform() {
  uint64_t x = (state_ += 0x9E3779B97F4A7C15);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  x ^= x >> 31;
  return static_cast<double>(x >> 11) * 0x1p-53;
}

// The top_k largest; of those equal to the least of them, the first.
void Sampler::keep_top_k(const float* logits, int64_t count, int64_t top_k) {
  values_.assign(logits, logits + count);
  const auto last = values_.begin() + (top_k - 1);
  std::nth_element(values_.begin(), last, values_.end(), std::greater<float>());
  const float least = *last;
  int64_t equal = top_k - std::count_if(values_.begin(), last, [&](float v) { return v > least; });
  ids_.clear();
  for (int64_t i = 0; i < count; i++) {
    if (logits[i] > least || (logits[i] == least && equal-- > 0)) ids_.push_back(i);
  }
}

// The smallest set, most probable first and equals by id, whose weight is top_p of the whole.
void Sampler::keep_top_p(const float* logits, double top_p) {
  const double whole = std::accumulate(weights_.begin(), weights_.end(), 0.0);
  // All tokens that weigh less than this weigh less than 1 - top_p together: none is in the set.
  const double least = (1 - top_p) * whole / static_cast<double>(weights_.size());
  ranked_.clear();
  for (size_t i = 0; i < ids_.size(); i++) {
    if (weights_[i] >= least) ranked_.emplace_back(logits[ids_[i]], i);
  }
  std::sort(ranked_.begin(), ranked_.end(), [](const auto& x, const auto& y) {
    return x.first > y.first || (x.first == y.first && x.second < y.second);
  });
  double sum = 0;
  size_t kept = 0;
  do {
    sum += weights_[ranked_[kept++].second];
  } while (kept < ranked_.size() && sum < top_p * whole);
  ranked_.resize(kept);
  std::sort(ranked_.begin(), ranked_.end(), [](const auto& x, const auto& y) {
    return x.second < y.second;
  });
  for (size_t i = 0; i < kept; i++) {
    ids_[i] = ids_[ranked_[i].second];
    weights_[i] = weights_[ranked_[i].second];
  }
  ids_.resize(kept);
  weights_.resize(kept);
}

Result<int64_t> Sampler::pick(const float* logits, int64_t count, const Sampling& s) {
  for (int64_t i = 0; i < count; i++) {
    if (!std::isfinite(logits[i])) {
      return Error{Code::Invalid, "the logit of token " + std::to_string(i) + " is not finite"};
    }
  }
  const float* largest = std::max_element(logits, logits + count);
  if (s.temperature == 0) return static_cast<int64_t>(largest - logits);
  if (s.top_k > 0 && s.top_k < count) {
    keep_top_k(logits, count, s.top_k);
  } else {
    ids_.resize(static_cast<size_t>(count));
    std::iota(ids_.begin(), ids_.end(), 0);
  }
  weights_.resize(ids_.size());
  for (size_t i = 0; i < ids_.size(); i++) {
    weights_[i] = std::exp((static_cast<double>(logits[ids_[i]]) - *largest) / s.temperature);
  }
  if (s.top_p < 1) keep_top_p(logits, s.top_p);
  const double drawn = uniform() * std::accumulate(weights_.begin(), weights_.end(), 0.0);
  double sum = 0;
  for (size_t i = 0; i < ids_.size(); i++) {
    sum += weights_[i];
    if (drawn < sum) return ids_[i];
  }
  return ids_.back();
}

}  // namespace hydrapack
