// Token ids in, token ids out, as JSON lines; see kHelp.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cli.h"

namespace {

constexpr char kHelp[] = R"(Usage: hydrapack-run MODEL.pte PACKAGE [options]

Reads one JSON object a line from standard input and writes JSON lines.

  in:   {"id": 7, "ids": [1, 2, 3], "task": "summary", "max_new_tokens": 64, "temperature": 0,
         "top_k": 0, "top_p": 1, "seed": 0, "lookup": false, "stop_ids": []}
        "ids" is needed. Without "task" it is the one of --task; null is the bare base model.
        What else is missing is the task's own. A task that has stop strings needs "stop_ids"
        (which may be empty): the caller looks for the strings.
        {"stop": 7} ends the answer with that "id", running or waiting; it is read at once.
  out:  {"id": 7, "token": 5} for each token, then
        {"id": 7, "finish": "stop", "ids": [...], "stats": {...}}, or
        {"id": 7, "kind": "Invalid", "error": "..."} for a line that cannot be answered.
        "finish" is stop, length, context or stopped. Without an "id" in, none out.
        Files that cannot be opened give one {"kind": ..., "error": ...} and exit code 2.

Options:
  --task NAME       the task of lines that name none
  --no-digests      do not compare SHA-256 digests when opening
  --weight-cache DIR  keep XNNPACK's packed weights there: the next start is faster
  --public-key KEY  manifest.sig must be of this Ed25519 key: 64 hex digits, or a PEM file
  --bench           no input: time swaps, a prefill of 128 tokens and 64 steps, print one JSON line
  --swaps N         no input: N random swaps, print resident bytes before and after
  --help

Exit code: 0, or 2 for unusable input.

Examples:
  echo '{"ids": [9906, 1917]}' | hydrapack-run model.pte package --task grammar
  hydrapack-run model.pte package --bench
)";

}  // namespace

int fail(const std::string& message) {
  std::fprintf(stderr, "hydrapack-run: error: %s\n", message.c_str());
  return 2;
}

void print(const Json& json) {
  std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  std::fflush(stdout);
}

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
    } else if (argument == "--public-key" && i + 1 < count) {
      const auto key = public_key_of(arguments[++i]);
      if (!key.ok()) return fail(key.error().message);
      options.public_key = key.value();
    } else if (argument == "--weight-cache" && i + 1 < count) {
      options.weight_cache = arguments[++i];
    } else if (argument == "--no-digests") {
      options.check_digests = false;
    } else if (argument == "--bench") {
      timed = true;
    } else if (argument.size() > 1 && argument[0] == '-') {
      return fail(argument + ": no such option, or it lacks its value; --help lists them");
    } else {
      files.push_back(argument);
    }
  }
  if (files.size() != 2) return fail("give MODEL.pte and PACKAGE; --help has examples");
  auto opened = hydrapack::Session::open(files[0], files[1], options);
  if (!opened.ok()) {
    print({{"error", opened.error().message}, {"kind", name(opened.error().code)}});
    return fail(opened.error().message);
  }
  hydrapack::Session& session = *opened.value();
  if (swaps > 0) return swap_often(session, swaps);
  return timed ? bench(session, task, options.check_digests) : serve(session, task);
}
