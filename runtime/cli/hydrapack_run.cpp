// Token ids in, token ids out, as JSON lines; see kHelp.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include <hydrapack/session.h>
#include <nlohmann/json.hpp>

namespace {

using Json = nlohmann::json;

constexpr char kHelp[] = R"(Usage: hydrapack-run MODEL.pte PACKAGE [options]

Reads one JSON object a line from standard input and writes JSON lines.

  in:   {"ids": [1, 2, 3], "task": "summary", "max_new_tokens": 64, "temperature": 0,
         "top_k": 0, "top_p": 1, "seed": 0, "stop_ids": []}
        "ids" is needed; without "task" the one of --task, null for the bare base model
  out:  {"token": 5} for each token, then {"ids": [...], "finish": "stop", "stats": {...}},
        or {"error": "..."} for a line that cannot be answered

Options:
  --task NAME     the task of lines that name none
  --no-digests    do not compare SHA-256 digests when opening
  --bench         no input: time swaps, a prefill of 128 tokens and 64 steps, print one JSON line
  --swaps N       no input: N random swaps, print resident bytes before and after
  --help

Exit code: 0, or 2 for unusable input.

Examples:
  echo '{"ids": [9906, 1917]}' | hydrapack-run model.pte package --task grammar
  hydrapack-run model.pte package --bench
)";

int fail(const std::string& message) {
  std::fprintf(stderr, "hydrapack-run: error: %s\n", message.c_str());
  return 2;
}

Json stats_json(const hydrapack::Stats& s) {
  return {
      {"load_ms", s.load_ms},
      {"swap_ms", s.swap_ms},
      {"prefill_ms", s.prefill_ms},
      {"prefill_tokens", s.prefill_tokens},
      {"decode_ms", s.decode_ms},
      {"decode_tokens", s.decode_tokens},
      {"model_bytes", s.model_bytes},
      {"vector_bytes", s.vector_bytes},
      {"resident_bytes", s.resident_bytes}};
}

const char* name(hydrapack::Finish finish) {
  switch (finish) {
    case hydrapack::Finish::StopId: return "stop";
    case hydrapack::Finish::MaxTokens: return "length";
    case hydrapack::Finish::ContextFull: return "context";
    case hydrapack::Finish::Callback: return "callback";
  }
  return "";
}

bool number(const Json& line, const char* key, double& value) {
  if (!line.contains(key)) return true;
  if (!line[key].is_number()) return false;
  value = line[key].get<double>();
  return true;
}

bool ids_of(const Json& line, const char* key, std::vector<int64_t>& ids) {
  if (!line.contains(key)) return true;
  if (!line[key].is_array()) return false;
  for (const Json& id : line[key]) {
    if (!id.is_number_integer()) return false;
    ids.push_back(id.get<int64_t>());
  }
  return true;
}

// The answer to one line; an error's message, or empty.
std::string answer(
    hydrapack::Session& session, const std::string& text, const std::optional<std::string>& usual) {
  const Json line = Json::parse(text, nullptr, false);
  if (!line.is_object()) return "the line is no JSON object";
  std::vector<int64_t> ids;
  hydrapack::GenerateOptions options;
  double limit = 128, temperature = 0, top_k = 0, top_p = 1, seed = 0;
  if (!line.contains("ids") || !ids_of(line, "ids", ids)) return "ids: give a list of integers";
  if (!ids_of(line, "stop_ids", options.stop_ids)) return "stop_ids: give a list of integers";
  if (!number(line, "max_new_tokens", limit) || !number(line, "temperature", temperature) ||
      !number(line, "top_k", top_k) || !number(line, "top_p", top_p) ||
      !number(line, "seed", seed)) {
    return "an option is no number";
  }
  if (!(limit >= 1 && limit < 1e9 && top_k >= 0 && top_k < 1e9 && seed >= 0 && seed < 9e15)) {
    return "an option is out of range";
  }
  options.max_new_tokens = static_cast<int64_t>(limit);
  options.sampling = {
      static_cast<float>(temperature), static_cast<int64_t>(top_k), static_cast<float>(top_p),
      static_cast<uint64_t>(seed)};
  std::optional<std::string> task = usual;
  if (line.contains("task")) {
    if (line["task"].is_null()) {
      task.reset();
    } else if (line["task"].is_string()) {
      task = line["task"].get<std::string>();
    } else {
      return "task: give a name or null";
    }
  }
  const hydrapack::Error used = session.use(task);
  if (!used.ok()) return used.message;
  const auto made = session.generate(ids, options, [](int64_t token) {
    std::printf("{\"token\":%lld}\n", static_cast<long long>(token));
    std::fflush(stdout);
    return true;
  });
  if (!made.ok()) return made.error().message;
  const Json out = {
      {"finish", name(made.value().finish)},
      {"ids", made.value().ids},
      {"stats", stats_json(session.stats())}};
  std::printf("%s\n", out.dump().c_str());
  return "";
}

int serve(hydrapack::Session& session, const std::optional<std::string>& task) {
  std::string line;
  while (std::getline(std::cin, line)) {
    if (line.empty()) continue;
    const std::string error = answer(session, line, task);
    // Replaced, not refused: a message may quote bytes that are no UTF-8.
    const auto dump = [](const Json& json) {
      return json.dump(-1, ' ', false, Json::error_handler_t::replace);
    };
    if (!error.empty()) std::printf("%s\n", dump({{"error", error}}).c_str());
    std::fflush(stdout);
  }
  return 0;
}

int bench(hydrapack::Session& session, const std::optional<std::string>& task) {
  std::vector<double> swaps, steps, prefills;
  const auto& tasks = session.tasks();
  for (int i = 0; i < 40; i++) {
    if (!session.use(tasks[i % tasks.size()].name).ok()) return fail("a swap failed");
    if (!session.use(std::nullopt).ok()) return fail("a swap failed");
    if (!session.use(tasks[(i + 1) % tasks.size()].name).ok()) return fail("a swap failed");
    swaps.push_back(session.stats().swap_ms);
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
  const Json out = {
      {"load_ms", session.stats().load_ms},
      {"swap_ms", {{"median", median(swaps)}, {"min", least(swaps)}}},
      {"prefill_tokens", length},
      {"prefill_ms", {{"median", median(prefills)}, {"min", least(prefills)}}},
      {"decode_ms", {{"median", median(steps)}, {"min", least(steps)}}},
      {"resident_bytes_loaded", loaded},
      {"resident_bytes_decoding", session.stats().resident_bytes},
      {"model_bytes", session.stats().model_bytes},
      {"vector_bytes", session.stats().vector_bytes}};
  std::printf("%s\n", out.dump().c_str());
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
  const Json out = {
      {"resident_bytes_before", early}, {"resident_bytes_after", session.stats().resident_bytes}};
  std::printf("%s\n", out.dump().c_str());
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<std::string> files;
  std::optional<std::string> task;
  hydrapack::OpenOptions options;
  bool timed = false;
  long swaps = 0;
  for (int i = 1; i < count; i++) {
    const std::string argument = arguments[i];
    if (argument == "--help") {
      std::fputs(kHelp, stdout);
      return 0;
    } else if (argument == "--task" && i + 1 < count) {
      task = arguments[++i];
    } else if (argument == "--swaps" && i + 1 < count) {
      swaps = std::atol(arguments[++i]);
      if (swaps < 10) return fail("--swaps: give a number of 10 or more");
    } else if (argument == "--no-digests") {
      options.check_digests = false;
    } else if (argument == "--bench") {
      timed = true;
    } else if (argument.size() > 1 && argument[0] == '-') {
      return fail(argument + ": no such option; --help lists them");
    } else {
      files.push_back(argument);
    }
  }
  if (files.size() != 2) return fail("give MODEL.pte and PACKAGE; --help has examples");
  auto opened = hydrapack::Session::open(files[0], files[1], options);
  if (!opened.ok()) return fail(opened.error().message);
  hydrapack::Session& session = *opened.value();
  if (swaps > 0) return swap_often(session, swaps);
  return timed ? bench(session, task) : serve(session, task);
}
