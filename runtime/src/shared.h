// What the sessions of an engine share; engine.cpp fills it, and only head() and open_forward()
// change anything afterwards.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <hydrapack/engine.h>

#include "manifest.h"
#include "match.h"
#include "package.h"
#include "weight_cache.h"

namespace hydrapack {

struct Engine::Shared {
  Paths paths;
  bool check_digests = true;
  Manifest manifest;
  std::vector<Task> tasks;
  std::vector<int64_t> eos_ids;
  Limits limits;
  AdapterSizes sizes;
  std::vector<float> a;  // dequantized; sessions bind it as it lies
  int64_t model_bytes = 0;

  // Holds the mapped program and runs its constants only: forward is loaded once a session.
  std::unique_ptr<executorch::extension::Module> model;
  std::unique_ptr<executorch::extension::Module> adapters;  // null without a package
  std::optional<WeightCache> weights;  // none: each session packs its own
  std::shared_ptr<OpenFile> unchecked;  // adapters.pte, if each head is checked when it is first used
  std::set<const ManifestTask*> checked;
  std::mutex heads;  // one thread at a time
  // One thread at a time opens or closes a session, of any engine: XNNPACK keeps a workspace and caches
  // for the process.
  inline static std::mutex openings;

  // The files and what they say of each other, then the programs. As Engine::open.
  Error read(const OpenOptions& options);
  Error load_programs();
  Error take_adapter();
  Error take_no_adapter();  // without a package: the matrices are bound all the same, and never read

  // A task's head, as the matrices of b lie one after the other. Mismatch: it is damaged. Runtime.
  Error head(const ManifestTask& task, std::vector<float>& b);

  // The program with a forward, and so a cache of keys and values, of its own. Invalid.
  Result<std::unique_ptr<executorch::extension::Module>> open_forward();
  std::unique_ptr<executorch::extension::Module> load_forward();  // null: it is damaged
};

}  // namespace hydrapack
