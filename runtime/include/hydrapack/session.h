// Generation on the ExecuTorch runtime, with heads swapped per task.
//
//   auto opened = hydrapack::Session::open("model.pte", "package");
//   if (!opened.ok()) { puts(opened.error().message.c_str()); return 1; }
//   hydrapack::Session& session = *opened.value();
//   const hydrapack::Error used = session.use("summary");
//   if (!used.ok()) { puts(used.message.c_str()); return 1; }
//   const std::vector<int64_t> ids = {504, 2365};  // the prompt, from your tokenizer
//   auto made = session.generate(ids, {}, [](int64_t token) {
//     printf("%lld ", static_cast<long long>(token));
//     return true;  // go on
//   });
//   if (!made.ok()) { puts(made.error().message.c_str()); return 1; }
//   puts(hydrapack::name(made.value().finish));
//
// Threads: a session is for one thread at a time; a call while another is inside, a running answer's
// own callback included, returns Busy. From any thread at any time: stop(), position(), task(),
// stats(), and what never changes (tasks(), max_context(), vocab_size()).
// Several sessions may live in one process, of one engine or of several (engine.h).
//
// Lifetimes: a session holds what it needs of its engine, which may be dropped before it. Its files
// are mapped and must stay as they are while it lives. Destroy it when no other thread is inside.
//
// Errors: nothing throws but for want of memory, or what your own callbacks throw. A refused call
// (Invalid, ContextFull, Busy) leaves the text as it is; a refused use, Busy apart, leaves the bare
// base model at position 0. After Runtime the text is forgotten.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <hydrapack/engine.h>
#include <hydrapack/result.h>

namespace hydrapack {

// Where nothing is said, the task's own; of the bare base model 128 tokens, greedy, no stop strings.
struct GenerateOptions {
  std::optional<int64_t> max_new_tokens = {};  // 1 to 2^20
  std::optional<float> temperature = {};       // these three as in Sampling
  std::optional<int64_t> top_k = {};
  std::optional<float> top_p = {};
  uint64_t seed = 0;
  // Guess tokens from the text so far and check several a call (docs/runtime-contract.md): faster
  // where the answer repeats its input.
  bool lookup = false;
  // End the answer as the model's end tokens do, which always end it.
  std::optional<std::vector<int64_t>> stop_ids = {};
  // The bytes of a token as text. With it the session finds the task's stop strings itself. Without,
  // a task that has stop strings needs stop_ids: empty, if the caller looks for the strings.
  std::function<std::string(int64_t)> token_text = {};
};

enum class Finish {
  Stop,     // an end token, a stop id or a stop string
  Length,   // max_new_tokens
  Context,  // the context is full
  Stopped,  // the callback said no, or stop() was called
};

// stop, length, context, stopped.
inline const char* name(Finish finish) {
  switch (finish) {
    case Finish::Stop: return "stop";
    case Finish::Length: return "length";
    case Finish::Context: return "context";
    case Finish::Stopped: return "stopped";
  }
  return "";
}

struct Generated {
  // Without the end token or stop id. The token that completes a stop string is there: text before
  // the string may be in it.
  std::vector<int64_t> ids;
  Finish finish = Finish::Length;
  std::string text;  // with token_text: of the ids, up to the stop string
};

// Times in ms, of the last call of their kind.
struct Stats {
  double load_ms = 0;
  double swap_ms = 0;
  double prefill_ms = 0;
  int64_t prefill_tokens = 0;
  double decode_ms = 0;  // all steps of the last generation together
  int64_t decode_tokens = 0;
  int64_t decode_calls = 0;  // of the program: fewer than tokens with lookup
  int64_t model_bytes = 0;     // mapped, not copied
  int64_t adapter_bytes = 0;    // the matrices of a and b in use, dequantized
  int64_t resident_bytes = 0;  // of the whole process, when asked; 0 where unknown
};

// A clear golden token that came out otherwise.
struct GoldenDifference {
  std::string task;
  int64_t prompt = 0;  // its place among the task's, from 0
  int64_t token = 0;   // its place in the answer, from 0
  int64_t expected = 0;
  int64_t found = 0;
  double margin = 0;  // of the expected one, when it was packed
};

struct SelfTest {
  std::vector<std::string> tasks;  // that were replayed
  int64_t tokens = 0;     // compared, of all tasks
  int64_t near_ties = 0;  // other tokens at margins below the bound, which pass
  std::vector<GoldenDifference> differences;

  bool passed() const { return differences.empty(); }
  std::string text() const;  // one line
};

class Session {
 public:
  // An engine of its own and a session on it; errors as of Engine::open and open_session.
  static Result<std::unique_ptr<Session>> open(
      const std::string& model, const std::string& package, const OpenOptions& options = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Replay the package's golden outputs (docs/runtime-contract.md); the bare base model is in use
  // afterwards. NotFound: the package has none. Io, Invalid, Mismatch: golden.json is not its own.
  Result<SelfTest> self_test();

  // Swap to the head of a task, or to the bare base model; the position starts again at 0.
  // With keep_prefix the first so many positions stay: refused unless they were computed under
  // the same head, since another head's cache is wrong.
  // NotFound: no such task, and the manifest has no fallback. Invalid: keep_prefix. Runtime: the
  // head cannot be computed. After each of them the bare base model is in use, at position 0.
  Error use(const std::optional<std::string>& task, int64_t keep_prefix = 0);

  // The task in use; empty for the bare base model.
  std::string task() const;
  const std::vector<Task>& tasks() const;

  // Append ids to the text. Invalid: none, or an id out of the vocabulary. ContextFull.
  Error prefill(const std::vector<int64_t>& ids);

  // The next token after the text; it joins the text with the next step or prefill. An end token is
  // given as any other: where to stop is the caller's. ContextFull. Invalid: no text, an option out
  // of range, or the logits are not all finite.
  Result<int64_t> step(const Sampling& sampling = {});

  // Start the draws of the steps that follow anew; generate does it by its own options.
  Error seed(uint64_t seed);

  // The logits after the text, (vocab_size), valid until the next call.
  Result<const float*> logits();

  // A fresh text: ids, then tokens until something of Finish. The callback gets each token of
  // Generated::ids and returns whether to go on.
  Result<Generated> generate(
      const std::vector<int64_t>& ids,
      const GenerateOptions& options = {},
      const std::function<bool(int64_t)>& callback = {});

  // End the answer being made, before its next token; nothing if none is.
  void stop();

  // Forget the text.
  Error reset();

  int64_t position() const;
  int64_t max_context() const;
  int64_t vocab_size() const;
  Stats stats() const;

 private:
  friend class Engine;
  struct State;
  explicit Session(std::unique_ptr<State> state);
  Error check_self_test();
  std::unique_ptr<State> state_;
};

}  // namespace hydrapack
