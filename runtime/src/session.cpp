// The public calls: one thread at a time, and what others may look at.
#include <hydrapack/session.h>

#include <cstdio>

#include <unistd.h>

#include "state.h"

namespace hydrapack {
namespace {

// Says that another call is inside instead of letting both in.
class Guard {
 public:
  explicit Guard(std::atomic_flag& flag) : flag_(flag), entered_(!flag.test_and_set()) {}
  ~Guard() {
    if (entered_) flag_.clear();
  }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

  bool entered() const { return entered_; }
  static Error busy() {
    return {
        Code::Busy,
        "the session is in use by another thread, or by a running answer whose callback calls it"};
  }

 private:
  std::atomic_flag& flag_;
  bool entered_;
};

}  // namespace

Session::Session(std::unique_ptr<State> state) : state_(std::move(state)) {}
Session::~Session() = default;

Result<std::unique_ptr<Session>> Session::open(
    const std::string& model, const std::string& package, const OpenOptions& options) {
  const auto started = Clock::now();
  OpenOptions untested = options;
  untested.self_test = false;
  const auto engine = Engine::open(model, package, untested);
  if (!engine.ok()) return engine.error();
  auto session = State::open(engine.value().shared_, started);
  if (!session.ok() || !options.self_test) return session;
  const Error error = session.value()->check_self_test();
  if (!error.ok()) return error;
  return session;
}

Result<SelfTest> Session::self_test() {
  Guard guard(state_->busy);
  if (!guard.entered()) return Guard::busy();
  return state_->self_test();
}

Error Session::check_self_test() {
  const auto test = self_test();
  if (!test.ok()) return test.error();
  if (test.value().passed()) return {};
  return {
      Code::Mismatch,
      state_->engine->paths.package + ": fails its self-test on this device: " + test.value().text()};
}

Error Session::use(const std::optional<std::string>& task, int64_t keep_prefix) {
  Guard guard(state_->busy);
  return guard.entered() ? state_->use(task, keep_prefix) : Guard::busy();
}

Error Session::prefill(const std::vector<int64_t>& ids) {
  Guard guard(state_->busy);
  return guard.entered() ? state_->prefill(ids) : Guard::busy();
}

Result<int64_t> Session::step(const Sampling& sampling) {
  Guard guard(state_->busy);
  if (!guard.entered()) return Guard::busy();
  return state_->step(sampling);
}

Error Session::seed(uint64_t seed) {
  Guard guard(state_->busy);
  if (!guard.entered()) return Guard::busy();
  state_->sampler.seed(seed);
  return {};
}

Result<const float*> Session::logits() {
  Guard guard(state_->busy);
  if (!guard.entered()) return Guard::busy();
  if (state_->logits == nullptr) return Error{Code::Invalid, "no text yet: prefill first"};
  return state_->logits;
}

Result<Generated> Session::generate(
    const std::vector<int64_t>& ids,
    const GenerateOptions& options,
    const std::function<bool(int64_t)>& callback) {
  Guard guard(state_->busy);
  if (!guard.entered()) return Guard::busy();
  const auto plan = state_->plan(options);
  if (!plan.ok()) return plan.error();
  // The callback may throw: whatever happens, nothing is being made afterwards.
  struct Running {
    explicit Running(std::atomic<State::Answer>& answer) : answer_(answer) {
      answer_ = State::Answer::Running;
    }
    ~Running() { answer_ = State::Answer::None; }
    std::atomic<State::Answer>& answer_;
  } running(state_->answer);
  return state_->generate(ids, plan.value(), callback);
}

void Session::stop() {
  auto running = State::Answer::Running;
  state_->answer.compare_exchange_strong(running, State::Answer::ToStop);
}

Error Session::reset() {
  Guard guard(state_->busy);
  if (!guard.entered()) return Guard::busy();
  state_->reset();
  return {};
}

std::string Session::task() const {
  const ManifestTask* task = state_->task;
  return task != nullptr ? task->shown.name : "";
}

const std::vector<Task>& Session::tasks() const { return state_->engine->tasks; }
int64_t Session::position() const { return state_->position; }
int64_t Session::max_context() const { return state_->engine->limits.context; }
int64_t Session::vocab_size() const { return state_->engine->limits.vocab; }

Stats Session::stats() const {
  Stats stats;
  {
    const std::lock_guard<std::mutex> lock(state_->stats_mutex);
    stats = state_->stats;
  }
#if defined(__linux__)
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    long long whole = 0, resident = 0;
    if (std::fscanf(file, "%lld %lld", &whole, &resident) == 2) {
      stats.resident_bytes = resident * ::sysconf(_SC_PAGESIZE);
    }
    std::fclose(file);
  }
#endif
  return stats;
}

}  // namespace hydrapack
