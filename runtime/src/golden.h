// Golden outputs: what each head said when it was packed.
#pragma once

#include <string>
#include <vector>

#include <hydrapack/result.h>

#include "package.h"

namespace hydrapack {

struct GoldenPrompt {
  std::string task;
  int64_t number = 0;  // among the task's
  std::vector<int64_t> ids, tokens;
  std::vector<double> margins;  // of each of tokens, in logits
};

struct Golden {
  double near_tie = 0;  // a token of a smaller margin may differ
  std::vector<GoldenPrompt> prompts;
};

// Of the package, compared with its manifest. NotFound: it has none. Io, Invalid, Mismatch.
Result<Golden> read_golden(const Paths& paths, const Manifest& manifest, bool check_digest);

}  // namespace hydrapack
