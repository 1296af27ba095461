#include <hydrapack.h>

#include <exception>
#include <string>

#include <hydrapack/activation.h>
#include <hydrapack/patch.h>
#include <hydrapack/session.h>

#include "c_structs.h"

struct hydrapack_engine {
  hydrapack::Engine held;
};

struct hydrapack_session {
  std::unique_ptr<hydrapack::Session> held;
};

namespace {

thread_local std::string last_error;

int report(const hydrapack::Error& error) {
  last_error = error.message;
  return static_cast<int>(error.code);
}

// What is thrown below (memory running out) ends here: no exception crosses into C.
template <typename Body>
int guarded(Body body) {
  try {
    return report(body());
  } catch (const std::exception& error) {
    return report({hydrapack::Code::Runtime, error.what()});
  } catch (...) {
    return report({hydrapack::Code::Runtime, "unknown error"});
  }
}

hydrapack::Error missing(const char* what) {
  return {hydrapack::Code::Invalid, std::string(what) + " is null"};
}

const hydrapack::Task* task_at(const hydrapack_session* session, size_t index) {
  return index < hydrapack_task_count(session) ? &session->held->tasks()[index] : nullptr;
}

template <typename Struct>
int initialized(Struct* target, size_t struct_size) {
  return guarded([&]() -> hydrapack::Error {
    if (target == nullptr) return missing("an argument");
    return hydrapack::initialize(target, struct_size);
  });
}

hydrapack::Result<hydrapack::OpenOptions> open_options_of(const hydrapack_open_options* given) {
  const auto options = hydrapack::taken(given);
  if (!options.ok()) return options.error();
  hydrapack::OpenOptions chosen;
  chosen.check_digests = options.value().check_digests != 0;
  chosen.check_heads = options.value().check_digests == 2;
  if (const char* key = options.value().public_key) {
    chosen.public_key = key;
    // A key that was meant and is empty must not pass for none.
    if (chosen.public_key.empty()) {
      return hydrapack::Error{hydrapack::Code::Invalid, "public_key is empty"};
    }
  }
  if (const char* folder = options.value().weight_cache) chosen.weight_cache = folder;
  chosen.share_weights = options.value().share_weights != 0;
  chosen.self_test = options.value().self_test != 0;
  return chosen;
}

hydrapack::GenerateOptions options_of(const hydrapack_options& options) {
  hydrapack::GenerateOptions chosen;
  if (!(options.max_new_tokens < 0)) chosen.max_new_tokens = options.max_new_tokens;
  if (!(options.temperature < 0)) chosen.temperature = options.temperature;
  if (!(options.top_k < 0)) chosen.top_k = options.top_k;
  if (!(options.top_p < 0)) chosen.top_p = options.top_p;
  chosen.seed = options.seed;
  chosen.lookup = options.lookup != 0;
  if (options.stop_ids != nullptr) {
    chosen.stop_ids.emplace(options.stop_ids, options.stop_ids + options.stop_count);
  }
  if (options.token_text != nullptr) {
    chosen.token_text = [text = options.token_text, user = options.token_text_user](int64_t token) {
      size_t size = 0;
      const char* bytes = text(token, &size, user);
      return bytes != nullptr ? std::string(bytes, size) : std::string();
    };
  }
  return chosen;
}

}  // namespace

const char* hydrapack_last_error(void) { return last_error.c_str(); }
const char* hydrapack_code_name(int code) {
  return hydrapack::name(static_cast<hydrapack::Code>(code));
}
const char* hydrapack_finish_name(int finish) {
  return hydrapack::name(static_cast<hydrapack::Finish>(finish));
}

int hydrapack_init_open_options(hydrapack_open_options* options, size_t struct_size) {
  return initialized(options, struct_size);
}
int hydrapack_init_sampling(hydrapack_sampling* sampling, size_t struct_size) {
  return initialized(sampling, struct_size);
}
int hydrapack_init_options(hydrapack_options* options, size_t struct_size) {
  return initialized(options, struct_size);
}

int hydrapack_engine_open(
    const char* model,
    const char* package,
    const hydrapack_open_options* options,
    hydrapack_engine** engine) {
  return guarded([&]() -> hydrapack::Error {
    if (engine != nullptr) *engine = nullptr;
    if (model == nullptr || package == nullptr || engine == nullptr) return missing("an argument");
    const auto chosen = open_options_of(options);
    if (!chosen.ok()) return chosen.error();
    auto opened = hydrapack::Engine::open(model, package, chosen.value());
    if (!opened.ok()) return opened.error();
    *engine = new hydrapack_engine{std::move(opened.value())};
    return {};
  });
}

int hydrapack_engine_session(const hydrapack_engine* engine, hydrapack_session** session) {
  return guarded([&]() -> hydrapack::Error {
    if (session != nullptr) *session = nullptr;
    if (engine == nullptr || session == nullptr) return missing("an argument");
    auto opened = engine->held.open_session();
    if (!opened.ok()) return opened.error();
    *session = new hydrapack_session{std::move(opened.value())};
    return {};
  });
}

void hydrapack_engine_close(hydrapack_engine* engine) { delete engine; }

int hydrapack_apply_patch(
    const char* package, const char* patch, const char* target, const char* public_key) {
  return guarded([&]() -> hydrapack::Error {
    if (package == nullptr || patch == nullptr || target == nullptr) return missing("a path");
    // A key that was meant and is empty must not pass for none.
    if (public_key != nullptr && *public_key == 0) {
      return {hydrapack::Code::Invalid, "public_key is empty"};
    }
    return hydrapack::apply_patch(
        package, patch, target, public_key == nullptr ? "" : public_key);
  });
}

int hydrapack_open(
    const char* model,
    const char* package,
    const hydrapack_open_options* options,
    hydrapack_session** session) {
  return guarded([&]() -> hydrapack::Error {
    if (session != nullptr) *session = nullptr;
    if (model == nullptr || package == nullptr || session == nullptr) return missing("an argument");
    const auto chosen = open_options_of(options);
    if (!chosen.ok()) return chosen.error();
    auto opened = hydrapack::Session::open(model, package, chosen.value());
    if (!opened.ok()) return opened.error();
    *session = new hydrapack_session{std::move(opened.value())};
    return {};
  });
}

void hydrapack_close(hydrapack_session* session) { delete session; }

int hydrapack_activate(const char* packages, const char* package) {
  return guarded([&]() -> hydrapack::Error {
    if (packages == nullptr || package == nullptr) return missing("a path");
    const auto switched = hydrapack::activate(packages, package);
    return switched.ok() ? hydrapack::Error{} : switched.error();
  });
}

int hydrapack_open_last_good(
    const char* model,
    const char* packages,
    const hydrapack_open_options* options,
    hydrapack_session** session,
    int* fell_back) {
  return guarded([&]() -> hydrapack::Error {
    if (session != nullptr) *session = nullptr;
    if (model == nullptr || packages == nullptr || session == nullptr) return missing("an argument");
    const auto chosen = open_options_of(options);
    if (!chosen.ok()) return chosen.error();
    auto opened = hydrapack::open_last_good(model, packages, chosen.value());
    if (!opened.ok()) return opened.error();
    *session = new hydrapack_session{std::move(opened.value().session)};
    if (fell_back != nullptr) *fell_back = opened.value().fell_back;
    return {};
  });
}

int hydrapack_self_test(
    hydrapack_session* session,
    hydrapack_difference callback,
    void* user,
    size_t* tokens,
    size_t* near_ties,
    size_t* differences) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr) return missing("session");
    const auto test = session->held->self_test();
    if (!test.ok()) return test.error();
    const hydrapack::SelfTest& found = test.value();
    for (const auto& d : found.differences) {
      if (callback == nullptr) break;
      callback(d.task.c_str(), d.prompt, d.token, d.expected, d.found, d.margin, user);
    }
    if (tokens != nullptr) *tokens = found.tokens;
    if (near_ties != nullptr) *near_ties = found.near_ties;
    if (differences != nullptr) *differences = found.differences.size();
    return {};
  });
}

size_t hydrapack_task_count(const hydrapack_session* session) {
  return session == nullptr ? 0 : session->held->tasks().size();
}

const char* hydrapack_task_name(const hydrapack_session* session, size_t index) {
  const auto* task = task_at(session, index);
  return task != nullptr ? task->name.c_str() : nullptr;
}

const char* hydrapack_task_prompt(const hydrapack_session* session, size_t index) {
  const auto* task = task_at(session, index);
  return task != nullptr ? task->prompt_template.c_str() : nullptr;
}

const char* hydrapack_task_language(const hydrapack_session* session, size_t index) {
  const auto* task = task_at(session, index);
  return task != nullptr ? task->language.c_str() : nullptr;
}

size_t hydrapack_task_stop_count(const hydrapack_session* session, size_t index) {
  const auto* task = task_at(session, index);
  return task != nullptr ? task->stop.size() : 0;
}

const char* hydrapack_task_stop(const hydrapack_session* session, size_t index, size_t stop) {
  const auto* task = task_at(session, index);
  return task != nullptr && stop < task->stop.size() ? task->stop[stop].c_str() : nullptr;
}

int hydrapack_task_defaults(
    const hydrapack_session* session, size_t index, hydrapack_options* options) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr || options == nullptr) return missing("an argument");
    const auto* task = task_at(session, index);
    if (task == nullptr) return {hydrapack::Code::NotFound, "no task of that index"};
    auto own = hydrapack::defaults<hydrapack_options>();
    own.max_new_tokens = task->max_new_tokens;
    own.temperature = task->sampling.temperature;
    own.top_k = task->sampling.top_k;
    own.top_p = task->sampling.top_p;
    return hydrapack::give(own, options);
  });
}

int hydrapack_use(hydrapack_session* session, const char* task) {
  return hydrapack_use_keeping(session, task, 0);
}

int hydrapack_use_keeping(hydrapack_session* session, const char* task, int64_t keep_prefix) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr) return missing("session");
    return session->held->use(task ? std::optional<std::string>(task) : std::nullopt, keep_prefix);
  });
}

const char* hydrapack_current_task(const hydrapack_session* session) {
  if (session == nullptr) return nullptr;
  const std::string name = session->held->task();
  for (const auto& task : session->held->tasks()) {
    if (task.name == name) return task.name.c_str();
  }
  return nullptr;
}

int hydrapack_prefill(hydrapack_session* session, const int64_t* ids, size_t count) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr || (ids == nullptr && count > 0)) return missing("an argument");
    return session->held->prefill(std::vector<int64_t>(ids, ids + count));
  });
}

int hydrapack_step(
    hydrapack_session* session, const hydrapack_sampling* sampling, int64_t* token) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr || token == nullptr) return missing("an argument");
    const auto chosen = hydrapack::taken(sampling);
    if (!chosen.ok()) return chosen.error();
    const hydrapack_sampling& s = chosen.value();
    auto made = session->held->step({s.temperature, s.top_k, s.top_p});
    if (!made.ok()) return made.error();
    *token = made.value();
    return {};
  });
}

int hydrapack_seed(hydrapack_session* session, uint64_t seed) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr) return missing("session");
    return session->held->seed(seed);
  });
}

int hydrapack_logits(hydrapack_session* session, const float** logits) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr || logits == nullptr) return missing("an argument");
    auto held = session->held->logits();
    if (!held.ok()) return held.error();
    *logits = held.value();
    return {};
  });
}

int hydrapack_generate(
    hydrapack_session* session,
    const int64_t* ids,
    size_t count,
    const hydrapack_options* options,
    hydrapack_callback callback,
    void* user,
    size_t* made,
    int* finish) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr || (ids == nullptr && count > 0)) return missing("an argument");
    const auto chosen = hydrapack::taken(options);
    if (!chosen.ok()) return chosen.error();
    if (chosen.value().stop_ids == nullptr && chosen.value().stop_count > 0) {
      return missing("stop_ids");
    }
    std::function<bool(int64_t)> forward;
    if (callback != nullptr) {
      forward = [&](int64_t token) { return callback(token, user) != 0; };
    }
    auto generated = session->held->generate(
        std::vector<int64_t>(ids, ids + count), options_of(chosen.value()), forward);
    if (!generated.ok()) return generated.error();
    if (made != nullptr) *made = generated.value().ids.size();
    if (finish != nullptr) *finish = static_cast<int>(generated.value().finish);
    return {};
  });
}

void hydrapack_stop(hydrapack_session* session) {
  if (session != nullptr) session->held->stop();
}

int hydrapack_reset(hydrapack_session* session) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr) return missing("session");
    return session->held->reset();
  });
}

int64_t hydrapack_position(const hydrapack_session* session) {
  return session == nullptr ? 0 : session->held->position();
}

int64_t hydrapack_max_context(const hydrapack_session* session) {
  return session == nullptr ? 0 : session->held->max_context();
}

int64_t hydrapack_vocab_size(const hydrapack_session* session) {
  return session == nullptr ? 0 : session->held->vocab_size();
}

int hydrapack_get_stats(const hydrapack_session* session, hydrapack_stats* stats) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr || stats == nullptr) return missing("an argument");
    const hydrapack::Stats s = session->held->stats();
    const hydrapack_stats own = {
        sizeof(hydrapack_stats), s.load_ms,        s.swap_ms,       s.prefill_ms,
        s.decode_ms,             s.prefill_tokens, s.decode_tokens, s.decode_calls,
        s.model_bytes,           s.adapter_bytes,  s.resident_bytes};
    return hydrapack::give(own, stats);
  });
}
