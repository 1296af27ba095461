#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace hydrapack {

// Takes so many blocks of 64 bytes into the state.
using Sha256Blocks = void (*)(uint32_t state[8], const uint8_t* data, size_t count);

struct Sha256Way {
  const char* name;  // portable, x86 or armv8
  Sha256Blocks blocks;
};

// What this processor can do, the fastest first; the last is the portable one.
const std::vector<Sha256Way>& sha256_ways();

// FIPS 180-4.
class Sha256 {
 public:
  explicit Sha256(Sha256Blocks blocks = sha256_ways().front().blocks);
  void update(const void* data, size_t size);
  std::string hex();  // ends the message

 private:
  Sha256Blocks blocks_;
  uint32_t state_[8];
  uint8_t buffer_[64];
  size_t held_ = 0;
  uint64_t total_ = 0;
};

}  // namespace hydrapack
