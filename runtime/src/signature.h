#pragma once

#include <string>

#include <hydrapack/result.h>

namespace hydrapack {

// Ed25519: the text of manifest.sig against the manifest's bytes and the public key, 64 hex digits.
// Invalid: a malformed key or signature file, or a build without libsodium. Mismatch: signed by
// another key, or not these bytes.
Error check_signature(
    const std::string& signature,
    const std::string& where,
    const std::string& manifest,
    const std::string& public_key);

// The same of a signature that is not in a manifest.sig: key and made in hex, of so many digits as
// they must have. otherwise is said of one of other bytes.
Error check_signed(
    const std::string& signed_bytes,
    const std::string& key,
    const std::string& made,
    const std::string& public_key,
    const std::string& where,
    const char* otherwise);

// Invalid: no key, or this build checks no signatures.
Error check_public_key(const std::string& public_key);

}  // namespace hydrapack
