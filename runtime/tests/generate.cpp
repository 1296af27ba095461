// Answers: options, and where they end.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "fixtures.h"

using namespace hydrapack;
using nlohmann::json;

namespace {

// Ids of the bare model's answer as far as no end token comes: the tests need a few of them.
std::vector<int64_t> answer(const std::string& task = "") {
  return expected()["answers"][task].get<std::vector<int64_t>>();
}

GenerateOptions at_most(int64_t count) {
  GenerateOptions options;
  options.max_new_tokens = count;
  return options;
}

std::vector<int64_t> first(const std::vector<int64_t>& ids, size_t count) {
  return {ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(count)};
}

// Two letters for each token, another pair for each.
std::string letters(int64_t token) {
  return {static_cast<char>('a' + token / 26 % 26), static_cast<char>('a' + token % 26)};
}

}  // namespace

TEST(Generate, Ends) {
  NEED_FIXTURES();
  const auto session = opened();
  const auto all = answer();
  auto made = session->generate(prompt(), at_most(10));
  ASSERT_TRUE(made.ok());
  EXPECT_EQ(made.value().finish, Finish::Length);
  EXPECT_EQ(made.value().ids, first(all, 10));
  EXPECT_EQ(made.value().text, "");
  EXPECT_EQ(session->stats().decode_tokens, 9);

  GenerateOptions options = at_most(10);
  options.stop_ids = {all[4]};
  const auto before = std::find(all.begin(), all.end(), all[4]) - all.begin();
  made = session->generate(prompt(), options);
  EXPECT_EQ(made.value().finish, Finish::Stop);
  EXPECT_EQ(made.value().ids, first(all, static_cast<size_t>(before)));

  int seen = 0;
  made = session->generate(prompt(), at_most(10), [&](int64_t) { return ++seen < 3; });
  EXPECT_EQ(made.value().finish, Finish::Stopped);
  EXPECT_EQ(made.value().ids, first(all, 3));
}

TEST(Generate, EndsAtTheModelsEndTokens) {
  NEED_FIXTURES();
  // The model's own end token is 2; a hot enough draw finds it.
  const auto session = opened();
  int ended = 0;
  for (uint64_t seed = 0; seed < 60 && ended == 0; seed++) {
    GenerateOptions options = at_most(80);
    options.temperature = 100.0f;
    options.seed = seed;
    options.stop_ids.emplace();
    const auto made = session->generate(prompt(), options);
    ASSERT_TRUE(made.ok());
    for (const int64_t id : made.value().ids) ASSERT_NE(id, 2);
    ended += made.value().finish == Finish::Stop;
  }
  EXPECT_GT(ended, 0);
}

TEST(Generate, EndsWhereTheContextIsFull) {
  NEED_FIXTURES();
  const auto session = opened();
  const auto context = static_cast<size_t>(session->max_context());
  const std::vector<int64_t> ids(context - 3, 5);
  const auto made = session->generate(ids, at_most(1000));
  ASSERT_TRUE(made.ok());
  EXPECT_EQ(made.value().finish, Finish::Context);
  EXPECT_EQ(made.value().ids.size(), 4u);
  EXPECT_EQ(session->generate(std::vector<int64_t>(context + 1, 5)).error().code,
            Code::ContextFull);
}

TEST(Generate, SeedsItself) {
  NEED_FIXTURES();
  const auto session = opened();
  GenerateOptions options = at_most(10);
  options.temperature = 2.0f;
  const auto drawn = [&](uint64_t seed) {
    options.seed = seed;
    return session->generate(prompt(), options).value().ids;
  };
  const auto one = drawn(5);
  ASSERT_FALSE(one.empty());
  EXPECT_TRUE(session->seed(77).ok());
  EXPECT_EQ(drawn(5), one);
  EXPECT_NE(drawn(6), one);
}

TEST(Generate, TheTasksOwnOptionsWhereNothingIsSaid) {
  NEED_FIXTURES();
  const Copy copy;
  copy.edit([](json& manifest) {
    manifest["tasks"][0]["generation"] = {
        {"max_new_tokens", 5}, {"temperature", 3.0}, {"top_k", 40}, {"top_p", 0.95}};
  });
  const auto result = copy.open(false);
  ASSERT_TRUE(result.ok());
  Session& session = *result.value();
  const Task& task = session.tasks()[0];
  EXPECT_EQ(task.max_new_tokens, 5);
  EXPECT_EQ(task.sampling.temperature, 3.0f);
  EXPECT_EQ(task.sampling.top_k, 40);
  EXPECT_EQ(task.sampling.top_p, 0.95f);
  const auto ids = [&](const GenerateOptions& options) {
    const auto made = session.generate(prompt(), options);
    EXPECT_TRUE(made.ok());
    return made.value().ids;
  };
  GenerateOptions said;
  said.max_new_tokens = 5;
  said.temperature = 3.0f;
  said.top_k = 40;
  said.top_p = 0.95f;
  ASSERT_TRUE(session.use(task.name).ok());
  const auto own = ids({});
  ASSERT_EQ(own.size(), 5u);
  EXPECT_EQ(ids(said), own);
  // Each can be said apart.
  GenerateOptions greedy;
  greedy.temperature = 0.0f;
  EXPECT_EQ(ids(greedy), first(answer(task.name), 5));
  EXPECT_NE(own, first(answer(task.name), 5));
  GenerateOptions one;
  one.top_k = 1;
  EXPECT_EQ(ids(one), first(answer(task.name), 5));
  EXPECT_EQ(ids(at_most(2)), first(own, 2));
  // The bare base model has its own: greedy, 128 tokens.
  ASSERT_TRUE(session.use(std::nullopt).ok());
  const auto bare = session.generate({5});
  ASSERT_TRUE(bare.ok());
  EXPECT_EQ(bare.value().finish, Finish::Length);
  EXPECT_EQ(bare.value().ids.size(), 128u);
  EXPECT_EQ(session.generate({5}, at_most(20)).value().ids, first(bare.value().ids, 20));
}

TEST(Generate, RefusesOptions) {
  NEED_FIXTURES();
  const auto session = opened();
  ASSERT_TRUE(session->prefill(prompt()).ok());
  const auto refused = [&](auto change) {
    GenerateOptions options = at_most(3);
    change(options);
    const auto made = session->generate(prompt(), options);
    return made.ok() ? Code::Ok : made.error().code;
  };
  for (const int64_t wrong : {int64_t{0}, int64_t{-1}, int64_t{(1 << 20) + 1}}) {
    EXPECT_EQ(refused([&](auto& o) { o.max_new_tokens = wrong; }), Code::Invalid) << wrong;
  }
  for (const float wrong : {-0.5f, 100.5f, NAN}) {
    EXPECT_EQ(refused([&](auto& o) { o.temperature = wrong; }), Code::Invalid) << wrong;
  }
  for (const int64_t wrong : {int64_t{-1}, int64_t{(1 << 20) + 1}}) {
    EXPECT_EQ(refused([&](auto& o) { o.top_k = wrong; }), Code::Invalid) << wrong;
  }
  for (const float wrong : {0.0f, -1.0f, 1.5f, NAN}) {
    EXPECT_EQ(refused([&](auto& o) { o.top_p = wrong; }), Code::Invalid) << wrong;
  }
  EXPECT_EQ(session->generate({}).error().code, Code::Invalid);
  EXPECT_EQ(session->generate({-1}).error().code, Code::Invalid);
  // What is refused changes nothing.
  EXPECT_EQ(session->position(), static_cast<int64_t>(prompt().size()));
  EXPECT_EQ(refused([](auto& o) { o.max_new_tokens = 1 << 20; }), Code::Ok);
}

class StopStrings : public ::testing::Test {
 protected:
  void SetUp() override {
    NEED_FIXTURES();
    ids = expected()["answers"]["one"].get<std::vector<int64_t>>();
    for (size_t i = 0; i < 8; i++) text += letters(ids[i]);
  }

  Generated made(const std::vector<std::string>& stop, int64_t count = 12) {
    const Copy copy;
    copy.edit([&](json& manifest) {
      for (json& task : manifest["tasks"]) {
        if (task["name"] == "one") task["stop"] = stop;
      }
    });
    auto session = std::move(copy.open(false).value());
    EXPECT_TRUE(session->use("one").ok());
    // Neither ids nor the text of tokens: the strings would be overlooked.
    EXPECT_EQ(session->generate(prompt(), at_most(count)).ok(), stop.empty());
    if (!stop.empty()) {
      const auto refused = session->generate(prompt(), at_most(count)).error();
      EXPECT_EQ(refused.code, Code::Invalid);
      EXPECT_NE(refused.message.find("'one' has stop strings"), std::string::npos);
      // The caller says that it looks for them.
      GenerateOptions ids_only = at_most(count);
      ids_only.stop_ids.emplace();
      EXPECT_EQ(session->generate(prompt(), ids_only).value().finish, Finish::Length);
      // The bare base model has none.
      EXPECT_TRUE(session->use(std::nullopt).ok());
      EXPECT_TRUE(session->generate(prompt(), at_most(count)).ok());
      EXPECT_TRUE(session->use("one").ok());
    }
    GenerateOptions options = at_most(count);
    options.token_text = letters;
    std::vector<int64_t> seen;
    auto result = session->generate(prompt(), options, [&](int64_t token) {
      seen.push_back(token);
      return true;
    });
    EXPECT_TRUE(result.ok());
    EXPECT_EQ(seen, result.value().ids);
    return result.value();
  }

  std::vector<int64_t> ids;
  std::string text;
};

TEST_F(StopStrings, NoneIsInTheText) {
  const Generated one = made({"~", text + "~"}, 8);
  EXPECT_EQ(one.finish, Finish::Length);
  EXPECT_EQ(one.ids, first(ids, 8));
  EXPECT_EQ(one.text, text);
  const Generated none = made({}, 8);
  EXPECT_EQ(none.finish, Finish::Length);
  EXPECT_EQ(none.text, text);
}

TEST_F(StopStrings, AcrossTokens) {
  // From the middle of a token, over another, into a third.
  const std::string stop = text.substr(5, 4);
  const Generated one = made({"~", stop});
  const size_t at = text.find(stop);
  EXPECT_EQ(one.finish, Finish::Stop);
  EXPECT_EQ(one.text, text.substr(0, at));
  EXPECT_EQ(one.ids, first(ids, (at + stop.size() + 1) / 2));
}

TEST_F(StopStrings, TheFirstOfSeveralCuts) {
  // Both are complete with the same token; the longer begins earlier.
  // A token is two letters; the pair must not stand earlier in the text.
  size_t at = 4;
  while (at + 2 < text.size() && (text.find(text.substr(at, 2)) != at ||
                                  text.find(text.substr(at - 3, 5)) != at - 3)) {
    at += 2;
  }
  const std::string late = text.substr(at, 2), early = text.substr(at - 3, 5);
  ASSERT_EQ(text.find(late), at);
  const Generated one = made({late, early});
  EXPECT_EQ(one.text, text.substr(0, at - 3));
  EXPECT_EQ(one.ids, first(ids, at / 2 + 1));
}

TEST_F(StopStrings, AtTheLastTokenAllowed) {
  ASSERT_EQ(text.find(text.substr(4, 2)), 4u);
  EXPECT_EQ(made({text.substr(4, 2)}, 3).finish, Finish::Stop);
}

TEST(Generate, ACallbackMayThrow) {
  NEED_FIXTURES();
  const auto session = opened();
  const auto fails = [](int64_t) -> bool { throw std::runtime_error("mine"); };
  EXPECT_THROW((void)session->generate(prompt(), at_most(3), fails), std::runtime_error);
  session->stop();
  const auto made = session->generate(prompt(), at_most(3));
  EXPECT_EQ(made.value().ids, first(answer(), 3));
}
