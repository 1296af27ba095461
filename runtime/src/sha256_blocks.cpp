// SHA-256's compression: portable, and with the processor's own instructions, chosen at run time.
#include "sha256.h"

#if defined(__GNUC__) && defined(__x86_64__)
#define HYDRAPACK_SHA_X86 1
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__) && \
    (defined(__ARM_FEATURE_SHA2) || (defined(__GNUC__) && !defined(__clang__)) || \
     (defined(__clang_major__) && __clang_major__ >= 16))
// Older Clangs declare the intrinsics only where the whole file is compiled for them.
#define HYDRAPACK_SHA_ARM 1
#include <arm_neon.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#endif

// The rounds are written as a loop; the message's registers need it unrolled.
#if defined(__clang__)
#define HYDRAPACK_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define HYDRAPACK_UNROLL _Pragma("GCC unroll 16")
#endif

namespace hydrapack {
namespace {

constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t rotated(uint32_t x, int n) { return (x >> n) | (x << (32 - n)); }

void portable_block(uint32_t state[8], const uint8_t* data) {
  uint32_t w[64];
  for (int i = 0; i < 16; i++) {
    w[i] = static_cast<uint32_t>(data[4 * i]) << 24 | static_cast<uint32_t>(data[4 * i + 1]) << 16 |
        static_cast<uint32_t>(data[4 * i + 2]) << 8 | data[4 * i + 3];
  }
  for (int i = 16; i < 64; i++) {
    const uint32_t s0 = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ (w[i - 15] >> 3);
    const uint32_t s1 = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ (w[i - 2] >> 10);
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
  uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
  for (int i = 0; i < 64; i++) {
    const uint32_t s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
    const uint32_t first = h + s1 + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
    const uint32_t s0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
    const uint32_t second = s0 + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + first;
    d = c, c = b, b = a, a = first + second;
  }
  const uint32_t added[8] = {a, b, c, d, e, f, g, h};
  for (int i = 0; i < 8; i++) state[i] += added[i];
}

void portable_blocks(uint32_t state[8], const uint8_t* data, size_t count) {
  for (size_t i = 0; i < count; i++) portable_block(state, data + 64 * i);
}

#if defined(HYDRAPACK_SHA_X86)

__m128i load(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }

__attribute__((target("sha,sse4.1,ssse3"))) void x86_blocks(
    uint32_t state[8], const uint8_t* data, size_t count) {
  const __m128i bytes = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  // The instructions take the state as (a, b, e, f) and (c, d, g, h).
  __m128i half = _mm_shuffle_epi32(load(state), 0xB1);
  __m128i cdgh = _mm_shuffle_epi32(load(state + 4), 0x1B);
  __m128i abef = _mm_alignr_epi8(half, cdgh, 8);
  cdgh = _mm_blend_epi16(cdgh, half, 0xF0);
  for (; count > 0; count--, data += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];
    for (int i = 0; i < 4; i++) w[i] = _mm_shuffle_epi8(load(data + 16 * i), bytes);
    HYDRAPACK_UNROLL
    for (int i = 0; i < 16; i++) {
      __m128i &now = w[i % 4], &third = w[(i + 2) % 4], &last = w[(i + 3) % 4];
      const __m128i added = _mm_add_epi32(now, load(kRound + 4 * i));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, added);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(added, 0x0E));
      now = _mm_sha256msg1_epu32(now, w[(i + 1) % 4]);
      now = _mm_sha256msg2_epu32(_mm_add_epi32(now, _mm_alignr_epi8(last, third, 4)), last);
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  half = _mm_shuffle_epi32(abef, 0x1B);
  cdgh = _mm_shuffle_epi32(cdgh, 0xB1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(half, cdgh, 0xF0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(cdgh, half, 8));
}

bool has_x86() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  // CPUID.1: SSSE3 and SSE4.1; CPUID.7: SHA.
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 9)) || !(c & (1u << 19))) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 29));
}

#elif defined(HYDRAPACK_SHA_ARM)

#if defined(__ARM_FEATURE_SHA2)
#define HYDRAPACK_SHA_TARGET
#elif defined(__clang__)
#define HYDRAPACK_SHA_TARGET __attribute__((target("sha2")))
#else
#define HYDRAPACK_SHA_TARGET __attribute__((target("+crypto")))
#endif

HYDRAPACK_SHA_TARGET void armv8_blocks(uint32_t state[8], const uint8_t* data, size_t count) {
  uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
  for (; count > 0; count--, data += 64) {
    const uint32x4_t abcd_before = abcd, efgh_before = efgh;
    uint32x4_t w[4];
    for (int i = 0; i < 4; i++) {
      w[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + 16 * i)));
    }
    HYDRAPACK_UNROLL
    for (int i = 0; i < 16; i++) {
      uint32x4_t& now = w[i % 4];
      const uint32x4_t added = vaddq_u32(now, vld1q_u32(kRound + 4 * i)), before = abcd;
      abcd = vsha256hq_u32(abcd, efgh, added);
      efgh = vsha256h2q_u32(efgh, before, added);
      now = vsha256su0q_u32(now, w[(i + 1) % 4]);
      now = vsha256su1q_u32(now, w[(i + 2) % 4], w[(i + 3) % 4]);
    }
    abcd = vaddq_u32(abcd, abcd_before);
    efgh = vaddq_u32(efgh, efgh_before);
  }
  vst1q_u32(state, abcd);
  vst1q_u32(state + 4, efgh);
}

bool has_armv8() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_SHA2) != 0;
#elif defined(__APPLE__)
  return true;
#else
  return false;
#endif
}

#endif

}  // namespace

const std::vector<Sha256Way>& sha256_ways() {
  static const std::vector<Sha256Way> ways = [] {
    std::vector<Sha256Way> found;
#if defined(HYDRAPACK_SHA_X86)
    if (has_x86()) found.push_back({"x86", x86_blocks});
#elif defined(HYDRAPACK_SHA_ARM)
    if (has_armv8()) found.push_back({"armv8", armv8_blocks});
#endif
    found.push_back({"portable", portable_blocks});
    return found;
  }();
  return ways;
}

}  // namespace hydrapack
