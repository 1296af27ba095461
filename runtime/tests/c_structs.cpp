// struct_size of the C interface: callers compiled with an older or a newer header.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include <hydrapack.h>

#include "fixtures.h"

namespace {

struct OpenedPlainly {
  OpenedPlainly() {
    EXPECT_EQ(open(nullptr, &session), HYDRAPACK_OK) << hydrapack_last_error();
  }
  ~OpenedPlainly() { hydrapack_close(session); }
  static int open(const hydrapack_open_options* options, hydrapack_session** session) {
    return hydrapack_open(model().c_str(), package().c_str(), options, session);
  }
  hydrapack_session* session = nullptr;
};

int open(const hydrapack_open_options& options) {
  hydrapack_session* session = nullptr;
  const int code = OpenedPlainly::open(&options, &session);
  hydrapack_close(session);
  return code;
}

bool said(const char* words) { return std::strstr(hydrapack_last_error(), words) != nullptr; }

// Whether all bytes from start on are still those that the test wrote.
bool untouched(const void* from, size_t start, size_t size) {
  const auto* bytes = static_cast<const unsigned char*>(from);
  return std::all_of(bytes + start, bytes + size, [](unsigned char byte) { return byte == 0xAB; });
}

}  // namespace

TEST(CStructs, OfOtherVersions) {
  NEED_FIXTURES();
  hydrapack_open_options options = hydrapack_default_open_options();
  EXPECT_EQ(options.struct_size, sizeof options);
  // A caller that knows the first field only: what follows is its own, and is not looked at.
  options.struct_size = offsetof(hydrapack_open_options, public_key);
  options.public_key = "not a key";
  EXPECT_EQ(open(options), HYDRAPACK_OK) << hydrapack_last_error();
  options.struct_size = offsetof(hydrapack_open_options, weight_cache);
  EXPECT_EQ(open(options), HYDRAPACK_INVALID);
  EXPECT_TRUE(said("public_key")) << hydrapack_last_error();
  const std::vector<std::pair<size_t, const char*>> wrong = {
      {0, "hydrapack_open_options: struct_size is 0"},
      {sizeof options + sizeof(void*), "the header of a newer one"},
      {sizeof options + 1, "the header of a newer one"},
      {SIZE_MAX, "the header of a newer one"},
      {sizeof(size_t), "does not end with a field"},
      {sizeof(size_t) + 1, "does not end with a field"},
      {sizeof options - 1, "does not end with a field"}};
  for (const auto& [size, words] : wrong) {
    options = hydrapack_default_open_options();
    options.struct_size = size;
    EXPECT_EQ(open(options), HYDRAPACK_INVALID) << size;
    EXPECT_TRUE(said(words)) << hydrapack_last_error();
  }

  const OpenedPlainly opened;
  const auto ids = prompt();
  ASSERT_EQ(hydrapack_prefill(opened.session, ids.data(), ids.size()), HYDRAPACK_OK);
  int64_t token = 0;
  hydrapack_sampling sampling = hydrapack_default_sampling();
  sampling.top_p = -1;
  EXPECT_EQ(hydrapack_step(opened.session, &sampling, &token), HYDRAPACK_INVALID);
  sampling.struct_size = offsetof(hydrapack_sampling, top_p);
  EXPECT_EQ(hydrapack_step(opened.session, &sampling, &token), HYDRAPACK_OK);
  sampling.struct_size = 0;
  EXPECT_EQ(hydrapack_step(opened.session, &sampling, &token), HYDRAPACK_INVALID);
  EXPECT_TRUE(said("hydrapack_sampling: struct_size is 0"));

  hydrapack_options answer = hydrapack_default_options();
  const auto generate = [&](size_t size) {
    answer.struct_size = size;
    return hydrapack_generate(
        opened.session, ids.data(), ids.size(), &answer, nullptr, nullptr, nullptr, nullptr);
  };
  answer.max_new_tokens = 2;
  answer.top_p = 7;
  EXPECT_EQ(generate(sizeof answer), HYDRAPACK_INVALID);
  EXPECT_EQ(generate(offsetof(hydrapack_options, top_p)), HYDRAPACK_OK) << hydrapack_last_error();
  EXPECT_EQ(generate(0), HYDRAPACK_INVALID);
  EXPECT_EQ(generate(sizeof answer + 8), HYDRAPACK_INVALID);
  // Ids without their number are no list.
  EXPECT_EQ(generate(offsetof(hydrapack_options, stop_count)), HYDRAPACK_INVALID);
  EXPECT_TRUE(said("hydrapack_options: struct_size")) << hydrapack_last_error();
}

TEST(CStructs, ThatAreFilled) {
  NEED_FIXTURES();
  const OpenedPlainly opened;
  hydrapack_stats stats;
  const auto filled = [&](size_t size) {
    std::memset(&stats, 0xAB, sizeof stats);
    stats.struct_size = size;
    return hydrapack_get_stats(opened.session, &stats);
  };
  const size_t times = offsetof(hydrapack_stats, prefill_tokens);
  ASSERT_EQ(filled(times), HYDRAPACK_OK) << hydrapack_last_error();
  EXPECT_GT(stats.load_ms, 0);
  EXPECT_EQ(stats.struct_size, times);
  EXPECT_TRUE(untouched(&stats, times, sizeof stats));
  for (const size_t size : {size_t{0}, sizeof stats + 8, times - 1}) {
    EXPECT_EQ(filled(size), HYDRAPACK_INVALID) << size;
    EXPECT_TRUE(untouched(&stats, sizeof stats.struct_size, sizeof stats));
  }
  hydrapack_options options;
  std::memset(&options, 0xAB, sizeof options);
  const size_t two = offsetof(hydrapack_options, top_k);
  ASSERT_EQ(hydrapack_init_options(&options, two), HYDRAPACK_OK);
  EXPECT_EQ(options.struct_size, two);
  EXPECT_EQ(options.max_new_tokens, -1);
  EXPECT_TRUE(untouched(&options, two, sizeof options));
  ASSERT_EQ(hydrapack_task_defaults(opened.session, 0, &options), HYDRAPACK_OK);
  EXPECT_EQ(options.max_new_tokens, 128);
  EXPECT_EQ(options.temperature, 0.0f);
  EXPECT_TRUE(untouched(&options, two, sizeof options));
  options.struct_size = 0;
  EXPECT_EQ(hydrapack_task_defaults(opened.session, 0, &options), HYDRAPACK_INVALID);
  // A newer header's struct: refused, and again where it is used.
  struct {
    hydrapack_sampling known;
    double unknown;
  } newer;
  EXPECT_EQ(hydrapack_init_sampling(&newer.known, sizeof newer), HYDRAPACK_INVALID);
  int64_t token = 0;
  EXPECT_EQ(hydrapack_step(opened.session, &newer.known, &token), HYDRAPACK_INVALID);
  EXPECT_NE(std::strstr(hydrapack_last_error(), "newer"), nullptr);
}
