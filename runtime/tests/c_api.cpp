// The C interface: the same answers, codes and messages, and null everywhere.
#include <gtest/gtest.h>

#include <cstring>

#include <hydrapack.h>

#include "fixtures.h"

namespace {

int collect(int64_t token, void* user) {
  static_cast<std::vector<int64_t>*>(user)->push_back(token);
  return 1;
}

}  // namespace

TEST(CApi, Generates) {
  NEED_FIXTURES();
  hydrapack_session* session = nullptr;
  const std::string model = fixtures() + "/model.pte", package = fixtures() + "/package";
  ASSERT_EQ(hydrapack_open(model.c_str(), package.c_str(), 1, &session), HYDRAPACK_OK)
      << hydrapack_last_error();
  ASSERT_GT(hydrapack_task_count(session), 1u);
  const std::string name = hydrapack_task_name(session, 1);
  EXPECT_NE(std::strstr(hydrapack_task_prompt(session, 1), "{input}"), nullptr);
  EXPECT_EQ(hydrapack_task_name(session, 999), nullptr);
  const auto want = expected();
  const auto ids = want["prompt"].get<std::vector<int64_t>>();
  ASSERT_EQ(hydrapack_use(session, name.c_str()), HYDRAPACK_OK);
  hydrapack_options options = hydrapack_default_options();
  options.max_new_tokens = 12;
  std::vector<int64_t> tokens;
  size_t made = 0;
  ASSERT_EQ(
      hydrapack_generate(session, ids.data(), ids.size(), &options, collect, &tokens, &made),
      HYDRAPACK_OK);
  EXPECT_EQ(made, tokens.size());
  const auto answer = want["answers"][name].get<std::vector<int64_t>>();
  EXPECT_TRUE(std::equal(tokens.begin(), tokens.end(), answer.begin()));

  ASSERT_EQ(hydrapack_reset(session), HYDRAPACK_OK);
  ASSERT_EQ(hydrapack_prefill(session, ids.data(), ids.size()), HYDRAPACK_OK);
  int64_t token = -1;
  ASSERT_EQ(hydrapack_step(session, nullptr, &token), HYDRAPACK_OK);
  EXPECT_EQ(token, answer[0]);
  EXPECT_EQ(hydrapack_position(session), static_cast<int64_t>(ids.size()));
  hydrapack_stats stats;
  hydrapack_get_stats(session, &stats);
  EXPECT_EQ(stats.prefill_tokens, static_cast<int64_t>(ids.size()));

  EXPECT_EQ(hydrapack_use(session, "nobody"), HYDRAPACK_NOT_FOUND);
  EXPECT_NE(std::strstr(hydrapack_last_error(), "unknown task 'nobody'"), nullptr);
  EXPECT_EQ(hydrapack_use(session, nullptr), HYDRAPACK_OK);
  EXPECT_EQ(hydrapack_prefill(session, nullptr, 3), HYDRAPACK_INVALID);
  hydrapack_close(session);
}

TEST(CApi, Nulls) {
  hydrapack_session* session = nullptr;
  EXPECT_EQ(hydrapack_open(nullptr, "x", 1, &session), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_open("none.pte", "none", 1, &session), HYDRAPACK_NOT_FOUND);
  EXPECT_EQ(session, nullptr);
  EXPECT_EQ(hydrapack_use(nullptr, nullptr), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_prefill(nullptr, nullptr, 0), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_step(nullptr, nullptr, nullptr), HYDRAPACK_INVALID);
  EXPECT_EQ(
      hydrapack_generate(nullptr, nullptr, 0, nullptr, nullptr, nullptr, nullptr),
      HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_reset(nullptr), HYDRAPACK_INVALID);
  EXPECT_EQ(hydrapack_task_count(nullptr), 0u);
  EXPECT_EQ(hydrapack_max_context(nullptr), 0);
  hydrapack_close(nullptr);
}
