// Opening: every file checked against what describes it, both programs against each other.
#include "files.h"
#include "programs.h"
#include "signature.h"
#include "state.h"

namespace hydrapack {
namespace {

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::runtime::EValue;

struct Paths {
  std::string model;
  std::string package;
  std::string manifest = package + "/manifest.json";
  std::string signature = package + "/manifest.sig";
  std::string adapters = package + "/adapters.pte";
};

Result<Manifest> read_package(const Paths& paths, const OpenOptions& options) {
  if (!options.public_key.empty()) {
    const Error error = check_public_key(options.public_key);
    if (!error.ok()) return error;
  }
  const auto text = read_text(paths.manifest);
  if (!text.ok()) return text.error();
  auto manifest = parse_manifest(text.value(), paths.manifest, options.check_digests);
  if (!manifest.ok()) return manifest.error();
  Error error;
  if (!options.public_key.empty()) {
    const auto signature = read_text(paths.signature);
    if (!signature.ok()) return signature.error();
    error = check_signature(signature.value(), paths.signature, text.value(), options.public_key);
    if (!error.ok()) return error;
  }
  const Manifest& read = manifest.value();
  error = check_file(
      paths.adapters, read.adapters_bytes, read.adapters_sha256, options.check_digests);
  if (!error.ok()) return error;
  return manifest;
}

// The folder's cache of this model's packed weights, if one was given.
Result<std::optional<WeightCache>> weight_cache(
    const Paths& paths, const std::string& model_sha256, const OpenOptions& options) {
  if (options.weight_cache.empty()) return std::optional<WeightCache>();
  if (model_sha256.empty()) {
    return Error{
        Code::NotFound, paths.model + ".json: missing; the weight cache needs its SHA-256"};
  }
  auto cache = WeightCache::in(options.weight_cache, model_sha256, options.check_digests);
  if (!cache.ok()) return cache.error();
  return std::optional<WeightCache>(std::move(cache.value()));
}

// A program of another version of hydrapack may take other inputs, which nothing could name later.
Error check_forward(const std::string& path, Module& model) {
  const auto version = integer_constant(model, path, "get_forward_version");
  if (version.ok() && version.value() == kForwardVersion) return {};
  return {
      Code::Invalid,
      path + ": its forward takes other inputs than this version of hydrapack gives: export it "
             "anew with hydrapack export-base"};
}

Error check_layout(
    const Paths& paths, Module& model, Module& adapters, const Manifest& manifest) {
  const auto rank = integer_constant(model, paths.model, "get_adapter_rank");
  if (!rank.ok()) return rank.error();
  if (rank.value() != manifest.rank) {
    return {
        Code::Mismatch,
        paths.model + " takes adapters of rank " + std::to_string(rank.value()) +
            ", the package has rank " + std::to_string(manifest.rank)};
  }
  const auto own = integer_constant(adapters, paths.adapters, "get_adapter_rank");
  if (!own.ok()) return own.error();
  if (own.value() != manifest.rank) {
    return {Code::Mismatch, paths.adapters + " has another rank than its manifest"};
  }
  for (const auto& [module, path] :
       {std::pair{&model, paths.model}, std::pair{&adapters, paths.adapters}}) {
    const auto layout = text_constant(*module, path, "get_adapter_layout");
    if (!layout.ok()) return layout.error();
    if (layout.value() != manifest.layout_digest) {
      return {
          Code::Mismatch,
          path + " has another adapter layout than the package (base model " +
              manifest.base_model + ")"};
    }
  }
  return {};
}

// A package bound to one base is refused on another, even of the same shape.
Error check_base(const Paths& paths, Module& model, const Manifest& manifest) {
  for (const auto& [stated, method, what] :
       {std::tuple{manifest.weights_sha256, "get_weights_sha256", "weights"},
        std::tuple{manifest.tokenizer_sha256, "get_tokenizer_sha256", "tokenizer"}}) {
    if (stated.empty()) continue;
    const auto own = text_constant(model, paths.model, method);
    if (!own.ok()) return own.error();
    if (own.value() != stated) {
      return {
          Code::Mismatch,
          paths.model + " has other " + what + " than the base that the package was packed for (" +
              manifest.base_model + ")"};
    }
  }
  return {};
}

struct Limits {
  int64_t context = 0, seq = 0, rows = 0, vocab = 0;
};

Error read_constants(
    const std::string& path, Module& model, Limits& limits, std::vector<int64_t>& eos_ids) {
  for (const auto& [name, limit] :
       {std::pair{"get_max_context_len", &limits.context},
        std::pair{"get_max_seq_len", &limits.seq},
        std::pair{"get_max_rows", &limits.rows},
        std::pair{"get_vocab_size", &limits.vocab}}) {
    const auto value = integer_constant(model, path, name);
    if (!value.ok()) return value.error();
    *limit = value.value();
    if (*limit < 1 || *limit > (1 << 28)) {
      return {Code::Invalid, path + ": " + name + " is out of range"};
    }
  }
  auto eos = model.execute("get_eos_ids");
  if (!eos.ok()) return {Code::Invalid, path + ": has no method get_eos_ids"};
  for (const EValue& id : *eos) {
    if (id.isInt()) eos_ids.push_back(id.toInt());
  }
  return {};
}

}  // namespace

// The matrices that the model takes must be those in the vectors of shared() and head().
Error Session::State::match_programs(const std::string& model_path, const std::string& adapters_path) {
  const auto forward = model->method_meta("forward");
  const auto head = adapters->method_meta("head");
  const auto shared = adapters->method_meta("shared");
  if (!forward.ok() || !head.ok() || !shared.ok() || head->num_inputs() != 1 ||
      head->num_outputs() != 1 || shared->num_outputs() != 1) {
    return {Code::Invalid, model_path + " or " + adapters_path + " is no program of hydrapack"};
  }
  const Error differ{
      Code::Mismatch, model_path + " and " + adapters_path + " differ in their adapter's size"};
  // A head chooses for each module, and each has a matrix of its own in b.
  const size_t modules = manifest.modules.size(), inputs = forward->num_inputs();
  const auto route = head->input_tensor_meta(0);
  if (!route.ok() || route->scalar_type() != ScalarType::Long || route->sizes().size() != 1 ||
      route->sizes()[0] != static_cast<int64_t>(modules) || inputs <= kAdapter + modules) {
    return differ;
  }
  int64_t a_values = 0, b_values = 0;
  for (size_t i = kAdapter; i < inputs; i++) {
    const Sizes sizes = matrix_sizes(forward->input_tensor_meta(i));
    if (sizes.empty()) return differ;
    const bool of_a = i < inputs - modules;
    (of_a ? a_sizes : b_sizes).push_back(sizes);
    (of_a ? a_values : b_values) += values(sizes);
    if (!of_a && sizes[0] != b_sizes[0][0]) return differ;
  }
  if (vector_size(shared->output_tensor_meta(0)) != a_values ||
      vector_size(head->output_tensor_meta(0)) != b_values) {
    return differ;
  }
  b.assign(static_cast<size_t>(b_values), 0.0f);
  return {};
}

Result<std::unique_ptr<Session>> Session::open(
    const std::string& model, const std::string& package, const OpenOptions& options) {
  const auto started = Clock::now();
  const Paths paths{model, package};
  auto manifest = read_package(paths, options);
  if (!manifest.ok()) return manifest.error();
  const auto model_sha256 = check_model_file(model, options.check_digests);
  if (!model_sha256.ok()) return model_sha256.error();
  const auto weights = weight_cache(paths, model_sha256.value(), options);
  if (!weights.ok()) return weights.error();
  auto state = std::make_unique<State>();
  state->manifest = std::move(manifest.value());
  const Manifest& read = state->manifest;

  auto loaded =
      load_module(model, "forward", weights.value() ? &*weights.value() : nullptr);
  if (!loaded.ok()) return loaded.error();
  state->model = std::move(loaded.value());
  loaded = load_module(paths.adapters, "head");
  if (!loaded.ok()) return loaded.error();
  state->adapters = std::move(loaded.value());
  Error error = check_forward(model, *state->model);
  if (error.ok()) error = check_layout(paths, *state->model, *state->adapters, read);
  if (error.ok()) error = check_base(paths, *state->model, read);
  if (error.ok()) {
    Limits limits;
    error = read_constants(model, *state->model, limits, state->eos_ids);
    state->max_context = limits.context, state->vocab = limits.vocab;
    state->max_seq = limits.seq, state->max_rows = limits.rows;
  }
  if (!error.ok()) return error;

  const std::string both = model + " or " + paths.adapters;
  if (state->model->load_method("forward") != executorch::runtime::Error::Ok ||
      state->adapters->load_method("head") != executorch::runtime::Error::Ok) {
    return Error{Code::Invalid, both + " is damaged: it cannot be loaded"};
  }
  if (weights.value()) weights.value()->keep();
  error = state->match_programs(model, paths.adapters);
  if (!error.ok()) return error;
  auto a = state->adapters->execute("shared");
  if (!a.ok()) return runtime_error(paths.adapters + ": shared failed", a.error());
  const auto tensor = a->at(0).toTensor();
  state->a.assign(
      tensor.const_data_ptr<float>(), tensor.const_data_ptr<float>() + tensor.numel());
  // Three times a's size is freed with the method.
  state->adapters->unload_method("shared");
  for (const ManifestTask& task : read.tasks) state->tasks.push_back(task.shown);
  error = state->bind_all();
  if (!error.ok()) return error;
  state->stats.model_bytes = file_bytes(model).ok() ? file_bytes(model).value() : 0;
  state->stats.adapter_bytes = 4 * static_cast<int64_t>(state->a.size() + state->b.size());
  state->stats.load_ms = ms_since(started);
  return std::unique_ptr<Session>(new Session(std::move(state)));
}

}  // namespace hydrapack
