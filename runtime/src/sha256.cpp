#include "sha256.h"

#include <cstring>

namespace hydrapack {

Sha256::Sha256(Sha256Blocks blocks)
    : blocks_(blocks),
      state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
             0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {}

void Sha256::update(const void* data, size_t size) {
  const auto* bytes = static_cast<const uint8_t*>(data);
  total_ += size;
  if (held_ > 0) {
    const size_t taken = size < 64 - held_ ? size : 64 - held_;
    std::memcpy(buffer_ + held_, bytes, taken);
    held_ += taken;
    bytes += taken;
    size -= taken;
    if (held_ < 64) return;
    blocks_(state_, buffer_, 1);
    held_ = 0;
  }
  blocks_(state_, bytes, size / 64);
  bytes += size / 64 * 64;
  size %= 64;
  if (size > 0) std::memcpy(buffer_, bytes, size);
  held_ = size;
}

std::string Sha256::hex() {
  const uint64_t bits = total_ * 8;
  const uint8_t one = 0x80, zero = 0;
  update(&one, 1);
  while (held_ != 56) update(&zero, 1);
  uint8_t length[8];
  for (int i = 0; i < 8; i++) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  update(length, 8);
  constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (uint32_t word : state_) {
    for (int shift = 28; shift >= 0; shift -= 4) text += digits[(word >> shift) & 15];
  }
  return text;
}

}  // namespace hydrapack
