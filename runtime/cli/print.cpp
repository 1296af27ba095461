// What hydrapack-run prints.
#include <cstdio>

#include "cli.h"

int fail(const std::string& message) {
  std::fprintf(stderr, "hydrapack-run: error: %s\n", message.c_str());
  return 2;
}

void print(const Json& json) {
  std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  std::fflush(stdout);
}

Json error_json(const hydrapack::Error& error) {
  return {{"error", error.message}, {"kind", name(error.code)}};
}

Json self_test_json(const hydrapack::SelfTest& test) {
  Json tasks = Json::object(), differences = Json::array();
  for (const std::string& name : test.tasks) tasks[name] = true;
  for (const hydrapack::GoldenDifference& d : test.differences) {
    tasks[d.task] = false;
    differences.push_back(
        {{"task", d.task},
         {"prompt", d.prompt},
         {"token", d.token},
         {"expected", d.expected},
         {"found", d.found},
         {"margin", d.margin}});
  }
  return {
      {"passed", test.passed()},
      {"tasks", tasks},
      {"tokens", test.tokens},
      {"near_ties", test.near_ties},
      {"differences", differences}};
}

Json stats_json(const hydrapack::Stats& s) {
  return {
      {"load_ms", s.load_ms},
      {"swap_ms", s.swap_ms},
      {"prefill_ms", s.prefill_ms},
      {"prefill_tokens", s.prefill_tokens},
      {"decode_ms", s.decode_ms},
      {"decode_tokens", s.decode_tokens},
      {"decode_calls", s.decode_calls},
      {"model_bytes", s.model_bytes},
      {"adapter_bytes", s.adapter_bytes},
      {"resident_bytes", s.resident_bytes}};
}
