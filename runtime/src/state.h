// What a session is made of; session.cpp guards it.
#pragma once

#include <atomic>
#include <chrono>
#include <mutex>

#include <executorch/extension/module/module.h>
#include <hydrapack/session.h>

#include "lookup.h"
#include "sampler.h"
#include "shared.h"

namespace hydrapack {

using Clock = std::chrono::steady_clock;

inline double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

// The options of one answer, with the task's own where the caller says nothing.
struct Plan {
  int64_t max_new_tokens = 128;
  Sampling sampling;
  uint64_t seed = 0;
  bool lookup = false;
  std::vector<int64_t> ends;
  std::vector<std::string> stop;
  std::function<std::string(int64_t)> token_text;
};

struct Session::State {
  explicit State(std::shared_ptr<Engine::Shared> shared) : engine(std::move(shared)) {}
  // What XNNPACK keeps for all sessions is not for one to leave while another comes.
  ~State() {
    const std::lock_guard<std::mutex> lock(engine->openings);
    model.reset();
  }
  // A session on the engine; its load_ms is counted from started.
  static Result<std::unique_ptr<Session>> open(
      std::shared_ptr<Engine::Shared> engine, Clock::time_point started);

  // Fixed once open. The engine holds the mapped file that the model runs from: it goes last.
  const std::shared_ptr<Engine::Shared> engine;
  std::unique_ptr<executorch::extension::Module> model;

  // The matrices of b in use, one after the other, as the model takes them: it reads them here.
  // Where `on` is 0 it reads none, nor those of a.
  std::vector<float> b;
  int64_t on = 0;

  // The text.
  const float* logits = nullptr;
  std::optional<int64_t> pending;
  std::vector<int64_t> tokens, positions, rows;
  Sampler sampler;
  // Of the answer being made, if it asked for it.
  std::optional<Lookup> lookup;

  // What other threads may look at, or change, while one is inside.
  std::atomic<int64_t> position{0};
  std::atomic<const ManifestTask*> task{nullptr};
  mutable std::mutex stats_mutex;
  Stats stats;
  enum class Answer { None, Running, ToStop };
  std::atomic<Answer> answer{Answer::None};
  std::atomic_flag busy = ATOMIC_FLAG_INIT;

  template <typename Change>
  void update_stats(Change change) {
    const std::lock_guard<std::mutex> lock(stats_mutex);
    change(stats);
  }

  Error bind(size_t input, void* data, const Sizes& sizes, executorch::aten::ScalarType type);
  Error bind_all();
  Error take_head(const ManifestTask* chosen);
  Error swap(const std::optional<std::string>& name, int64_t keep_prefix);
  Error use(const std::optional<std::string>& name, int64_t keep_prefix);

  Error check_ids(const int64_t* ids, int64_t count, int64_t start) const;
  Error run(const int64_t* ids, int64_t count, int64_t wanted);
  Error append(const int64_t* ids, int64_t count);
  Error advance(int64_t token, int64_t useful);
  Error prefill(const std::vector<int64_t>& ids);
  Result<int64_t> step(const Sampling& sampling, int64_t useful = 0);
  void reset();
  Result<SelfTest> self_test();

  Result<Plan> plan(const GenerateOptions& options) const;
  Result<Generated> generate(
      const std::vector<int64_t>& ids,
      const Plan& plan,
      const std::function<bool(int64_t)>& callback);
};

}  // namespace hydrapack
