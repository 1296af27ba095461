// The command line: what it asks for, or what is wrong with it.
#include <cstdlib>
#include <vector>

#include "cli.h"

using hydrapack::Code;
using hydrapack::Error;

const char* help_text() {
  static constexpr char kHelp[] = R"(Usage: hydrapack-run MODEL.pte [PACKAGE] [options]
       hydrapack-run --apply PATCH PACKAGE TARGET [--public-key KEY]

Reads one JSON object a line from standard input and writes JSON lines. Without PACKAGE the bare base
model answers.

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
  --no-digests      do not compare SHA-256 digests
  --check-heads     compare all heads when opening, not each when it is first used
  --weight-cache DIR  keep XNNPACK's packed weights there: the next start is faster
  --self-test       no input: replay the package's golden outputs, print one JSON line of what passes
  --last-good       PACKAGE is a folder of packages: open current, else previous, self-tested
  --activate DIR    no input, and no MODEL.pte: make PACKAGE current in DIR
  --public-key KEY  manifest.sig must be of this Ed25519 key: 64 hex digits, or a PEM file
  --bench           no input: time swaps, a prefill of 128 tokens and 64 steps, print one JSON line
  --swaps N         no input: N random swaps, print resident bytes before and after
  --apply PATCH     no input: make the package at TARGET (which may be PACKAGE) of PACKAGE and what
                    hydrapack diff wrote; with --public-key the patch must be signed by that key
  --help

Exit code: 0, 1 where --self-test finds another token, or 2 for unusable input.

Examples:
  echo '{"ids": [9906, 1917]}' | hydrapack-run model.pte package --task grammar
  hydrapack-run model.pte package --self-test
  hydrapack-run model.pte package --bench
  hydrapack-run --apply 1-to-2.patch package package --public-key release.pub.pem
  hydrapack-run --activate packages download/package
)";
  return kHelp;
}

namespace {

// Takes an option that has a value. False: there is no such option.
hydrapack::Result<bool> take_value(
    const std::string& option, const std::string& value, Arguments& arguments) {
  if (option == "--task") {
    arguments.task = value;
  } else if (option == "--apply") {
    arguments.patch = value;
  } else if (option == "--swaps") {
    arguments.swaps = std::atol(value.c_str());
    if (arguments.swaps < 10) return Error{Code::Invalid, "--swaps: give a number of 10 or more"};
  } else if (option == "--public-key") {
    const auto key = public_key_of(value);
    if (!key.ok()) return key.error();
    arguments.open.public_key = key.value();
  } else if (option == "--activate") {
    arguments.activate = value;
  } else if (option == "--weight-cache") {
    arguments.open.weight_cache = value;
  } else {
    return false;
  }
  return true;
}

bool take_flag(const std::string& option, Arguments& arguments) {
  if (option == "--help") {
    arguments.help = true;
  } else if (option == "--no-digests") {
    arguments.open.check_digests = false;
  } else if (option == "--check-heads") {
    arguments.open.check_heads = true;
  } else if (option == "--self-test") {
    arguments.self_test = true;
  } else if (option == "--last-good") {
    arguments.last_good = true;
  } else if (option == "--bench") {
    arguments.bench = true;
  } else {
    return false;
  }
  return true;
}

}  // namespace

hydrapack::Result<Arguments> read_arguments(int count, char** given) {
  Arguments arguments;
  std::vector<std::string> files;
  for (int i = 1; i < count; i++) {
    const std::string argument = given[i];
    if (argument.size() < 2 || argument[0] != '-') {
      files.push_back(argument);
      continue;
    }
    if (take_flag(argument, arguments)) {
      if (arguments.help) return arguments;
      continue;
    }
    if (i + 1 < count) {
      const auto taken = take_value(argument, given[i + 1], arguments);
      if (!taken.ok()) return taken.error();
      if (taken.value()) {
        i++;
        continue;
      }
    }
    return Error{
        Code::Invalid, argument + ": no such option, or it lacks its value; --help lists them"};
  }
  if (!arguments.patch.empty()) {
    if (files.size() != 2) {
      return Error{Code::Invalid, "--apply: give PACKAGE and TARGET; --help has examples"};
    }
    arguments.package = files[0];
    arguments.target = files[1];
    return arguments;
  }
  if (!arguments.activate.empty()) {
    if (files.size() != 1) {
      return Error{Code::Invalid, "--activate: give PACKAGE; --help has examples"};
    }
    arguments.package = files[0];
    return arguments;
  }
  if (files.empty() || files.size() > 2) {
    return Error{Code::Invalid, "give MODEL.pte and PACKAGE; --help has examples"};
  }
  arguments.model = files[0];
  if (files.size() == 2) {
    arguments.package = files[1];
  } else if (arguments.bench || arguments.swaps > 0 || arguments.self_test) {
    return Error{Code::Invalid, "--bench, --swaps and --self-test: need a PACKAGE"};
  }
  return arguments;
}
