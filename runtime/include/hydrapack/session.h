// Generation on the ExecuTorch runtime, with heads swapped per task.
//
//   auto opened = hydrapack::Session::open("model.pte", "package");
//   if (!opened.ok()) { puts(opened.error().message.c_str()); return 1; }
//   hydrapack::Session& session = *opened.value();
//   session.use("summary");
//   session.generate(ids, {}, [](int64_t token) { printf("%lld ", (long long)token); return true; });
//
// A session is for one thread at a time; a call while another thread is inside returns Busy.
// Sessions share nothing: several may live in one process.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <hydrapack/result.h>

#if defined(__GNUC__)
#define HYDRAPACK_EXPORT __attribute__((visibility("default")))
#else
#define HYDRAPACK_EXPORT
#endif

namespace hydrapack {

struct OpenOptions {
  // Compare the SHA-256 of the manifest, adapters.pte and model.pte (which model.pte.json, beside it,
  // states). Off, sizes, schema and layout are checked all the same.
  bool check_digests = true;
};

struct Sampling {
  float temperature = 0.0f;  // 0 is greedy
  int64_t top_k = 0;         // tokens to choose among; 0 for all
  float top_p = 1.0f;        // least probability of the tokens to choose among
  uint64_t seed = 0;
};

struct GenerateOptions {
  int64_t max_new_tokens = 128;
  Sampling sampling;
  std::vector<int64_t> stop_ids;  // beside the model's end tokens
};

enum class Finish { StopId, MaxTokens, ContextFull, Callback };

struct Generated {
  std::vector<int64_t> ids;  // without the stop id
  Finish finish = Finish::MaxTokens;
};

// Times in ms, of the last call of their kind.
struct Stats {
  double load_ms = 0;
  double swap_ms = 0;
  double prefill_ms = 0;
  int64_t prefill_tokens = 0;
  double decode_ms = 0;       // all steps of the last generation together
  int64_t decode_tokens = 0;
  int64_t model_bytes = 0;    // mapped, not copied
  int64_t vector_bytes = 0;   // a, b and a zero b
  int64_t resident_bytes = 0; // of the whole process, when asked; 0 where unknown
};

struct Task {
  std::string name;
  std::string prompt_template;
  std::vector<std::string> stop;
  std::string language;  // empty if unknown
};

class HYDRAPACK_EXPORT Session {
 public:
  // NotFound: a file is missing. Invalid: a malformed one. Mismatch: digests, layout or rank.
  static Result<std::unique_ptr<Session>> open(
      const std::string& model, const std::string& package, const OpenOptions& options = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Swap to the head of a task, or to the bare base model; the position starts again at 0.
  // With keep_prefix the first so many positions stay: refused unless they were computed under
  // the same head, since another head's cache is wrong.
  // NotFound: no such task, and the manifest has no fallback.
  Error use(const std::optional<std::string>& task, int64_t keep_prefix = 0);

  // The task in use; empty for the bare base model.
  std::string task() const;
  const std::vector<Task>& tasks() const;

  // Append ids to the text. Invalid: none, or an id out of the vocabulary. ContextFull.
  Error prefill(const std::vector<int64_t>& ids);

  // The next token after the text; it joins the text with the next step. ContextFull.
  Result<int64_t> step(const Sampling& sampling = {});

  // The logits after the text, (vocab_size), valid until the next call.
  Result<const float*> logits();

  // A fresh text: ids, then tokens until a stop id, the limit, a full context, or until the
  // callback returns false.
  Result<Generated> generate(
      const std::vector<int64_t>& ids,
      const GenerateOptions& options = {},
      const std::function<bool(int64_t)>& callback = {});

  // Forget the text.
  Error reset();

  int64_t position() const;
  int64_t max_context() const;
  int64_t vocab_size() const;
  Stats stats() const;

 private:
  struct State;
  explicit Session(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace hydrapack
