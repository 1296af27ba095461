// Whether two programs and a manifest belong together, and the sizes that follow from them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <hydrapack/result.h>

#include "manifest.h"
#include "package.h"
#include "programs.h"

namespace hydrapack {

// The inputs of forward: tokens, their positions, the rows whose logits are wanted, whether the
// adapter counts, and its matrices. A program says by this version that it takes these.
constexpr size_t kOn = 3, kAdapter = 4;
constexpr int64_t kForwardVersion = 1;

struct Limits {
  int64_t context = 0;
  int64_t seq = 0;   // tokens a call
  int64_t rows = 0;  // logits a call
  int64_t vocab = 0;
};

// A program of another version of hydrapack may take other inputs, which nothing could name later.
// Invalid.
Error check_forward(const std::string& path, executorch::extension::Module& model);

// Rank and layout of both programs are the manifest's. Invalid, Mismatch.
Error check_layout(
    const Paths& paths,
    executorch::extension::Module& model,
    executorch::extension::Module& adapters,
    const Manifest& manifest);

// A package bound to one base is refused on another, even of the same shape. Invalid, Mismatch.
Error check_base(
    const Paths& paths, executorch::extension::Module& model, const Manifest& manifest);

// Invalid: a constant is missing or out of range.
Result<Limits> read_limits(const std::string& path, executorch::extension::Module& model);
Result<std::vector<int64_t>> read_eos_ids(
    const std::string& path, executorch::extension::Module& model);

// The matrices of a and of b that the model takes, in the order of its inputs.
struct AdapterSizes {
  std::vector<Sizes> a, b;
  int64_t a_values = 0, b_values = 0;
};

// All of them as a's, of a model that runs without a package. Invalid.
Result<AdapterSizes> unused_sizes(
    const std::string& path, executorch::extension::Module& model);

// They must be those in the vectors of shared() and head(). Invalid, Mismatch.
Result<AdapterSizes> match_sizes(
    const Paths& paths,
    executorch::extension::Module& model,
    executorch::extension::Module& adapters,
    const Manifest& manifest);

}  // namespace hydrapack
