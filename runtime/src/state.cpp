// Opening a session, swapping its heads, and running tokens through its program.
#include "state.h"

#include <algorithm>

#include <executorch/extension/tensor/tensor.h>

namespace hydrapack {
namespace {

using executorch::aten::ScalarType;
using executorch::extension::from_blob;
using executorch::runtime::EValue;

}  // namespace

Result<std::unique_ptr<Session>> Session::State::open(
    std::shared_ptr<Engine::Shared> engine, Clock::time_point started) {
  auto state = std::make_unique<State>(std::move(engine));
  const Engine::Shared& shared = *state->engine;
  auto forward = state->engine->open_forward();
  if (!forward.ok()) return forward.error();
  state->model = std::move(forward.value());
  state->b.assign(static_cast<size_t>(shared.sizes.b_values), 0.0f);
  const Error error = state->bind_all();
  if (!error.ok()) return error;
  state->stats.model_bytes = shared.model_bytes;
  state->stats.adapter_bytes = 4 * (shared.sizes.a_values + shared.sizes.b_values);
  state->stats.load_ms = ms_since(started);
  return std::unique_ptr<Session>(new Session(std::move(state)));
}

Error Session::State::bind(size_t input, void* data, const Sizes& sizes, ScalarType type) {
  const auto error = model->set_input("forward", EValue(from_blob(data, sizes, type)), input);
  if (error == executorch::runtime::Error::Ok) return {};
  return runtime_error("the adapter cannot be bound to the model", error);
}

Error Session::State::bind_all() {
  if (engine->sizes.a.empty()) return {};  // the model takes no adapter, nor the switch of one
  Error error = bind(kOn, &on, {}, ScalarType::Long);
  size_t input = kAdapter;
  const AdapterSizes& sizes = engine->sizes;
  for (const auto& [data, all] : {std::pair{&engine->a, &sizes.a}, std::pair{&b, &sizes.b}}) {
    float* at = data->data();
    for (const Sizes& matrix : *all) {
      if (error.ok()) error = bind(input++, at, matrix, ScalarType::Float);
      at += values(matrix);
    }
  }
  return error;
}

Error Session::State::take_head(const ManifestTask* chosen) {
  on = 0;
  if (chosen == nullptr) return {};
  const Error error = engine->head(*chosen, b);
  if (!error.ok()) return error;
  on = 1;
  return {};
}

Error Session::State::use(const std::optional<std::string>& name, int64_t keep_prefix) {
  const Error error = swap(name, keep_prefix);
  if (error.ok()) return {};
  // Whatever failed, what is used then is known.
  on = 0;
  task = nullptr;
  reset();
  return error;
}

Error Session::State::swap(const std::optional<std::string>& name, int64_t keep_prefix) {
  const auto started = Clock::now();
  const ManifestTask* chosen = nullptr;
  if (name) {
    const auto found = engine->manifest.find(*name);
    if (!found.ok()) return found.error();
    chosen = found.value();
  }
  const ManifestTask* before = task;
  const bool same = chosen == before || (chosen && before && chosen->route == before->route);
  if (keep_prefix < 0 || keep_prefix > position) {
    return {Code::Invalid, "keep_prefix must be from 0 to the position"};
  }
  if (keep_prefix > 0 && !same) {
    return {Code::Invalid, "keep_prefix: the cache was filled under another head and would be wrong"};
  }
  if (!same) {
    const Error error = take_head(chosen);
    if (!error.ok()) return error;
  }
  task = chosen;
  update_stats([&](Stats& s) { s.swap_ms = ms_since(started); });
  reset();
  position = keep_prefix;
  return {};
}

Error Session::State::check_ids(const int64_t* ids, int64_t count, int64_t start) const {
  const int64_t context = engine->limits.context;
  if (count > context - start) {
    return {
        Code::ContextFull,
        std::to_string(count) + " tokens do not fit: " + std::to_string(start) + " of " +
            std::to_string(context) + " are taken"};
  }
  for (int64_t i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= engine->limits.vocab) {
      return {Code::Invalid, "token " + std::to_string(ids[i]) + " is not in the vocabulary"};
    }
  }
  return {};
}

// Runs ids at the position, which stays; logits are then those after the first of the last `wanted`.
Error Session::State::run(const int64_t* ids, int64_t count, int64_t wanted) {
  tokens.assign(ids, ids + count);
  positions.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; i++) positions[i] = position + i;
  rows.resize(static_cast<size_t>(wanted));
  for (int64_t i = 0; i < wanted; i++) rows[i] = count - wanted + i;
  auto token_tensor =
      from_blob(tokens.data(), Sizes{1, static_cast<int32_t>(count)}, ScalarType::Long);
  auto position_tensor =
      from_blob(positions.data(), Sizes{static_cast<int32_t>(count)}, ScalarType::Long);
  auto row_tensor =
      from_blob(rows.data(), Sizes{static_cast<int32_t>(rows.size())}, ScalarType::Long);
  auto outputs = model->execute(
      "forward", {EValue(token_tensor), EValue(position_tensor), EValue(row_tensor)});
  if (!outputs.ok()) return runtime_error("forward failed", outputs.error());
  if (outputs->empty() || !outputs->at(0).isTensor()) {
    return {Code::Runtime, "forward gives no tensor"};
  }
  const auto tensor = outputs->at(0).toTensor();
  if (tensor.scalar_type() != ScalarType::Float || tensor.numel() != wanted * engine->limits.vocab) {
    return {Code::Runtime, "forward gives logits of another size"};
  }
  logits = tensor.const_data_ptr<float>();
  return {};
}

Error Session::State::append(const int64_t* ids, int64_t count) {
  Error error = check_ids(ids, count, position);
  if (!error.ok()) return error;
  const int64_t most = engine->limits.seq;
  for (int64_t start = 0; start < count; start += most) {
    const int64_t part = std::min(most, count - start);
    error = run(ids + start, part, 1);
    if (!error.ok()) {
      // What the cache holds now is not known.
      reset();
      return error;
    }
    position += part;
  }
  return {};
}

// One more token of an answer; of what is guessed after it, at most `useful` tokens can be of use.
Error Session::State::advance(int64_t token, int64_t useful) {
  if (lookup && lookup->known(token)) {
    logits += engine->limits.vocab;
    position += 1;
    return {};
  }
  update_stats([](Stats& s) { s.decode_calls += 1; });
  if (!lookup) return append(&token, 1);
  Error error = check_ids(&token, 1, position);
  if (!error.ok()) return error;
  const Limits& limits = engine->limits;
  const int64_t room = std::min(limits.rows, limits.context - position) - 1;
  std::vector<int64_t> ids = {token};
  const auto guessed = lookup->guess(token, std::min(useful, room));
  ids.insert(ids.end(), guessed.begin(), guessed.end());
  const auto count = static_cast<int64_t>(ids.size());
  error = run(ids.data(), count, count);
  if (!error.ok()) {
    reset();
    return error;
  }
  // What was guessed wrong is in the cache, behind the position, where nothing reads it.
  position += 1;
  return {};
}

Error Session::State::prefill(const std::vector<int64_t>& ids) {
  const auto started = Clock::now();
  if (ids.empty()) return {Code::Invalid, "no tokens: there is nothing to go on from"};
  std::vector<int64_t> text;
  text.reserve(ids.size() + 1);
  if (pending) text.push_back(*pending);
  text.insert(text.end(), ids.begin(), ids.end());
  const Error error = append(text.data(), static_cast<int64_t>(text.size()));
  if (!error.ok()) return error;
  pending.reset();
  lookup.reset();
  update_stats([&](Stats& s) {
    s.prefill_ms = ms_since(started);
    s.prefill_tokens = static_cast<int64_t>(text.size());
    s.decode_ms = 0;
    s.decode_tokens = 0;
    s.decode_calls = 0;
  });
  return {};
}

Result<int64_t> Session::State::step(const Sampling& sampling, int64_t useful) {
  if (logits == nullptr) return Error{Code::Invalid, "no text yet: prefill first"};
  Error error = Sampler::check(sampling);
  if (!error.ok()) return error;
  if (pending) {
    const auto started = Clock::now();
    error = advance(*pending, useful);
    if (!error.ok()) return error;
    // It is in the text now, even if nothing can be drawn after it.
    pending.reset();
    update_stats([&](Stats& s) {
      s.decode_ms += ms_since(started);
      s.decode_tokens += 1;
    });
  }
  const auto token = sampler.pick(logits, engine->limits.vocab, sampling);
  if (token.ok()) pending = token.value();
  return token;
}

void Session::State::reset() {
  position = 0;
  logits = nullptr;
  pending.reset();
  lookup.reset();
}

}  // namespace hydrapack
