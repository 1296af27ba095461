// What the sessions of one model and one package share: opened and checked once.
//
//   auto opened = hydrapack::Engine::open("model.pte", "package");
//   if (!opened.ok()) { puts(opened.error().message.c_str()); return 1; }
//   auto first = opened.value().open_session();
//   auto second = opened.value().open_session();
//   if (!first.ok() || !second.ok()) return 1;
//
// Shared: the mapped files, the manifest, the tasks, the adapter's matrices A, and the program that
// computes heads. A session's own: its cache of keys and values, memory for activations, the head in
// use, its text, and XNNPACK's packed copy of the model's weights, unless OpenOptions::weight_cache or
// share_weights keeps one copy for all.
//
// Threads: every call is for any thread. Sessions of one engine may run on threads of their own, one
// thread a session. XNNPACK runs one of them at a time, with all the threads of its pool: two answers at
// once are not done twice as soon.
//
// Lifetimes: an Engine is a handle; copies of it and its sessions hold what is behind it, which ends
// with the last of them. model.pte and adapters.pte are mapped: they must stay as they are so long.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <hydrapack/result.h>

namespace hydrapack {

class Session;

struct OpenOptions {
  // Compare the SHA-256 of the manifest, adapters.pte and model.pte (which model.pte.json, beside it,
  // states). A task's head is compared when it is first used. Off, sizes, schema, layout and the
  // base that the package is bound to are checked all the same.
  bool check_digests = true;
  // 64 hex digits: manifest.sig must be this Ed25519 key's signature of the manifest. Empty: no
  // signature is asked for. Invalid in a build without libsodium. The signature covers the files
  // by their digests, so leave check_digests on with it.
  std::string public_key = {};
  // A folder of the app's own: XNNPACK's packed copy of the model's weights is kept there, so that
  // the next open maps it and need not pack again. Empty: none. XNNPACK believes what is in it: the
  // folder is for nobody else to write to. NotFound: no such folder, or no model.pte.json.
  std::string weight_cache = {};
  // Sessions share one packed copy of the weights in memory, where no folder is given; two sessions
  // without either have two. One model at a time in a process: Invalid while another is open with it.
  bool share_weights = false;
  // Replay the package's golden outputs before anything else. NotFound: it has none. Mismatch: this
  // device gives others.
  bool self_test = false;
  // Compare all heads when opening, and not each when it is first used: reads the whole of adapters.pte.
  bool check_heads = false;
};

// How step chooses among the logits.
struct Sampling {
  float temperature = 0;  // 0 to 100; 0 is greedy
  int64_t top_k = 0;      // 0 to 2^20, tokens to choose among; 0 for all
  float top_p = 1;        // above 0, at most 1: least probability of the tokens to choose among
};

struct Task {
  std::string name;
  std::string prompt_template;
  std::vector<std::string> stop;
  std::string language;  // empty if unknown
  int64_t max_new_tokens = 128;
  Sampling sampling;
};

class Engine {
 public:
  // An empty package: the bare base model alone, without tasks. NotFound, Io: a file. Invalid: a malformed file or option. Mismatch: a digest, the signature,
  // rank or layout, or the package is bound to another base model.
  static Result<Engine> open(
      const std::string& model, const std::string& package, const OpenOptions& options = {});

  // A session with a text of its own, on the bare base model; include <hydrapack/session.h>. A second
  // call waits for the first. Invalid: the model is damaged where only a digest would find it.
  Result<std::unique_ptr<Session>> open_session() const;

  const std::vector<Task>& tasks() const;
  int64_t max_context() const;
  int64_t vocab_size() const;

 private:
  friend class Session;
  struct Shared;
  explicit Engine(std::shared_ptr<Shared> shared);
  std::shared_ptr<Shared> shared_;
};

}  // namespace hydrapack
