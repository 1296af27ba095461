// Replaying golden outputs: each token is compared, and the golden one goes on.
#include <set>

#include "golden.h"
#include "state.h"

namespace hydrapack {

std::string SelfTest::text() const {
  const std::string all = std::to_string(tokens);
  if (passed()) {
    return all + " golden tokens as packed, " + std::to_string(near_ties) + " near ties apart";
  }
  std::set<std::string> tasks;
  for (const GoldenDifference& each : differences) tasks.insert(each.task);
  std::string names;
  for (const std::string& name : tasks) names += (names.empty() ? "" : ", ") + name;
  const GoldenDifference& first = differences[0];
  return std::to_string(differences.size()) + " of " + all + " golden tokens differ, of " + names +
      "; first: task '" + first.task + "', prompt " + std::to_string(first.prompt) + ", token " +
      std::to_string(first.token) + " is " + std::to_string(first.found) + ", not " +
      std::to_string(first.expected) + " (margin " + std::to_string(first.margin) + ")";
}

Result<SelfTest> Session::State::self_test() {
  const auto golden = read_golden(engine->paths, engine->manifest, engine->check_digests);
  if (!golden.ok()) return golden.error();
  SelfTest test;
  for (const GoldenPrompt& prompt : golden.value().prompts) {
    if (prompt.number == 0) test.tasks.push_back(prompt.task);
    Error error = use(prompt.task, 0);
    if (error.ok()) error = prefill(prompt.ids);
    for (size_t i = 0; i < prompt.tokens.size() && error.ok(); i++) {
      const auto found = sampler.pick(logits, engine->limits.vocab, {});
      if (!found.ok()) return found.error();
      const int64_t expected = prompt.tokens[i];
      test.tokens++;
      if (found.value() != expected && prompt.margins[i] < golden.value().near_tie) {
        test.near_ties++;
      } else if (found.value() != expected) {
        test.differences.push_back(
            {prompt.task, prompt.number, static_cast<int64_t>(i), expected, found.value(),
             prompt.margins[i]});
      }
      if (i + 1 < prompt.tokens.size()) error = append(&expected, 1);
    }
    if (!error.ok()) return error;
  }
  const Error error = use({}, 0);
  if (!error.ok()) return error;
  return test;
}

}  // namespace hydrapack
