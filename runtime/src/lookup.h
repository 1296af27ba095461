// Prompt lookup: guess that the answer goes on as the text did where its last tokens stood before.
// As hydrapack/device/lookup.py, guess for guess.
#pragma once

#include <cstdint>
#include <vector>

namespace hydrapack {

class Lookup {
 public:
  explicit Lookup(std::vector<int64_t> prompt) : text_(std::move(prompt)) {}

  // Whether the last call has the logits after token, which then joins the text.
  bool known(int64_t token);

  // token joins the text: at most so many guesses of what comes after it, which a call is to check.
  std::vector<int64_t> guess(int64_t token, int64_t most);

 private:
  std::vector<int64_t> text_;
  std::vector<int64_t> guessed_;
  double credit_ = 1.5;
};

}  // namespace hydrapack
