// Files as they are found and as they are described.
#pragma once

#include <cstdint>
#include <string>

#include <hydrapack/result.h>

namespace hydrapack {

// Size of a regular file, -1 if there is none.
int64_t file_bytes(const std::string& path);

// The whole of a text file of at most 64 MB.
Result<std::string> read_text(const std::string& path);

// The size, and if asked the SHA-256, against what is stated.
Error check_file(
    const std::string& path, int64_t bytes, const std::string& sha256, bool check_digest);

// model.pte against model.pte.json, which export-base writes beside it; without digests it may be
// missing.
Error check_model_file(const std::string& model, bool check_digest);

}  // namespace hydrapack
