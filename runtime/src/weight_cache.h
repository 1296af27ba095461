// XNNPACK's packed weights in a file: made when a program is first loaded, mapped afterwards.
#pragma once

#include <string>

#include <executorch/extension/module/module.h>
#include <hydrapack/result.h>

namespace hydrapack {

// The file of one program in a folder of the app's own. XNNPACK trusts what is in it, so its size,
// and if asked its SHA-256, are compared with those that keep() noted beside it; a file that does
// not fit is made anew.
class WeightCache {
 public:
  // NotFound, Io: the folder. Invalid: its path is too long.
  static Result<WeightCache> in(
      const std::string& folder, const std::string& model_sha256, bool check_digest);

  // Loads the program so that its methods take their weights from the file, or make it.
  executorch::runtime::Error load(executorch::extension::Module& module) const;

  // Call once the methods are loaded: a file that was made gets its place and its note. One that
  // cannot is left out: the next load makes it again.
  void keep() const;

 private:
  std::string path_;  // where it belongs
  std::string made_;  // where it is being made; empty where it is there
};

}  // namespace hydrapack
