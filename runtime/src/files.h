// Files as they are found and as they are described.
#pragma once

#include <cstdint>
#include <string>

#include <hydrapack/result.h>

namespace hydrapack {

// Size of a regular file. NotFound, or Io: something else has that name, or it may not be looked at.
Result<int64_t> file_bytes(const std::string& path);

// Bring a file or a folder to the disk, so that a loss of power does not lose it. False: it cannot be.
bool on_disk(const std::string& path);

// The whole of a file of at most so many bytes, whole MiB. NotFound, Io; Invalid: it is larger.
Result<std::string> read_bytes(const std::string& path, int64_t most);

// The whole of a text file of at most 64 MiB. NotFound, Io; Invalid: it is larger.
Result<std::string> read_text(const std::string& path);

// The size, and if asked the SHA-256, against what is stated. NotFound, Io, Mismatch.
Error check_file(
    const std::string& path, int64_t bytes, const std::string& sha256, bool check_digest);

// Hex, of the whole file. NotFound, Io.
Result<std::string> file_sha256(const std::string& path);

// model.pte against model.pte.json, which export-base writes beside it; without digests it may be
// missing. The SHA-256 that it states, or nothing. NotFound, Io, Invalid, Mismatch.
Result<std::string> check_model_file(const std::string& model, bool check_digest);

}  // namespace hydrapack
