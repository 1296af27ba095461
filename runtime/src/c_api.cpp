#include <hydrapack.h>

#include <exception>
#include <string>

#include <hydrapack/session.h>

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

hydrapack::Sampling sampling_of(const hydrapack_options& options) {
  return {options.temperature, options.top_k, options.top_p, options.seed};
}

}  // namespace

const char* hydrapack_last_error(void) { return last_error.c_str(); }

hydrapack_options hydrapack_default_options(void) {
  return {128, 0.0f, 0, 1.0f, 0, nullptr, 0};
}

int hydrapack_open(
    const char* model, const char* package, int check_digests, hydrapack_session** session) {
  return guarded([&]() -> hydrapack::Error {
    if (model == nullptr || package == nullptr || session == nullptr) return missing("an argument");
    *session = nullptr;
    auto opened = hydrapack::Session::open(model, package, {check_digests != 0});
    if (!opened.ok()) return opened.error();
    *session = new hydrapack_session{std::move(opened.value())};
    return {};
  });
}

void hydrapack_close(hydrapack_session* session) { delete session; }

size_t hydrapack_task_count(const hydrapack_session* session) {
  return session == nullptr ? 0 : session->held->tasks().size();
}

const char* hydrapack_task_name(const hydrapack_session* session, size_t index) {
  if (index >= hydrapack_task_count(session)) return nullptr;
  return session->held->tasks()[index].name.c_str();
}

const char* hydrapack_task_prompt(const hydrapack_session* session, size_t index) {
  if (index >= hydrapack_task_count(session)) return nullptr;
  return session->held->tasks()[index].prompt_template.c_str();
}

int hydrapack_use(hydrapack_session* session, const char* task) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr) return missing("session");
    return session->held->use(task ? std::optional<std::string>(task) : std::nullopt);
  });
}

int hydrapack_prefill(hydrapack_session* session, const int64_t* ids, size_t count) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr || (ids == nullptr && count > 0)) return missing("an argument");
    return session->held->prefill(std::vector<int64_t>(ids, ids + count));
  });
}

int hydrapack_step(
    hydrapack_session* session, const hydrapack_options* options, int64_t* token) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr || token == nullptr) return missing("an argument");
    auto made = session->held->step(options ? sampling_of(*options) : hydrapack::Sampling{});
    if (!made.ok()) return made.error();
    *token = made.value();
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
    size_t* made) {
  return guarded([&]() -> hydrapack::Error {
    if (session == nullptr || (ids == nullptr && count > 0)) return missing("an argument");
    hydrapack::GenerateOptions chosen;
    if (options != nullptr) {
      chosen.max_new_tokens = options->max_new_tokens;
      chosen.sampling = sampling_of(*options);
      if (options->stop_ids != nullptr) {
        chosen.stop_ids.assign(options->stop_ids, options->stop_ids + options->stop_count);
      }
    }
    std::function<bool(int64_t)> forward;
    if (callback != nullptr) {
      forward = [&](int64_t token) { return callback(token, user) != 0; };
    }
    auto generated =
        session->held->generate(std::vector<int64_t>(ids, ids + count), chosen, forward);
    if (!generated.ok()) return generated.error();
    if (made != nullptr) *made = generated.value().ids.size();
    return {};
  });
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

void hydrapack_get_stats(const hydrapack_session* session, hydrapack_stats* stats) {
  if (session == nullptr || stats == nullptr) return;
  const hydrapack::Stats s = session->held->stats();
  *stats = {s.load_ms,        s.swap_ms,     s.prefill_ms,   s.decode_ms,     s.prefill_tokens,
            s.decode_tokens,  s.model_bytes, s.vector_bytes, s.resident_bytes};
}
