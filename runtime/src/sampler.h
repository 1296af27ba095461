#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include <hydrapack/session.h>

namespace hydrapack {

// Picks tokens; the same seed gives the same tokens in every runtime with the same logits.
class Sampler {
 public:
  static Error check(const Sampling& sampling);
  void seed(uint64_t seed) { state_ = seed; }

  // The sampling must have passed check. Invalid: a logit that is not finite.
  Result<int64_t> pick(const float* logits, int64_t count, const Sampling& sampling);

 private:
  double uniform();
  void keep_top_k(const float* logits, int64_t count, int64_t top_k);
  void keep_top_p(const float* logits, double top_p);

  uint64_t state_ = 0;
  std::vector<int64_t> ids_;  // candidates, rising
  std::vector<double> weights_;
  std::vector<float> values_;
  std::vector<std::pair<float, size_t>> ranked_;
};

}  // namespace hydrapack
