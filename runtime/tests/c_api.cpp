// The C interface: the same answers, codes and messages, and null everywhere.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include <hydrapack.h>

#include "fixtures.h"

namespace {

int collect(int64_t token, void* user) {
  static_cast<std::vector<int64_t>*>(user)->push_back(token);
  return 1;
}

// The text of every token is the one that user points to.
const char* same_text(int64_t, size_t* size, void* user) {
  const auto* text = static_cast<const std::string*>(user);
  *size = text->size();
  return text->data();
}

struct Opened {
  explicit Opened(const std::string& folder = package(), int check_digests = 1) {
    hydrapack_open_options options = hydrapack_default_open_options();
    options.check_digests = check_digests;
    EXPECT_EQ(hydrapack_open(model().c_str(), folder.c_str(), &options, &session), HYDRAPACK_OK)
        << hydrapack_last_error();
  }
  ~Opened() { hydrapack_close(session); }
  hydrapack_session* session = nullptr;
};

}  // namespace

TEST(CApi, Names) {
  EXPECT_STREQ(hydrapack_code_name(HYDRAPACK_OK), "Ok");
  EXPECT_STREQ(hydrapack_code_name(HYDRAPACK_IO), "Io");
  EXPECT_STREQ(hydrapack_code_name(HYDRAPACK_RUNTIME), "Runtime");
  EXPECT_STREQ(hydrapack_code_name(99), "");
  EXPECT_STREQ(hydrapack_finish_name(HYDRAPACK_FINISH_STOP), "stop");
  EXPECT_STREQ(hydrapack_finish_name(HYDRAPACK_FINISH_LENGTH), "length");
  EXPECT_STREQ(hydrapack_finish_name(HYDRAPACK_FINISH_CONTEXT), "context");
  EXPECT_STREQ(hydrapack_finish_name(HYDRAPACK_FINISH_STOPPED), "stopped");
  EXPECT_STREQ(hydrapack_finish_name(99), "");
}

TEST(CApi, RefusesAPatch) {
  EXPECT_EQ(hydrapack_apply_patch(nullptr, "p", "t", nullptr), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_apply_patch("none", "p", "t", ""), HYDRAPACK_INVALID);
  EXPECT_STREQ(hydrapack_last_error(), "public_key is empty");
  EXPECT_EQ(hydrapack_apply_patch("none", "none.patch", "t", nullptr), HYDRAPACK_NOT_FOUND);
  EXPECT_STREQ(hydrapack_last_error(), "none.patch: no such file");
}

TEST(CApi, Generates) {
  NEED_FIXTURES();
  const Opened opened;
  hydrapack_session* session = opened.session;
  ASSERT_GT(hydrapack_task_count(session), 1u);
  const std::string name = hydrapack_task_name(session, 1);
  EXPECT_NE(std::strstr(hydrapack_task_prompt(session, 1), "{input}"), nullptr);
  EXPECT_STREQ(hydrapack_task_language(session, 1), "");
  EXPECT_EQ(hydrapack_task_name(session, 999), nullptr);
  EXPECT_EQ(hydrapack_task_prompt(session, 999), nullptr);
  EXPECT_EQ(hydrapack_task_language(session, 999), nullptr);
  const auto want = expected();
  const auto ids = want["prompt"].get<std::vector<int64_t>>();
  const auto answer = want["answers"][name].get<std::vector<int64_t>>();
  EXPECT_EQ(hydrapack_current_task(session), nullptr);
  ASSERT_EQ(hydrapack_use(session, name.c_str()), HYDRAPACK_OK);
  EXPECT_STREQ(hydrapack_current_task(session), name.c_str());
  hydrapack_options options = hydrapack_default_options();
  options.max_new_tokens = 12;
  std::vector<int64_t> tokens;
  size_t made = 0;
  int finish = -1;
  ASSERT_EQ(
      hydrapack_generate(
          session, ids.data(), ids.size(), &options, collect, &tokens, &made, &finish),
      HYDRAPACK_OK);
  EXPECT_EQ(made, 12u);
  EXPECT_EQ(finish, HYDRAPACK_FINISH_LENGTH);
  EXPECT_EQ(tokens, std::vector<int64_t>(answer.begin(), answer.begin() + 12));

  ASSERT_EQ(hydrapack_reset(session), HYDRAPACK_OK);
  ASSERT_EQ(hydrapack_prefill(session, ids.data(), ids.size()), HYDRAPACK_OK);
  const float* logits = nullptr;
  ASSERT_EQ(hydrapack_logits(session, &logits), HYDRAPACK_OK);
  EXPECT_EQ(
      std::max_element(logits, logits + hydrapack_vocab_size(session)) - logits, answer[0]);
  int64_t token = -1;
  ASSERT_EQ(hydrapack_step(session, nullptr, &token), HYDRAPACK_OK);
  EXPECT_EQ(token, answer[0]);
  EXPECT_EQ(hydrapack_position(session), static_cast<int64_t>(ids.size()));
  EXPECT_GT(hydrapack_max_context(session), hydrapack_position(session));
  hydrapack_stats stats;
  stats.struct_size = sizeof stats;
  ASSERT_EQ(hydrapack_get_stats(session, &stats), HYDRAPACK_OK);
  EXPECT_EQ(stats.prefill_tokens, static_cast<int64_t>(ids.size()));
  EXPECT_EQ(hydrapack_use_keeping(session, name.c_str(), 2), HYDRAPACK_OK);
  EXPECT_EQ(hydrapack_position(session), 2);
  EXPECT_EQ(hydrapack_use_keeping(session, nullptr, 2), HYDRAPACK_INVALID);

  EXPECT_EQ(hydrapack_use(session, "nobody"), HYDRAPACK_NOT_FOUND);
  EXPECT_NE(std::strstr(hydrapack_last_error(), "unknown task 'nobody'"), nullptr);
  EXPECT_EQ(hydrapack_use(session, nullptr), HYDRAPACK_OK);
  EXPECT_EQ(hydrapack_prefill(session, nullptr, 3), HYDRAPACK_INVALID);
}

TEST(CApi, StepsAreSampledAndSeeded) {
  NEED_FIXTURES();
  const Opened opened;
  const auto ids = prompt();
  hydrapack_sampling sampling = hydrapack_default_sampling();
  sampling.temperature = 2;
  const auto drawn = [&](uint64_t seed) {
    EXPECT_EQ(hydrapack_reset(opened.session), HYDRAPACK_OK);
    EXPECT_EQ(hydrapack_prefill(opened.session, ids.data(), ids.size()), HYDRAPACK_OK);
    EXPECT_EQ(hydrapack_seed(opened.session, seed), HYDRAPACK_OK);
    std::vector<int64_t> made(12, -1);
    for (int64_t& token : made) {
      EXPECT_EQ(hydrapack_step(opened.session, &sampling, &token), HYDRAPACK_OK);
    }
    return made;
  };
  const auto one = drawn(1);
  EXPECT_EQ(drawn(1), one);
  EXPECT_NE(drawn(2), one);
  int64_t token = 0;
  sampling.top_p = 0;
  EXPECT_EQ(hydrapack_step(opened.session, &sampling, &token), HYDRAPACK_INVALID);
}

TEST(CApi, TheTasksOwnOptions) {
  NEED_FIXTURES();
  const Copy copy;
  copy.edit([](nlohmann::json& manifest) {
    manifest["tasks"][0]["generation"] = {
        {"max_new_tokens", 5}, {"temperature", 3.0}, {"top_k", 40}, {"top_p", 0.5}};
    manifest["tasks"][0]["stop"] = {"##", "."};
    manifest["tasks"][0]["language"] = "en";
  });
  const Opened opened(copy.package(), 0);
  hydrapack_session* session = opened.session;
  const std::string name = hydrapack_task_name(session, 0);
  EXPECT_STREQ(hydrapack_task_language(session, 0), "en");
  ASSERT_EQ(hydrapack_task_stop_count(session, 0), 2u);
  EXPECT_STREQ(hydrapack_task_stop(session, 0, 0), "##");
  EXPECT_STREQ(hydrapack_task_stop(session, 0, 1), ".");
  EXPECT_EQ(hydrapack_task_stop(session, 0, 2), nullptr);
  hydrapack_options own = hydrapack_default_options();
  ASSERT_EQ(hydrapack_task_defaults(session, 0, &own), HYDRAPACK_OK);
  EXPECT_EQ(own.max_new_tokens, 5);
  EXPECT_EQ(own.temperature, 3.0f);
  EXPECT_EQ(own.top_k, 40);
  EXPECT_EQ(own.top_p, 0.5f);
  EXPECT_EQ(hydrapack_task_defaults(session, 999, &own), HYDRAPACK_NOT_FOUND);

  const auto ids = prompt();
  const auto answer = expected()["answers"][name].get<std::vector<int64_t>>();
  std::vector<int64_t> tokens;
  size_t made = 0;
  int finish = -1;
  const auto generate = [&](const hydrapack_options* options) {
    tokens.clear();
    return hydrapack_generate(
        session, ids.data(), ids.size(), options, collect, &tokens, &made, &finish);
  };
  ASSERT_EQ(hydrapack_use(session, name.c_str()), HYDRAPACK_OK);
  // It has stop strings: neither ids nor texts is no answer.
  EXPECT_EQ(generate(nullptr), HYDRAPACK_INVALID);
  hydrapack_options options = hydrapack_default_options();
  EXPECT_EQ(generate(&options), HYDRAPACK_INVALID);
  // A list that is given, of no ids.
  const int64_t none = 0;
  options.stop_ids = &none;
  ASSERT_EQ(generate(&options), HYDRAPACK_OK);
  EXPECT_EQ(finish, HYDRAPACK_FINISH_LENGTH);
  EXPECT_EQ(tokens.size(), 5u);
  const auto drawn = tokens;
  ASSERT_EQ(hydrapack_task_defaults(session, 0, &own), HYDRAPACK_OK);
  own.stop_ids = &none;
  ASSERT_EQ(generate(&own), HYDRAPACK_OK);
  EXPECT_EQ(tokens, drawn);
  options.temperature = 0;
  ASSERT_EQ(generate(&options), HYDRAPACK_OK);
  EXPECT_EQ(tokens, std::vector<int64_t>(answer.begin(), answer.begin() + 5));
  options.stop_ids = &answer[0];
  options.stop_count = 1;
  ASSERT_EQ(generate(&options), HYDRAPACK_OK);
  EXPECT_EQ(finish, HYDRAPACK_FINISH_STOP);
  EXPECT_EQ(made, 0u);
  // The text of tokens: "#" twice is the stop string.
  std::string text = "#";
  options = hydrapack_default_options();
  options.token_text = same_text;
  options.token_text_user = &text;
  ASSERT_EQ(generate(&options), HYDRAPACK_OK);
  EXPECT_EQ(finish, HYDRAPACK_FINISH_STOP);
  EXPECT_EQ(tokens.size(), 2u);
  // What is no option is refused.
  const auto refused = [&](auto change) {
    hydrapack_options wrong = options;
    change(wrong);
    return generate(&wrong);
  };
  EXPECT_EQ(refused([](auto& o) { o.max_new_tokens = 0; }), HYDRAPACK_INVALID);
  EXPECT_EQ(refused([](auto& o) { o.temperature = NAN; }), HYDRAPACK_INVALID);
  EXPECT_EQ(refused([](auto& o) { o.temperature = 101; }), HYDRAPACK_INVALID);
  EXPECT_EQ(refused([](auto& o) { o.top_p = 0; }), HYDRAPACK_INVALID);
  EXPECT_EQ(refused([](auto& o) { o.top_p = NAN; }), HYDRAPACK_INVALID);
  EXPECT_EQ(refused([](auto& o) { o.stop_count = 1; }), HYDRAPACK_INVALID);
}

TEST(CApi, Stops) {
  NEED_FIXTURES();
  const Opened opened;
  const auto ids = prompt();
  size_t made = 0;
  int finish = -1;
  hydrapack_stop(opened.session);
  const auto generate = [&](hydrapack_callback callback, void* user) {
    return hydrapack_generate(
        opened.session, ids.data(), ids.size(), nullptr, callback, user, &made, &finish);
  };
  const hydrapack_callback stops = [](int64_t, void* user) {
    hydrapack_stop(static_cast<hydrapack_session*>(user));
    return 1;
  };
  ASSERT_EQ(generate(stops, opened.session), HYDRAPACK_OK);
  EXPECT_EQ(made, 1u);
  EXPECT_EQ(finish, HYDRAPACK_FINISH_STOPPED);
  const hydrapack_callback refuses = [](int64_t, void*) { return 0; };
  ASSERT_EQ(generate(refuses, nullptr), HYDRAPACK_OK);
  EXPECT_EQ(made, 1u);
  EXPECT_EQ(finish, HYDRAPACK_FINISH_STOPPED);
}

TEST(CApi, PublicKeys) {
  NEED_FIXTURES();
  const std::string key = expected()["public_key"];
  const auto code = [](const char* public_key) {
    hydrapack_open_options options = hydrapack_default_open_options();
    EXPECT_EQ(options.check_digests, 1);
    EXPECT_EQ(options.public_key, nullptr);
    options.public_key = public_key;
    hydrapack_session* session = nullptr;
    const int result = hydrapack_open(model().c_str(), package().c_str(), &options, &session);
    EXPECT_EQ(session != nullptr, result == HYDRAPACK_OK);
    hydrapack_close(session);
    return result;
  };
  EXPECT_EQ(code(nullptr), HYDRAPACK_OK);
  EXPECT_EQ(code(""), HYDRAPACK_INVALID);
#if defined(HYDRAPACK_SIGNATURES)
  EXPECT_EQ(code(key.c_str()), HYDRAPACK_OK);
  EXPECT_EQ(code(std::string(64, 'a').c_str()), HYDRAPACK_MISMATCH);
#else
  EXPECT_EQ(code(key.c_str()), HYDRAPACK_INVALID);
#endif
}

TEST(CApi, SessionsOfAnEngine) {
  NEED_FIXTURES();
  hydrapack_open_options options = hydrapack_default_open_options();
  EXPECT_EQ(options.share_weights, 0);
  options.share_weights = 1;
  hydrapack_engine* engine = nullptr;
  ASSERT_EQ(
      hydrapack_engine_open(model().c_str(), package().c_str(), &options, &engine), HYDRAPACK_OK)
      << hydrapack_last_error();
  hydrapack_session* sessions[2] = {nullptr, nullptr};
  for (auto& session : sessions) ASSERT_EQ(hydrapack_engine_session(engine, &session), HYDRAPACK_OK);
  hydrapack_engine_close(engine);
  const auto ids = prompt();
  for (size_t i = 0; i < 2; i++) {
    const std::string name = hydrapack_task_name(sessions[i], i);
    ASSERT_EQ(hydrapack_use(sessions[i], name.c_str()), HYDRAPACK_OK);
  }
  for (size_t i = 0; i < 2; i++) {
    int64_t token = -1;
    ASSERT_EQ(hydrapack_prefill(sessions[i], ids.data(), ids.size()), HYDRAPACK_OK);
    ASSERT_EQ(hydrapack_step(sessions[i], nullptr, &token), HYDRAPACK_OK);
    EXPECT_EQ(token, expected()["answers"][hydrapack_task_name(sessions[i], i)][0].get<int64_t>());
    hydrapack_close(sessions[i]);
  }
  EXPECT_EQ(hydrapack_engine_open("none.pte", "none", nullptr, &engine), HYDRAPACK_NOT_FOUND);
  EXPECT_EQ(engine, nullptr);
}

TEST(CApi, Nulls) {
  hydrapack_session* session = nullptr;
  EXPECT_EQ(hydrapack_open(nullptr, "x", nullptr, &session), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_open("x", "x", nullptr, nullptr), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_open("none.pte", "none", nullptr, &session), HYDRAPACK_NOT_FOUND);
  EXPECT_EQ(session, nullptr);
  EXPECT_EQ(hydrapack_use(nullptr, nullptr), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_prefill(nullptr, nullptr, 0), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_step(nullptr, nullptr, nullptr), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_seed(nullptr, 0), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_logits(nullptr, nullptr), HYDRAPACK_INVALID);
  EXPECT_EQ(
      hydrapack_generate(nullptr, nullptr, 0, nullptr, nullptr, nullptr, nullptr, nullptr),
      HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_reset(nullptr), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_task_count(nullptr), 0u);
  EXPECT_EQ(hydrapack_task_stop_count(nullptr, 0), 0u);
  EXPECT_EQ(hydrapack_task_stop(nullptr, 0, 0), nullptr);
  EXPECT_EQ(hydrapack_task_defaults(nullptr, 0, nullptr), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_get_stats(nullptr, nullptr), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_init_options(nullptr, 8), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_engine_open(nullptr, "x", nullptr, nullptr), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_engine_session(nullptr, &session), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_current_task(nullptr), nullptr);
  EXPECT_EQ(hydrapack_position(nullptr), 0);
  EXPECT_EQ(hydrapack_max_context(nullptr), 0);
  EXPECT_EQ(hydrapack_vocab_size(nullptr), 0);
  hydrapack_stop(nullptr);
  hydrapack_engine_close(nullptr);
  hydrapack_close(nullptr);
}
