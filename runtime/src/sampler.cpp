#include "sampler.h"

#include <algorithm>
#include <cmath>

namespace hydrapack {

Error Sampler::check(const Sampling& s) const {
  if (!(s.temperature >= 0 && s.temperature <= 100)) {
    return {Code::Invalid, "temperature must be from 0 to 100"};
  }
  if (s.top_k < 0) return {Code::Invalid, "top_k must not be negative"};
  if (!(s.top_p > 0 && s.top_p <= 1)) return {Code::Invalid, "top_p must be above 0, at most 1"};
  return {};
}

int64_t Sampler::pick(const float* logits, int64_t count, const Sampling& s) {
  if (s.temperature == 0) return std::max_element(logits, logits + count) - logits;
  ranked_.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; i++) ranked_[i] = {logits[i], i};
  // Ties in the order of ids, so that the order is one and the same everywhere.
  const auto before = [](const auto& x, const auto& y) {
    return x.first > y.first || (x.first == y.first && x.second < y.second);
  };
  size_t kept = s.top_k > 0 ? std::min<size_t>(s.top_k, ranked_.size()) : ranked_.size();
  std::partial_sort(ranked_.begin(), ranked_.begin() + kept, ranked_.end(), before);
  const double top = ranked_[0].first;
  std::vector<double> weights(kept);
  double whole = 0;
  for (size_t i = 0; i < kept; i++) {
    weights[i] = std::exp((ranked_[i].first - top) / s.temperature);
    whole += weights[i];
  }
  if (s.top_p < 1) {
    double sum = 0;
    size_t n = 0;
    while (n < kept && sum < s.top_p * whole) sum += weights[n++];
    kept = n, whole = sum;
  }
  // 53 random bits: std::uniform_real_distribution differs between standard libraries.
  double left = static_cast<double>(random_() >> 11) * 0x1p-53 * whole;
  for (size_t i = 0; i < kept; i++) {
    left -= weights[i];
    if (left < 0) return ranked_[i].second;
  }
  return ranked_[kept - 1].second;
}

}  // namespace hydrapack
