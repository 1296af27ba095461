#include "signature.h"

#if defined(HYDRAPACK_SIGNATURES)
#include <sodium.h>

#include "json.h"
#endif

namespace hydrapack {

#if defined(HYDRAPACK_SIGNATURES)
namespace {

bool is_hex(const std::string& text, size_t size) {
  return text.size() == size && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

}  // namespace
#endif

Error check_public_key([[maybe_unused]] const std::string& public_key) {
#if !defined(HYDRAPACK_SIGNATURES)
  return {
      Code::Invalid,
      "public_key: this build checks no signatures; build it with HYDRAPACK_SIGNATURES=ON (libsodium)"};
#else
  if (!is_hex(public_key, 64)) {
    return {Code::Invalid, "public_key: give the raw Ed25519 key as 64 of the digits 0-9 and a-f"};
  }
  return {};
#endif
}

Error check_signature(
    [[maybe_unused]] const std::string& signature,
    [[maybe_unused]] const std::string& where,
    [[maybe_unused]] const std::string& manifest,
    const std::string& public_key) {
  const Error error = check_public_key(public_key);
  if (!error.ok()) return error;
#if defined(HYDRAPACK_SIGNATURES)
  const auto parsed = parse_json(signature, where);
  if (!parsed.ok()) return parsed.error();
  const auto& json = parsed.value();
  const auto text = [&](const char* name) {
    const bool there = json.is_object() && json.size() == 3 && json.contains(name);
    return there && json[name].is_string() ? json[name].get<std::string>() : "";
  };
  const std::string key = text("public_key"), made = text("signature");
  if (text("algorithm") != "ed25519" || !is_hex(key, 64) || !is_hex(made, 128)) {
    return {Code::Invalid, where + ": is no signature as hydrapack writes it"};
  }
  return check_signed(
      manifest, key, made, public_key, where, "is no signature of manifest.json as it is");
#else
  return {};
#endif
}

Error check_signed(
    [[maybe_unused]] const std::string& signed_bytes,
    [[maybe_unused]] const std::string& key,
    [[maybe_unused]] const std::string& made,
    const std::string& public_key,
    [[maybe_unused]] const std::string& where,
    [[maybe_unused]] const char* otherwise) {
  const Error error = check_public_key(public_key);
  if (!error.ok()) return error;
#if defined(HYDRAPACK_SIGNATURES)
  if (key != public_key) {
    return {Code::Mismatch, where + ": is signed by another key, " + key.substr(0, 16) + "..."};
  }
  if (sodium_init() < 0) return {Code::Invalid, "public_key: libsodium does not start"};
  unsigned char raw_key[crypto_sign_PUBLICKEYBYTES], raw[crypto_sign_BYTES];
  sodium_hex2bin(raw_key, sizeof raw_key, key.data(), key.size(), nullptr, nullptr, nullptr);
  sodium_hex2bin(raw, sizeof raw, made.data(), made.size(), nullptr, nullptr, nullptr);
  const auto* bytes = reinterpret_cast<const unsigned char*>(signed_bytes.data());
  if (crypto_sign_verify_detached(raw, bytes, signed_bytes.size(), raw_key) != 0) {
    return {Code::Mismatch, where + ": " + otherwise};
  }
#endif
  return {};
}

}  // namespace hydrapack
