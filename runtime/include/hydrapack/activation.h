// Which package is in use: packages/current, with packages/previous to fall back to.
//
//   const auto switched = hydrapack::activate("files/packages", "download/package");
//   if (!switched.ok()) { puts(switched.error().message.c_str()); return 1; }
//   auto opened = hydrapack::open_last_good("model.pte", "files/packages");
//   if (!opened.ok()) { puts(opened.error().message.c_str()); return 1; }
//
// Both are symbolic links to folders beside them, package-…. A new package is first copied there, whole
// and under a name of its own, and then one link after the other is renamed into place. Nothing that a
// link names is ever changed: whenever the process is killed, `current` names a whole package. Python's
// session does the same on the same folder.
#pragma once

#include <memory>
#include <string>

#include <hydrapack/engine.h>
#include <hydrapack/result.h>

namespace hydrapack {

class Session;

// Make a package the current one, and the one that was so the previous one; the folder in packages
// that is current now. It is copied, its files compared with its manifest; packages/previous is only
// named anew: the way back. Folders that no link names any more are removed. One process at a time.
// NotFound, Invalid, Mismatch: the package. Io: packages cannot be written.
Result<std::string> activate(const std::string& packages, const std::string& package);

struct LastGood {
  std::unique_ptr<Session> session;  // include <hydrapack/session.h>
  bool fell_back = false;            // it is on packages/previous
};

// A session on the current package, self-tested; where it does not open, on the previous one. Neither
// opens: the current one's error. The links stay as they are.
Result<LastGood> open_last_good(
    const std::string& model, const std::string& packages, OpenOptions options = {});

}  // namespace hydrapack
