#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include <hydrapack/session.h>

namespace hydrapack {

// Picks tokens; the same seed gives the same tokens on every platform with the same logits.
class Sampler {
 public:
  Error check(const Sampling& sampling) const;
  void seed(uint64_t seed) { random_.seed(seed); }
  int64_t pick(const float* logits, int64_t count, const Sampling& sampling);

 private:
  std::mt19937_64 random_;
  std::vector<std::pair<float, int64_t>> ranked_;
};

}  // namespace hydrapack
