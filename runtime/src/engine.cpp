// Opening an engine, and what its sessions ask of it.
#include <cstring>

#include <executorch/extension/tensor/tensor.h>

#include "files.h"
#include "shared.h"
#include "state.h"

namespace hydrapack {
namespace {

using executorch::aten::ScalarType;
using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::EValue;

Error damaged(const std::string& path) {
  return {Code::Invalid, path + " is damaged: it cannot be loaded"};
}

// Where sessions share this model's packed weights, if they do.
Result<std::optional<WeightCache>> weight_cache(
    const Paths& paths, const std::string& model_sha256, const OpenOptions& options) {
  const bool in_file = !options.weight_cache.empty();
  if (!in_file && !options.share_weights) return std::optional<WeightCache>();
  if (in_file && model_sha256.empty()) {
    return Error{
        Code::NotFound, paths.model + ".json: missing; the weight cache needs its SHA-256"};
  }
  auto cache = in_file
      ? WeightCache::in(options.weight_cache, model_sha256, options.check_digests)
      : WeightCache::in_memory(paths.model);
  if (!cache.ok()) return cache.error();
  return std::optional<WeightCache>(std::move(cache.value()));
}

// What shared() gives. Runtime.
Result<std::vector<float>> matrices_of_a(const std::string& path, Module& adapters) {
  auto outputs = adapters.execute("shared");
  if (!outputs.ok()) return runtime_error(path + ": shared failed", outputs.error());
  const auto tensor = outputs->at(0).toTensor();
  const float* values = tensor.const_data_ptr<float>();
  std::vector<float> a(values, values + tensor.numel());
  // Three times a's size is freed with the method.
  adapters.unload_method("shared");
  return a;
}

}  // namespace

Error Engine::Shared::read(const OpenOptions& options) {
  check_digests = options.check_digests;
  if (!paths.package.empty()) {
    auto read = read_package(paths, options);
    if (!read.ok()) return read.error();
    manifest = std::move(read.value().manifest);
    unchecked = std::move(read.value().heads);
  } else if (!options.public_key.empty()) {
    return {Code::Invalid, "public_key: is of a package, and none is given"};
  }
  for (const ManifestTask& task : manifest.tasks) tasks.push_back(task.shown);
  const auto model_sha256 = check_model_file(paths.model, options.check_digests);
  if (!model_sha256.ok()) return model_sha256.error();
  auto cache = weight_cache(paths, model_sha256.value(), options);
  if (!cache.ok()) return cache.error();
  weights = std::move(cache.value());
  return {};
}

Error Engine::Shared::load_programs() {
  auto loaded = load_module(paths.model, "forward");
  if (!loaded.ok()) return loaded.error();
  model = std::move(loaded.value());
  const bool bare = paths.package.empty();
  if (!bare) {
    loaded = load_module(paths.adapters, "head");
    if (!loaded.ok()) return loaded.error();
    adapters = std::move(loaded.value());
  }
  Error error = check_forward(paths.model, *model);
  if (error.ok() && !bare) error = check_layout(paths, *model, *adapters, manifest);
  if (error.ok() && !bare) error = check_base(paths, *model, manifest);
  if (!error.ok()) return error;
  const auto read_as_limits = read_limits(paths.model, *model);
  if (!read_as_limits.ok()) return read_as_limits.error();
  limits = read_as_limits.value();
  auto ends = read_eos_ids(paths.model, *model);
  if (!ends.ok()) return ends.error();
  eos_ids = std::move(ends.value());
  const auto bytes = file_bytes(paths.model);
  model_bytes = bytes.ok() ? bytes.value() : 0;
  return bare ? take_no_adapter() : take_adapter();
}

Error Engine::Shared::take_no_adapter() {
  auto found = unused_sizes(paths.model, *model);
  if (!found.ok()) return found.error();
  sizes = std::move(found.value());
  a.assign(static_cast<size_t>(sizes.a_values), 0.0f);
  return {};
}

Error Engine::Shared::take_adapter() {
  auto matched = match_sizes(paths, *model, *adapters, manifest);
  if (!matched.ok()) return matched.error();
  sizes = std::move(matched.value());
  if (adapters->load_method("head") != executorch::runtime::Error::Ok) {
    return damaged(paths.adapters);
  }
  auto matrices = matrices_of_a(paths.adapters, *adapters);
  if (!matrices.ok()) return matrices.error();
  a = std::move(matrices.value());
  return {};
}

Error Engine::Shared::head(const ManifestTask& task, std::vector<float>& b) {
  // One loaded method for all sessions: its output is copied before another may run it.
  const std::lock_guard<std::mutex> lock(heads);
  const std::vector<int64_t>& route = task.route;
  if (unchecked != nullptr && checked.count(&task) == 0) {
    if (unchecked->sha256(manifest.head(route)) != task.head_sha256) {
      return {
          Code::Mismatch,
          paths.adapters + ": the head of task '" + task.shown.name +
              "' is damaged: it is not the one that manifest.json describes; copy the package again"};
    }
    checked.insert(&task);
  }
  auto chosen = from_blob(
      const_cast<int64_t*>(route.data()), {static_cast<int32_t>(route.size())}, ScalarType::Long);
  auto outputs = adapters->execute("head", EValue(chosen));
  if (!outputs.ok()) return runtime_error("head failed", outputs.error());
  // The vector is one matrix with all modules side by side; the model takes each in one piece.
  const float* given = outputs->at(0).toTensor().const_data_ptr<float>();
  const size_t width = b.size() / sizes.b[0][0];
  float* target = b.data();
  for (const Sizes& piece : sizes.b) {
    for (int32_t row = 0; row < piece[0]; row++, target += piece[1]) {
      std::memcpy(target, given + row * width, piece[1] * sizeof(float));
    }
    given += piece[1];
  }
  return {};
}

std::unique_ptr<Module> Engine::Shared::load_forward() {
  auto own = std::make_unique<Module>(model->program());
  auto error = weights ? weights->load(*own) : executorch::runtime::Error::Ok;
  if (error == executorch::runtime::Error::Ok) error = own->load_method("forward");
  return error == executorch::runtime::Error::Ok ? std::move(own) : nullptr;
}

Result<std::unique_ptr<Module>> Engine::Shared::open_forward() {
  const std::lock_guard<std::mutex> lock(openings);
  auto own = load_forward();
  if (own != nullptr && weights && weights->keep(paths.model)) {
    // What made the file holds it locked: all sessions map it as a later start does.
    own.reset();
    own = load_forward();
  }
  if (own == nullptr) return damaged(paths.model);
  return own;
}

Engine::Engine(std::shared_ptr<Shared> shared) : shared_(std::move(shared)) {}

Result<Engine> Engine::open(
    const std::string& model, const std::string& package, const OpenOptions& options) {
  auto shared = std::make_shared<Shared>();
  shared->paths = Paths{model, package};
  Error error = shared->read(options);
  if (error.ok()) error = shared->load_programs();
  if (!error.ok()) return error;
  const Engine engine(std::move(shared));
  if (options.self_test) {
    const auto session = engine.open_session();
    error = session.ok() ? session.value()->check_self_test() : session.error();
    if (!error.ok()) return error;
  }
  return engine;
}

Result<std::unique_ptr<Session>> Engine::open_session() const {
  return Session::State::open(shared_, Clock::now());
}

const std::vector<Task>& Engine::tasks() const { return shared_->tasks; }
int64_t Engine::max_context() const { return shared_->limits.context; }
int64_t Engine::vocab_size() const { return shared_->limits.vocab; }

}  // namespace hydrapack
