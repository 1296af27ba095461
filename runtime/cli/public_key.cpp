#include "cli.h"

#if defined(HYDRAPACK_SIGNATURES)
#include <fstream>
#include <iterator>

#include <sodium.h>
#endif

using hydrapack::Code;
using hydrapack::Error;

hydrapack::Result<std::string> public_key_of(const std::string& argument) {
  const bool hex = argument.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (hex && argument.size() == 64) return argument;
#if !defined(HYDRAPACK_SIGNATURES)
  return Error{Code::Invalid, "--public-key: this build checks no signatures (libsodium)"};
#else
  std::ifstream file(argument, std::ios::binary);
  if (!file) {
    return Error{Code::NotFound, "--public-key " + argument + ": neither 64 hex digits nor a file"};
  }
  const std::string pem{std::istreambuf_iterator<char>(file), {}};
  const std::string begin = "-----BEGIN PUBLIC KEY-----";
  const size_t start = pem.find(begin), end = pem.find("-----END PUBLIC KEY-----");
  // RFC 8410: the algorithm's identifier, then the 32 bytes of the key.
  const std::string prefix("\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00", 12);
  unsigned char bytes[64];
  size_t size = 0;
  const bool decoded = start != std::string::npos && end != std::string::npos && end > start &&
      sodium_base642bin(
          bytes, sizeof bytes, pem.data() + start + begin.size(), end - start - begin.size(),
          " \r\n\t", &size, nullptr, sodium_base64_VARIANT_ORIGINAL) == 0;
  if (!decoded || size != 44 ||
      std::string(reinterpret_cast<const char*>(bytes), prefix.size()) != prefix) {
    return Error{Code::Invalid, "--public-key " + argument + ": holds no Ed25519 public key in PEM form"};
  }
  char digits[65];
  sodium_bin2hex(digits, sizeof digits, bytes + prefix.size(), 32);
  return std::string(digits);
#endif
}
