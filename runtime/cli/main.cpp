// Token ids in, token ids out, as JSON lines; help_text() says how.
#include <cstdio>

#include <executorch/runtime/platform/platform.h>
#include <hydrapack/activation.h>
#include <hydrapack/patch.h>

#include "cli.h"

namespace {

// ExecuTorch's notices, as of the files in which it looks for the kind of CPU, tell a caller nothing.
void log_errors(
    et_timestamp_t,
    et_pal_log_level_t level,
    const char* file,
    const char*,
    size_t line,
    const char* message,
    size_t length) {
  if (level != kError && level != kFatal) return;
  std::fprintf(
      stderr, "executorch: %s:%zu: %.*s\n", file, line, static_cast<int>(length), message);
}

int refuse(const hydrapack::Error& error) {
  print(error_json(error));
  return fail(error.message);
}

int apply(const Arguments& asked) {
  const auto error =
      hydrapack::apply_patch(asked.package, asked.patch, asked.target, asked.open.public_key);
  if (!error.ok()) return refuse(error);
  print({{"applied", asked.target}});
  return 0;
}

int self_test(hydrapack::Session& session) {
  const auto test = session.self_test();
  if (!test.ok()) return refuse(test.error());
  print(self_test_json(test.value()));
  return test.value().passed() ? 0 : 1;
}

int run(hydrapack::Session& session, const Arguments& arguments) {
  if (arguments.self_test) return self_test(session);
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

}  // namespace

int main(int count, char** given) {
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(log_errors, __FILE__));
  const auto arguments = read_arguments(count, given);
  if (!arguments.ok()) return fail(arguments.error().message);
  const Arguments& asked = arguments.value();
  if (asked.help) {
    std::fputs(help_text(), stdout);
    return 0;
  }
  if (!asked.patch.empty()) return apply(asked);
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
