// Token ids in, token ids out, as JSON lines; help_text() says how.
#include <cstdio>

#include <executorch/runtime/platform/platform.h>
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

int apply(const Arguments& asked) {
  const auto error =
      hydrapack::apply_patch(asked.package, asked.patch, asked.target, asked.open.public_key);
  if (!error.ok()) {
    print(error_json(error));
    return fail(error.message);
  }
  print({{"applied", asked.target}});
  return 0;
}

int run(hydrapack::Session& session, const Arguments& arguments) {
  if (arguments.swaps > 0) return swap_often(session, arguments.swaps);
  if (arguments.bench) return bench(session, arguments.task, arguments.open.check_digests);
  return serve(session, arguments.task);
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
  const auto opened = hydrapack::Session::open(asked.model, asked.package, asked.open);
  if (!opened.ok()) {
    print(error_json(opened.error()));
    return fail(opened.error().message);
  }
  return run(*opened.value(), asked);
}
