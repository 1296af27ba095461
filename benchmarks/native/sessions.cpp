// What a second session of an engine costs in memory and time:
//   sessions MODEL.pte PACKAGE [CACHE]
// CACHE: "memory" for share_weights, else a folder for weight_cache; without it each session packs
// the weights for itself. Each session answers once; then both answer, one after the other and on
// two threads. Prints one JSON object.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <hydrapack/session.h>

namespace {

using Clock = std::chrono::steady_clock;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "%s\n", message.c_str());
  std::exit(1);
}

void answer(hydrapack::Session& session) {
  std::vector<int64_t> ids;
  for (int64_t id = 0; id < 100; id++) ids.push_back(100 + id);
  hydrapack::GenerateOptions options;
  options.max_new_tokens = 64;
  options.temperature = 0;
  options.stop_ids.emplace();
  const auto made = session.generate(ids, options);
  if (!made.ok()) fail(made.error().message);
}

std::unique_ptr<hydrapack::Session> opened(const hydrapack::Engine& engine, size_t number) {
  const auto started = Clock::now();
  auto session = engine.open_session();
  if (!session.ok()) fail(session.error().message);
  const double open_ms = ms_since(started);
  const auto& tasks = engine.tasks();
  const auto used = session.value()->use(tasks[number % tasks.size()].name);
  if (!used.ok()) fail(used.message);
  answer(*session.value());
  std::printf(
      "\"session %zu\": {\"open_ms\": %.0f, \"resident_mb\": %.0f}, ", number, open_ms,
      session.value()->stats().resident_bytes / 1e6);
  return std::move(session.value());
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 3) fail("sessions MODEL.pte PACKAGE [memory or a folder]");
  hydrapack::OpenOptions options;
  const std::string cache = count > 3 ? arguments[3] : "";
  options.share_weights = cache == "memory";
  if (!options.share_weights) options.weight_cache = cache;
  const auto engine = hydrapack::Engine::open(arguments[1], arguments[2], options);
  if (!engine.ok()) fail(engine.error().message);
  std::printf("{");
  const auto first = opened(engine.value(), 1), second = opened(engine.value(), 2);
  auto started = Clock::now();
  answer(*first);
  answer(*second);
  std::printf("\"in_turn_ms\": %.0f, ", ms_since(started));
  started = Clock::now();
  std::thread other([&] { answer(*first); });
  answer(*second);
  other.join();
  std::printf("\"two_threads_ms\": %.0f}\n", ms_since(started));
  return 0;
}
