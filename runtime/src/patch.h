// What a patch makes of a package's files, in memory (docs/patch-format.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <hydrapack/result.h>

namespace hydrapack {

struct PatchedFile {
  std::string name;
  std::string content;
};

// The new package's files. Errors as apply_patch's.
Result<std::vector<PatchedFile>> patched_files(
    const std::string& package, const std::string& patch, const std::string& public_key);

}  // namespace hydrapack
