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
  if (error.ok()) error = check_model_file(paths.model, options.check_digests);
  if (!error.ok()) return error;
  return manifest;
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

Error read_constants(const std::string& path, Module& model, int64_t& context, int64_t& vocab,
                     std::vector<int64_t>& eos_ids) {
  const auto contexts = integer_constant(model, path, "get_max_context_len");
  if (!contexts.ok()) return contexts.error();
  const auto vocabs = integer_constant(model, path, "get_vocab_size");
  if (!vocabs.ok()) return vocabs.error();
  context = contexts.value(), vocab = vocabs.value();
  if (context < 2 || vocab < 1 || vocab > (1 << 28)) {
    return {Code::Invalid, path + ": context or vocabulary is out of range"};
  }
  auto eos = model.execute("get_eos_ids");
  if (!eos.ok()) return {Code::Invalid, path + ": has no method get_eos_ids"};
  for (const EValue& id : *eos) {
    if (id.isInt()) eos_ids.push_back(id.toInt());
  }
  return {};
}

}  // namespace

Result<std::unique_ptr<Session>> Session::open(
    const std::string& model, const std::string& package, const OpenOptions& options) {
  const auto started = Clock::now();
  const Paths paths{model, package};
  auto manifest = read_package(paths, options);
  if (!manifest.ok()) return manifest.error();
  auto state = std::make_unique<State>();
  state->manifest = std::move(manifest.value());
  const Manifest& read = state->manifest;

  auto loaded = load_module(model, "forward");
  if (!loaded.ok()) return loaded.error();
  state->model = std::move(loaded.value());
  loaded = load_module(paths.adapters, "head");
  if (!loaded.ok()) return loaded.error();
  state->adapters = std::move(loaded.value());
  Error error = check_layout(paths, *state->model, *state->adapters, read);
  if (error.ok()) error = check_base(paths, *state->model, read);
  if (error.ok()) {
    error =
        read_constants(model, *state->model, state->max_context, state->vocab, state->eos_ids);
  }
  if (!error.ok()) return error;

  const std::string both = model + " or " + paths.adapters;
  if (state->model->load_method("forward") != executorch::runtime::Error::Ok ||
      state->adapters->load_method("head") != executorch::runtime::Error::Ok) {
    return Error{Code::Invalid, both + " is damaged: it cannot be loaded"};
  }
  const auto forward = state->model->method_meta("forward");
  const auto head = state->adapters->method_meta("head");
  const auto shared = state->adapters->method_meta("shared");
  if (!forward.ok() || !head.ok() || !shared.ok() || forward->num_inputs() != 4 ||
      head->num_inputs() != 1 || head->num_outputs() != 1 || shared->num_outputs() != 1) {
    return Error{Code::Invalid, both + " is no program of hydrapack"};
  }
  const int64_t a_size = vector_size(forward->input_tensor_meta(2));
  const int64_t b_size = vector_size(forward->input_tensor_meta(3));
  const auto route = head->input_tensor_meta(0);
  if (a_size < 1 || b_size < 1 || vector_size(head->output_tensor_meta(0)) != b_size ||
      vector_size(shared->output_tensor_meta(0)) != a_size || !route.ok() ||
      route->scalar_type() != ScalarType::Long || route->sizes().size() != 1 ||
      route->sizes()[0] != static_cast<int64_t>(read.modules.size())) {
    return Error{
        Code::Mismatch, model + " and " + paths.adapters + " differ in their adapter's size"};
  }
  auto a = state->adapters->execute("shared");
  if (!a.ok()) return runtime_error(paths.adapters + ": shared failed", a.error());
  const float* values = a->at(0).toTensor().const_data_ptr<float>();
  state->a.assign(values, values + a_size);
  // Three times a's size is freed with the method.
  state->adapters->unload_method("shared");
  state->no_head.assign(static_cast<size_t>(b_size), 0.0f);
  for (const ManifestTask& task : read.tasks) state->tasks.push_back(task.shown);
  error = state->bind(state->no_head.data());
  if (!error.ok()) return error;
  state->stats.model_bytes = file_bytes(model).ok() ? file_bytes(model).value() : 0;
  state->stats.vector_bytes = 4 * (a_size + 2 * b_size);
  state->stats.load_ms = ms_since(started);
  return std::unique_ptr<Session>(new Session(std::move(state)));
}

}  // namespace hydrapack
