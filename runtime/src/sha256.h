#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace hydrapack {

// FIPS 180-4.
class Sha256 {
 public:
  Sha256();
  void update(const void* data, size_t size);
  std::string hex();  // ends the message

 private:
  void block(const uint8_t* data);

  uint32_t state_[8];
  uint8_t buffer_[64];
  size_t held_ = 0;
  uint64_t total_ = 0;
};

}  // namespace hydrapack
