// --bench and --swaps: figures of one program and package.
#include <algorithm>
#include <random>
#include <vector>

#include "cli.h"

int bench(hydrapack::Session& session, const std::optional<std::string>& task, bool digests) {
  std::vector<double> firsts, swaps, steps, prefills;
  const auto& tasks = session.tasks();
  for (size_t i = 0; i < 40; i++) {
    for (const bool again : {false, true}) {
      if (!session.use(std::nullopt).ok()) return fail("a swap failed");
      if (!session.use(tasks[i % tasks.size()].name).ok()) return fail("a swap failed");
      if (again || i < tasks.size()) (again ? swaps : firsts).push_back(session.stats().swap_ms);
    }
  }
  if (!session.use(task).ok()) return fail("no such task");
  const int64_t length = std::min<int64_t>(128, session.max_context() - 66);
  if (length < 1) return fail("the context is too short for --bench");
  const std::vector<int64_t> ids(static_cast<size_t>(length), 5 % session.vocab_size());
  const int64_t loaded = session.stats().resident_bytes;
  for (int round = 0; round < 3; round++) {
    if (!session.reset().ok()) return fail("reset failed");
    const auto error = session.prefill(ids);
    if (!error.ok()) return fail(error.message);
    prefills.push_back(session.stats().prefill_ms);
    double before = 0;
    for (int i = 0; i < 64; i++) {
      const auto token = session.step();
      if (!token.ok()) return fail(token.error().message);
      const double now = session.stats().decode_ms;
      if (i > 0) steps.push_back(now - before);
      before = now;
    }
  }
  const auto median = [](std::vector<double> v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
  };
  const auto least = [](const std::vector<double>& v) {
    return *std::min_element(v.begin(), v.end());
  };
  print({
      {"digests", digests},
      {"load_ms", session.stats().load_ms},
      {"first_swap_ms", {{"median", median(firsts)}, {"min", least(firsts)}}},
      {"swap_ms", {{"median", median(swaps)}, {"min", least(swaps)}}},
      {"prefill_tokens", length},
      {"prefill_ms", {{"median", median(prefills)}, {"min", least(prefills)}}},
      {"decode_ms", {{"median", median(steps)}, {"min", least(steps)}}},
      {"resident_bytes_loaded", loaded},
      {"resident_bytes_decoding", session.stats().resident_bytes},
      {"model_bytes", session.stats().model_bytes},
      {"adapter_bytes", session.stats().adapter_bytes}});
  return 0;
}

int swap_often(hydrapack::Session& session, long count) {
  std::mt19937_64 random(0);
  const auto& tasks = session.tasks();
  int64_t early = 0;
  for (long i = 0; i < count; i++) {
    const size_t pick = random() % (tasks.size() + 1);
    const auto error =
        pick == tasks.size() ? session.use(std::nullopt) : session.use(tasks[pick].name);
    if (!error.ok()) return fail(error.message);
    if (i == count / 10) early = session.stats().resident_bytes;
  }
  print({
      {"resident_bytes_before", early}, {"resident_bytes_after", session.stats().resident_bytes}});
  return 0;
}
