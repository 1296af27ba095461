#include <hydrapack/session.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>

#include <unistd.h>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include "files.h"
#include "manifest.h"
#include "programs.h"
#include "sampler.h"

namespace hydrapack {
namespace {

using executorch::aten::ScalarType;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;
using Clock = std::chrono::steady_clock;
using Sizes = std::vector<executorch::aten::SizesType>;

double ms_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

Error runtime_error(const std::string& what, executorch::runtime::Error error) {
  return {Code::Runtime, what + " (ExecuTorch error " + std::to_string(static_cast<int>(error)) + ")"};
}

}  // namespace

struct Session::State {
  std::unique_ptr<Module> model;
  std::unique_ptr<Module> adapters;
  Manifest manifest;
  std::vector<Task> tasks;
  std::vector<int64_t> eos_ids;
  int64_t max_context = 0;
  int64_t vocab = 0;
  int64_t position = 0;
  const ManifestTask* task = nullptr;
  Stats stats;
  Sampler sampler;

  // b lies in the memory of head() until its next call; both are bound to the model once a swap.
  std::vector<float> a;
  std::vector<float> no_head;
  const float* logits = nullptr;
  std::optional<int64_t> pending;
  std::vector<int64_t> tokens, positions;

  std::atomic_flag busy = ATOMIC_FLAG_INIT;

  Error bind(float* b) {
    auto a_tensor =
        from_blob(a.data(), Sizes{static_cast<int32_t>(a.size())}, ScalarType::Float);
    auto b_tensor =
        from_blob(b, Sizes{static_cast<int32_t>(no_head.size())}, ScalarType::Float);
    for (const auto& [tensor, index] : {std::pair{a_tensor, 2}, std::pair{b_tensor, 3}}) {
      const auto error = model->set_input("forward", EValue(tensor), index);
      if (error != executorch::runtime::Error::Ok) {
        return runtime_error("the adapter cannot be bound to the model", error);
      }
    }
    return {};
  }

  Error run(const int64_t* ids, int64_t count) {
    tokens.assign(ids, ids + count);
    positions.resize(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; i++) positions[i] = position + i;
    auto token_tensor =
        from_blob(tokens.data(), Sizes{1, static_cast<int32_t>(count)}, ScalarType::Long);
    auto position_tensor =
        from_blob(positions.data(), Sizes{static_cast<int32_t>(count)}, ScalarType::Long);
    auto outputs = model->execute("forward", {EValue(token_tensor), EValue(position_tensor)});
    if (!outputs.ok()) return runtime_error("forward failed", outputs.error());
    if (outputs->empty() || !outputs->at(0).isTensor()) {
      return {Code::Runtime, "forward gives no tensor"};
    }
    const auto tensor = outputs->at(0).toTensor();
    if (tensor.scalar_type() != ScalarType::Float || tensor.numel() != vocab) {
      return {Code::Runtime, "forward gives logits of another size"};
    }
    logits = tensor.const_data_ptr<float>();
    position += count;
    return {};
  }

  Error append(const int64_t* ids, int64_t count) {
    if (count > max_context - position) {
      return {
          Code::ContextFull,
          std::to_string(count) + " tokens do not fit: " + std::to_string(position) + " of " +
              std::to_string(max_context) + " are taken"};
    }
    for (int64_t i = 0; i < count; i++) {
      if (ids[i] < 0 || ids[i] >= vocab) {
        return {Code::Invalid, "token " + std::to_string(ids[i]) + " is not in the vocabulary"};
      }
    }
    // The program takes at most context - 1 positions a call.
    for (int64_t start = 0; start < count; start += max_context - 1) {
      const Error error = run(ids + start, std::min(max_context - 1, count - start));
      if (!error.ok()) return error;
    }
    return {};
  }

  Error prefill(const std::vector<int64_t>& ids) {
    const auto started = Clock::now();
    std::vector<int64_t> all;
    const std::vector<int64_t>* text = &ids;
    if (pending) {
      all.reserve(ids.size() + 1);
      all.push_back(*pending);
      all.insert(all.end(), ids.begin(), ids.end());
      text = &all;
    }
    if (ids.empty()) return {Code::Invalid, "no tokens: there is nothing to go on from"};
    const Error error = append(text->data(), static_cast<int64_t>(text->size()));
    if (!error.ok()) return error;
    pending.reset();
    stats.prefill_ms = ms_since(started);
    stats.prefill_tokens = static_cast<int64_t>(text->size());
    stats.decode_ms = 0;
    stats.decode_tokens = 0;
    return {};
  }

  Result<int64_t> step(const Sampling& sampling) {
    if (logits == nullptr) return Error{Code::Invalid, "no text yet: prefill first"};
    Error error = sampler.check(sampling);
    if (!error.ok()) return error;
    if (pending) {
      const auto started = Clock::now();
      error = append(&*pending, 1);
      if (!error.ok()) return error;
      stats.decode_ms += ms_since(started);
      stats.decode_tokens += 1;
    }
    pending = sampler.pick(logits, vocab, sampling);
    return *pending;
  }

  void reset() {
    position = 0;
    logits = nullptr;
    pending.reset();
  }
};

namespace {

// Says that a second thread is inside instead of letting both in.
class Guard {
 public:
  explicit Guard(std::atomic_flag& flag) : flag_(flag), entered_(!flag.test_and_set()) {}
  ~Guard() {
    if (entered_) flag_.clear();
  }
  bool entered() const { return entered_; }
  static Error busy() {
    return {Code::Busy, "the session is in use by another thread; open one for each"};
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
  auto state = std::make_unique<State>();
  const std::string manifest_path = package + "/manifest.json";
  const std::string adapters_path = package + "/adapters.pte";
  const auto text = read_text(manifest_path);
  if (!text.ok()) return text.error();
  auto manifest = parse_manifest(text.value(), manifest_path, options.check_digests);
  if (!manifest.ok()) return manifest.error();
  state->manifest = std::move(manifest.value());
  const Manifest& read = state->manifest;
  Error error =
      check_file(adapters_path, read.adapters_bytes, read.adapters_sha256, options.check_digests);
  if (error.ok()) error = check_model_file(model, options.check_digests);
  if (!error.ok()) return error;

  auto loaded = load_module(model, "forward");
  if (!loaded.ok()) return loaded.error();
  state->model = std::move(loaded.value());
  loaded = load_module(adapters_path, "head");
  if (!loaded.ok()) return loaded.error();
  state->adapters = std::move(loaded.value());

  const auto rank = integer_constant(*state->model, model, "get_adapter_rank");
  if (!rank.ok()) return rank.error();
  if (rank.value() != read.rank) {
    return Error{
        Code::Mismatch,
        model + " takes adapters of rank " + std::to_string(rank.value()) +
            ", the package has rank " + std::to_string(read.rank)};
  }
  for (const auto& [module, path] :
       {std::pair{state->model.get(), model}, std::pair{state->adapters.get(), adapters_path}}) {
    const auto layout = text_constant(*module, path, "get_adapter_layout");
    if (!layout.ok()) return layout.error();
    if (layout.value() != read.layout_digest) {
      return Error{
          Code::Mismatch,
          path + " has another adapter layout than the package (base model " + read.base_model + ")"};
    }
  }
  const auto context = integer_constant(*state->model, model, "get_max_context_len");
  if (!context.ok()) return context.error();
  const auto vocab = integer_constant(*state->model, model, "get_vocab_size");
  if (!vocab.ok()) return vocab.error();
  if (context.value() < 2 || vocab.value() < 1 || vocab.value() > (1 << 28)) {
    return Error{Code::Invalid, model + ": context or vocabulary is out of range"};
  }
  state->max_context = context.value();
  state->vocab = vocab.value();
  auto eos = state->model->execute("get_eos_ids");
  if (!eos.ok()) return Error{Code::Invalid, model + ": has no method get_eos_ids"};
  for (const EValue& id : *eos) {
    if (id.isInt()) state->eos_ids.push_back(id.toInt());
  }

  if (state->model->load_method("forward") != executorch::runtime::Error::Ok ||
      state->adapters->load_method("head") != executorch::runtime::Error::Ok) {
    return Error{Code::Invalid, model + " or " + adapters_path + " is damaged: it cannot be loaded"};
  }
  const auto forward = state->model->method_meta("forward");
  const auto head = state->adapters->method_meta("head");
  const auto shared = state->adapters->method_meta("shared");
  if (!forward.ok() || !head.ok() || !shared.ok() || forward->num_inputs() != 4 ||
      head->num_inputs() != 1 || head->num_outputs() != 1 || shared->num_outputs() != 1) {
    return Error{Code::Invalid, model + " or " + adapters_path + " is no program of hydrapack"};
  }
  const int64_t a_size = vector_size(forward->input_tensor_meta(2));
  const int64_t b_size = vector_size(forward->input_tensor_meta(3));
  const auto route = head->input_tensor_meta(0);
  if (a_size < 1 || b_size < 1 || vector_size(head->output_tensor_meta(0)) != b_size ||
      vector_size(shared->output_tensor_meta(0)) != a_size || !route.ok() ||
      route->scalar_type() != ScalarType::Long || route->sizes().size() != 1 ||
      route->sizes()[0] != read.modules) {
    return Error{Code::Mismatch, model + " and " + adapters_path + " differ in their adapter's size"};
  }
  auto a = state->adapters->execute("shared");
  if (!a.ok()) return runtime_error(adapters_path + ": shared failed", a.error());
  const float* values = a->at(0).toTensor().const_data_ptr<float>();
  state->a.assign(values, values + a_size);
  // Three times a's size is freed with the method.
  state->adapters->unload_method("shared");
  state->no_head.assign(static_cast<size_t>(b_size), 0.0f);
  for (const ManifestTask& task : read.tasks) state->tasks.push_back(task.shown);
  error = state->bind(state->no_head.data());
  if (!error.ok()) return error;
  state->stats.model_bytes = file_bytes(model);
  state->stats.vector_bytes = 4 * (a_size + 2 * b_size);
  state->stats.load_ms = ms_since(started);
  return std::unique_ptr<Session>(new Session(std::move(state)));
}

Error Session::use(const std::optional<std::string>& task, int64_t keep_prefix) {
  Guard guard(state_->busy);
  if (!guard.entered()) return Guard::busy();
  const auto started = Clock::now();
  const ManifestTask* chosen = nullptr;
  if (task) {
    const auto found = state_->manifest.find(*task);
    if (!found.ok()) return found.error();
    chosen = found.value();
  }
  const ManifestTask* before = state_->task;
  const bool same = chosen == before || (chosen && before && chosen->route == before->route);
  if (keep_prefix < 0 || keep_prefix > state_->position) {
    return {Code::Invalid, "keep_prefix must be from 0 to the position"};
  }
  if (keep_prefix > 0 && !same) {
    return {Code::Invalid, "keep_prefix: the cache was filled under another head and would be wrong"};
  }
  if (!same) {
    float* b = state_->no_head.data();
    if (chosen != nullptr) {
      auto route = from_blob(
          const_cast<int64_t*>(chosen->route.data()),
          Sizes{static_cast<int32_t>(chosen->route.size())},
          ScalarType::Long);
      auto outputs = state_->adapters->execute("head", EValue(route));
      if (!outputs.ok()) return runtime_error("head failed", outputs.error());
      b = outputs->at(0).toTensor().mutable_data_ptr<float>();
    }
    const Error error = state_->bind(b);
    if (!error.ok()) return error;
  }
  state_->task = chosen;
  state_->stats.swap_ms = ms_since(started);
  state_->reset();
  state_->position = keep_prefix;
  return {};
}

std::string Session::task() const { return state_->task ? state_->task->shown.name : ""; }
const std::vector<Task>& Session::tasks() const { return state_->tasks; }
int64_t Session::position() const { return state_->position; }
int64_t Session::max_context() const { return state_->max_context; }
int64_t Session::vocab_size() const { return state_->vocab; }

Error Session::prefill(const std::vector<int64_t>& ids) {
  Guard guard(state_->busy);
  if (!guard.entered()) return Guard::busy();
  return state_->prefill(ids);
}

Result<int64_t> Session::step(const Sampling& sampling) {
  Guard guard(state_->busy);
  if (!guard.entered()) return Guard::busy();
  return state_->step(sampling);
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
  if (options.max_new_tokens < 1) return Error{Code::Invalid, "max_new_tokens must be 1 or more"};
  Error error = state_->sampler.check(options.sampling);
  if (!error.ok()) return error;
  state_->reset();
  error = state_->prefill(ids);
  if (!error.ok()) return error;
  state_->sampler.seed(options.sampling.seed);
  const auto stops = [&](int64_t token) {
    const auto in = [&](const std::vector<int64_t>& list) {
      return std::find(list.begin(), list.end(), token) != list.end();
    };
    return in(state_->eos_ids) || in(options.stop_ids);
  };
  Generated made;
  while (true) {
    if (state_->pending && state_->position >= state_->max_context) {
      made.finish = Finish::ContextFull;
      break;
    }
    const auto token = state_->step(options.sampling);
    if (!token.ok()) return token.error();
    if (stops(token.value())) {
      made.finish = Finish::StopId;
      break;
    }
    made.ids.push_back(token.value());
    if (callback && !callback(token.value())) {
      made.finish = Finish::Callback;
      break;
    }
    if (static_cast<int64_t>(made.ids.size()) >= options.max_new_tokens) {
      made.finish = Finish::MaxTokens;
      break;
    }
  }
  return made;
}

Error Session::reset() {
  Guard guard(state_->busy);
  if (!guard.entered()) return Guard::busy();
  state_->reset();
  return {};
}

Stats Session::stats() const {
  Stats stats = state_->stats;
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
