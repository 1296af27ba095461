// Token ids in, token ids out, as JSON lines; help_text() says how.
#include <cstdio>

#include <hydrapack/patch.h>

#include "cli.h"

namespace {

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
