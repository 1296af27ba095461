// Calls from several threads; ThreadSanitizer watches these alone.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "fixtures.h"

using namespace hydrapack;

TEST(Threads, AnotherCallMeanwhileIsBusy) {
  NEED_FIXTURES();
  const auto session = opened();
  std::mutex mutex;
  std::condition_variable changed;
  bool inside = false, told = false;
  const auto every_call_is_busy = [&] {
    EXPECT_EQ(session->use(std::nullopt).code, Code::Busy);
    EXPECT_EQ(session->prefill({5}).code, Code::Busy);
    EXPECT_EQ(session->step().error().code, Code::Busy);
    EXPECT_EQ(session->seed(1).code, Code::Busy);
    EXPECT_EQ(session->logits().error().code, Code::Busy);
    EXPECT_EQ(session->generate({5}).error().code, Code::Busy);
    EXPECT_EQ(session->reset().code, Code::Busy);
  };
  std::thread other([&] {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return inside; });
    every_call_is_busy();
    told = true;
    changed.notify_all();
  });
  GenerateOptions options;
  options.max_new_tokens = 5;
  const auto made = session->generate(prompt(), options, [&](int64_t) {
    every_call_is_busy();  // from the callback itself
    std::unique_lock<std::mutex> lock(mutex);
    inside = true;
    changed.notify_all();
    changed.wait(lock, [&] { return told; });
    return true;
  });
  other.join();
  ASSERT_TRUE(made.ok());
  ASSERT_FALSE(made.value().ids.empty());
  const auto want = expected()["answers"][""];
  for (size_t i = 0; i < made.value().ids.size(); i++) EXPECT_EQ(made.value().ids[i], want[i]);
  EXPECT_TRUE(session->reset().ok());
}

TEST(Threads, LookingAndStoppingIsSafe) {
  NEED_FIXTURES();
  const auto session = opened();
  const auto tasks = session->tasks();
  std::atomic<bool> done{false};
  std::atomic<int> looks{0}, stops{0};
  std::thread looker([&] {
    while (!done) {
      const std::string task = session->task();
      EXPECT_TRUE(task.empty() || task == tasks[0].name || task == tasks[1].name);
      EXPECT_GE(session->position(), 0);
      EXPECT_LE(session->position(), session->max_context());
      const Stats stats = session->stats();
      // Written together, read together.
      EXPECT_EQ(stats.prefill_ms > 0, stats.prefill_tokens > 0);
      looks++;
    }
  });
  std::thread stopper([&] {
    while (!done) {
      session->stop();
      stops++;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  for (int i = 0; i < 20 || looks < 20 || stops < 20; i++) {
    ASSERT_TRUE(session->use(tasks[i % 2].name).ok());
    ASSERT_TRUE(session->generate(prompt()).ok());
  }
  done = true;
  looker.join();
  stopper.join();
}

TEST(Threads, SessionsOfOneEngineOnSeveral) {
  NEED_FIXTURES();
  for (const bool share : {false, true}) {
    OpenOptions options;
    options.share_weights = share;
    const Engine one = engine(options), same = engine(options);
    std::atomic<int> running{3};
    std::vector<std::thread> threads;
    for (int i = 0; i < 3; i++) {
      threads.emplace_back([&, i] {
        const auto session = std::move((i == 2 ? same : one).open_session().value());
        for (int round = 0; round < 3; round++) answers_as_python(*session);
        running--;
      });
    }
    // Meanwhile others come and go.
    int opened = 0;
    while (running > 0 || opened < 3) {
      const auto session = std::move(one.open_session().value());
      EXPECT_TRUE(session->use(one.tasks()[0].name).ok());
      opened++;
    }
    for (std::thread& thread : threads) thread.join();
  }
}

TEST(Threads, OneStopsTheAnswerOfAnother) {
  NEED_FIXTURES();
  const auto session = opened();
  session->stop();  // nothing is being made
  const auto all = expected()["answers"][""].get<std::vector<int64_t>>();
  const auto first = [&](size_t count) { return std::vector<int64_t>(all.begin(), all.begin() + count); };
  GenerateOptions options;
  options.max_new_tokens = 20;
  // From the callback.
  auto made = session->generate(prompt(), options, [&](int64_t) {
    session->stop();
    return true;
  });
  EXPECT_EQ(made.value().finish, Finish::Stopped);
  EXPECT_EQ(made.value().ids, first(1));
  // From another thread, which the answer waits for.
  int seen = 0;
  made = session->generate(prompt(), options, [&](int64_t) {
    if (++seen == 4) std::thread([&] { session->stop(); }).join();
    return true;
  });
  EXPECT_EQ(made.value().finish, Finish::Stopped);
  EXPECT_EQ(made.value().ids, first(4));
  // The next answer is not touched.
  session->stop();
  options.max_new_tokens = 6;
  made = session->generate(prompt(), options);
  EXPECT_EQ(made.value().finish, Finish::Length);
  EXPECT_EQ(made.value().ids, first(6));
}
