// One copy of XNNPACK's packed weights for all sessions: in a file, made when a program is first loaded
// and mapped afterwards, or in memory.
#pragma once

#include <memory>
#include <string>

#include <executorch/extension/module/module.h>
#include <hydrapack/result.h>

namespace hydrapack {

class WeightCache {
 public:
  // One for the process: weights of one content are packed once, whoever's they are. One model at a
  // time, since XNNPACK tells weights apart by their integers alone, and would take another's scales
  // for this one's. Invalid: another model has it.
  static Result<WeightCache> in_memory(const std::string& model);

  // The file of one program in a folder of the app's own. XNNPACK trusts what is in it, so its size,
  // and if asked its SHA-256, are compared with those that keep() noted beside it; a file that does
  // not fit is made again. NotFound, Io: the folder. Invalid: its path is too long.
  static Result<WeightCache> in(
      const std::string& folder, const std::string& model_sha256, bool check_digest);

  // What the module's methods are loaded with from now on, so that they take their weights from
  // here, or put them here. The module has its program.
  executorch::runtime::Error load(executorch::extension::Module& module) const;

  // Call once the first methods are loaded: a file that they made gets its place and its note. True:
  // it has, and they are to be loaded again, from there. If it cannot get there, the next engine makes
  // it again, and the sessions of this one share in memory; where another model has that, each packs
  // its own.
  bool keep(const std::string& model);

 private:
  // None of these set: nothing is shared.
  std::string path_;  // where it belongs; empty in memory
  std::string made_;  // where it is being made; empty where it is there
  std::shared_ptr<const std::string> model_;  // in memory: whose it is, as long as this lives
};

}  // namespace hydrapack
