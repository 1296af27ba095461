// Token ids in, token ids out, as JSON lines; help_text() says how.
#include <cstdio>

#include <hydrapack/activation.h>

#include "cli.h"

namespace {

int run(hydrapack::Session& session, const Arguments& arguments) {
  if (arguments.swaps > 0) return swap_often(session, arguments.swaps);
  if (arguments.bench) return bench(session, arguments.task, arguments.open.check_digests);
  return serve(session, arguments.task);
}

hydrapack::Result<std::unique_ptr<hydrapack::Session>> open(const Arguments& asked) {
  if (!asked.last_good) return hydrapack::Session::open(asked.model, asked.package, asked.open);
  auto found = hydrapack::open_last_good(asked.model, asked.package, asked.open);
  if (!found.ok()) return found.error();
  if (found.value().fell_back) std::fputs("hydrapack-run: warning: on the previous package\n", stderr);
  return std::move(found.value().session);
}

int refuse(const hydrapack::Error& error) {
  print(error_json(error));
  return fail(error.message);
}

}  // namespace

int main(int count, char** given) {
  const auto arguments = read_arguments(count, given);
  if (!arguments.ok()) return fail(arguments.error().message);
  const Arguments& asked = arguments.value();
  if (asked.help) {
    std::fputs(help_text(), stdout);
    return 0;
  }
  if (!asked.activate.empty()) {
    const auto switched = hydrapack::activate(asked.activate, asked.package);
    if (!switched.ok()) return refuse(switched.error());
    print({{"current", switched.value()}});
    return 0;
  }
  const auto opened = open(asked);
  if (!opened.ok()) return refuse(opened.error());
  return run(*opened.value(), asked);
}
