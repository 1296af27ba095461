#include "match.h"

#include <tuple>

namespace hydrapack {

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::runtime::EValue;

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

Result<Limits> read_limits(const std::string& path, Module& model) {
  Limits limits;
  for (const auto& [name, limit] :
       {std::pair{"get_max_context_len", &limits.context},
        std::pair{"get_max_seq_len", &limits.seq},
        std::pair{"get_max_rows", &limits.rows},
        std::pair{"get_vocab_size", &limits.vocab}}) {
    const auto value = integer_constant(model, path, name);
    if (!value.ok()) return value.error();
    *limit = value.value();
    if (*limit < 1 || *limit > (1 << 28)) {
      return Error{Code::Invalid, path + ": " + name + " is out of range"};
    }
  }
  return limits;
}

Result<std::vector<int64_t>> read_eos_ids(const std::string& path, Module& model) {
  auto eos = model.execute("get_eos_ids");
  if (!eos.ok()) return Error{Code::Invalid, path + ": has no method get_eos_ids"};
  std::vector<int64_t> ids;
  for (const EValue& id : *eos) {
    if (id.isInt()) ids.push_back(id.toInt());
  }
  return ids;
}

Result<AdapterSizes> unused_sizes(const std::string& path, Module& model) {
  const auto forward = model.method_meta("forward");
  AdapterSizes found;
  for (size_t i = kAdapter; forward.ok() && i < forward->num_inputs(); i++) {
    found.a.push_back(matrix_sizes(forward->input_tensor_meta(i)));
    if (found.a.back().empty()) return Error{Code::Invalid, path + " is no program of hydrapack"};
    found.a_values += values(found.a.back());
  }
  return found;
}

Result<AdapterSizes> match_sizes(
    const Paths& paths, Module& model, Module& adapters, const Manifest& manifest) {
  const std::string both = paths.model + " or " + paths.adapters;
  const auto forward = model.method_meta("forward");
  const auto head = adapters.method_meta("head");
  const auto shared = adapters.method_meta("shared");
  if (!forward.ok() || !head.ok() || !shared.ok() || head->num_inputs() != 1 ||
      head->num_outputs() != 1 || shared->num_outputs() != 1) {
    return Error{Code::Invalid, both + " is no program of hydrapack"};
  }
  const Error differ{
      Code::Mismatch,
      paths.model + " and " + paths.adapters + " differ in their adapter's size"};
  // A head chooses for each module, and each has a matrix of its own in b.
  const size_t modules = manifest.modules.size(), inputs = forward->num_inputs();
  const auto route = head->input_tensor_meta(0);
  if (!route.ok() || route->scalar_type() != ScalarType::Long || route->sizes().size() != 1 ||
      route->sizes()[0] != static_cast<int64_t>(modules) || inputs <= kAdapter + modules) {
    return differ;
  }
  AdapterSizes found;
  for (size_t i = kAdapter; i < inputs; i++) {
    const Sizes sizes = matrix_sizes(forward->input_tensor_meta(i));
    if (sizes.empty()) return differ;
    const bool of_a = i < inputs - modules;
    (of_a ? found.a : found.b).push_back(sizes);
    (of_a ? found.a_values : found.b_values) += values(sizes);
    if (!of_a && sizes[0] != found.b[0][0]) return differ;
  }
  if (vector_size(shared->output_tensor_meta(0)) != found.a_values ||
      vector_size(head->output_tensor_meta(0)) != found.b_values) {
    return differ;
  }
  return found;
}

}  // namespace hydrapack
