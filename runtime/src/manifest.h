#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <hydrapack/session.h>

#include "files.h"

namespace hydrapack {

// The most that a task or a caller may ask for, of an answer or of top_k.
constexpr int64_t kMaxTokens = 1 << 20;
// Bytes of a task's name.
constexpr size_t kMaxTaskName = 200;

struct ManifestTask {
  Task shown;
  std::vector<int64_t> route;
  std::string head_sha256;  // of the pieces of its head; empty without banks
};

struct ManifestFile {
  std::string name;
  int64_t bytes = 0;
  std::string sha256;
};

struct Manifest {
  std::string base_model;
  std::string weights_sha256;    // of the base that the package is bound to; empty: of none
  std::string tokenizer_sha256;  // likewise
  std::string layout_digest;
  int64_t rank = 0;
  int64_t heads = 0;
  std::vector<int64_t> modules;  // heads of each
  std::string fallback;
  std::vector<ManifestFile> files;
  std::vector<ManifestTask> tasks;
  // Where adapters.pte holds heads and nothing else (docs/manifest.md): for each module the pieces of
  // its first head, which those of the others follow; what lies around them, and its SHA-256. That is
  // empty where the file is checked as a whole only.
  std::vector<std::vector<Span>> first_heads;
  std::vector<Span> shared;
  std::string shared_sha256;

  // The pieces of a route's head, module by module.
  std::vector<Span> head(const std::vector<int64_t>& route) const;

  // Null: no such file. adapters.pte is always there.
  const ManifestFile* file(const std::string& name) const;

  // The task called name, or what the fallback has for it; null is the bare base model. NotFound.
  Result<const ManifestTask*> find(const std::string& name) const;
};

// Parse and check the text of a manifest.json (docs/manifest.md); where names it in messages.
// Nothing in the text is trusted: of the keys that the device uses, missing, mistyped or
// out-of-range ones are Invalid. The others are ignored. Then, if asked, package_digest: Mismatch.
Result<Manifest> parse_manifest(
    const std::string& text, const std::string& where, bool check_digest);

// Whether a file of a package may be called so: no path, no leading dot.
bool is_plain_name(const std::string& name);

}  // namespace hydrapack
