// The session on the small model: heads and texts.
#include <random>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include "fixtures.h"

using namespace hydrapack;
using nlohmann::json;

namespace {

std::vector<int64_t> greedy(Session& session, const std::vector<int64_t>& ids, size_t count) {
  std::vector<int64_t> made;
  EXPECT_TRUE(session.reset().ok());
  EXPECT_TRUE(session.prefill(ids).ok());
  while (made.size() < count) {
    const auto token = session.step();
    if (!token.ok()) {
      ADD_FAILURE() << token.error().message;
      break;
    }
    made.push_back(token.value());
  }
  return made;
}

}  // namespace

TEST(Session, SameIdsAsPythonAfterRandomSwaps) {
  NEED_FIXTURES();
  const auto session = opened();
  const auto want = expected();
  std::mt19937 random(0);
  std::vector<std::string> names;
  for (const auto& item : want["answers"].items()) names.push_back(item.key());
  for (int i = 0; i < 20; i++) {
    const std::string& name = names[random() % names.size()];
    ASSERT_TRUE(session->use(name.empty() ? std::nullopt : std::optional(name)).ok());
  }
  for (const std::string& name : names) {
    ASSERT_TRUE(session->use(name.empty() ? std::nullopt : std::optional(name)).ok());
    EXPECT_EQ(session->position(), 0);
    EXPECT_EQ(session->task(), name);
    const auto ids = want["answers"][name].get<std::vector<int64_t>>();
    EXPECT_EQ(greedy(*session, prompt(), ids.size()), ids) << name;
  }
}

TEST(Session, PrefillInPiecesIsTheSame) {
  NEED_FIXTURES();
  const auto session = opened();
  const auto ids = prompt();
  const auto whole = greedy(*session, ids, 8);
  ASSERT_TRUE(session->reset().ok());
  for (const int64_t id : ids) ASSERT_TRUE(session->prefill({id}).ok());
  std::vector<int64_t> made;
  for (int i = 0; i < 8; i++) made.push_back(session->step().value());
  EXPECT_EQ(made, whole);
  EXPECT_EQ(session->position(), static_cast<int64_t>(ids.size()) + 7);
}

TEST(Session, AFullContextIsAnError) {
  NEED_FIXTURES();
  const auto session = opened();
  const int64_t context = session->max_context();
  const std::vector<int64_t> full(static_cast<size_t>(context), 5);
  ASSERT_TRUE(session->prefill(full).ok());
  EXPECT_EQ(session->position(), context);
  ASSERT_TRUE(session->step().ok());  // of the logits that are there
  EXPECT_EQ(session->step().error().code, Code::ContextFull);
  EXPECT_EQ(session->prefill({5}).code, Code::ContextFull);
  ASSERT_TRUE(session->reset().ok());
  std::vector<int64_t> more = full;
  more.push_back(5);
  EXPECT_EQ(session->prefill(more).code, Code::ContextFull);
}

TEST(Session, RefusesArguments) {
  NEED_FIXTURES();
  const auto session = opened();
  EXPECT_EQ(session->step().error().code, Code::Invalid);
  EXPECT_EQ(session->logits().error().code, Code::Invalid);
  EXPECT_EQ(session->prefill({}).code, Code::Invalid);
  EXPECT_EQ(session->prefill({-1}).code, Code::Invalid);
  EXPECT_EQ(session->prefill({session->vocab_size()}).code, Code::Invalid);
  ASSERT_TRUE(session->prefill(prompt()).ok());
  EXPECT_EQ(session->step({-1, 0, 1}).error().code, Code::Invalid);
  EXPECT_EQ(session->step({0, -1, 1}).error().code, Code::Invalid);
  EXPECT_EQ(session->step({0, 0, 0}).error().code, Code::Invalid);
  EXPECT_EQ(session->prefill({5, -1}).code, Code::Invalid);
  // The text is as it was.
  EXPECT_EQ(session->position(), static_cast<int64_t>(prompt().size()));
  EXPECT_EQ(session->step().value(), expected()["answers"][""][0].get<int64_t>());
}

TEST(Session, PrefixesAreKeptOnlyUnderTheSameHead) {
  NEED_FIXTURES();
  const auto session = opened();
  const auto tasks = session->tasks();
  const auto ids = prompt();
  ASSERT_TRUE(session->use(tasks[0].name).ok());
  const auto whole = greedy(*session, ids, 6);
  // The same head: all but the last id of the prompt stay.
  const auto kept = static_cast<int64_t>(ids.size()) - 1;
  ASSERT_TRUE(session->use(tasks[0].name, kept).ok());
  EXPECT_EQ(session->position(), kept);
  ASSERT_TRUE(session->prefill({ids.back()}).ok());
  std::vector<int64_t> made;
  for (int i = 0; i < 6; i++) made.push_back(session->step().value());
  EXPECT_EQ(made, whole);
  EXPECT_EQ(session->use(std::nullopt, 1).code, Code::Invalid);
  for (const int64_t wrong : {int64_t{10000}, int64_t{-1}}) {
    EXPECT_EQ(session->use(tasks[0].name, wrong).code, Code::Invalid);
  }
}

TEST(Session, AFailedUseLeavesTheBareModel) {
  NEED_FIXTURES();
  // A route to heads that adapters.pte does not have: its program fails.
  const Copy copy;
  copy.edit([](json& manifest) {
    manifest["heads"] = 4096;
    manifest["modules"][0]["heads"] = 4096;
    manifest["tasks"][2]["route"][0] = 4095;
  });
  const auto result = copy.open(false);
  ASSERT_TRUE(result.ok()) << result.error().message;
  Session& session = *result.value();
  const auto tasks = session.tasks();
  const auto bare = expected()["answers"][""].get<std::vector<int64_t>>();
  const auto own = expected()["answers"][tasks[0].name].get<std::vector<int64_t>>();
  ASSERT_NE(own, bare);
  const std::vector<std::tuple<std::string, int64_t, Code>> failures = {
      {tasks[2].name, 0, Code::Runtime}, {"nobody", 0, Code::NotFound},
      {tasks[1].name, 3, Code::Invalid}};
  for (const auto& [name, keep, code] : failures) {
    ASSERT_TRUE(session.use(tasks[0].name).ok());
    ASSERT_TRUE(session.prefill(prompt()).ok());
    ASSERT_EQ(session.step().value(), own[0]);
    EXPECT_EQ(session.use(name, keep).code, code);
    EXPECT_EQ(session.task(), "");
    EXPECT_EQ(session.position(), 0);
    EXPECT_EQ(session.step().error().code, Code::Invalid);
    EXPECT_EQ(greedy(session, prompt(), bare.size()), bare);
  }
  ASSERT_TRUE(session.use(tasks[0].name).ok());
  EXPECT_EQ(greedy(session, prompt(), own.size()), own);
}

TEST(Session, TwoInOneProcess) {
  NEED_FIXTURES();
  const auto one = opened(), two = opened();
  const auto tasks = one->tasks();
  const auto answers = expected()["answers"];
  ASSERT_TRUE(one->use(tasks[0].name).ok());
  ASSERT_TRUE(two->use(tasks[1].name).ok());
  ASSERT_TRUE(one->prefill(prompt()).ok());
  ASSERT_TRUE(two->prefill(prompt()).ok());
  std::vector<int64_t> first, second;
  for (int i = 0; i < 8; i++) {
    first.push_back(one->step().value());
    second.push_back(two->step().value());
  }
  const auto start = [&](const std::string& name) {
    auto ids = answers[name].get<std::vector<int64_t>>();
    ids.resize(8);
    return ids;
  };
  EXPECT_EQ(first, start(tasks[0].name));
  EXPECT_EQ(second, start(tasks[1].name));
}

TEST(Session, TheAdapterIsNotCopied) {
  // Bound once; a change of the caller's memory is seen by the next call without binding again.
  NEED_FIXTURES();
  using executorch::aten::ScalarType;
  using executorch::extension::from_blob;
  using executorch::runtime::EValue;
  executorch::extension::Module module(model(), executorch::extension::Module::LoadMode::Mmap);
  const auto meta = module.method_meta("forward");
  ASSERT_TRUE(meta.ok());
  // After tokens, positions and rows: whether the adapter counts, and its matrices.
  int64_t on = 1;
  ASSERT_EQ(
      module.set_input(EValue(from_blob(&on, {}, ScalarType::Long)), 3),
      executorch::runtime::Error::Ok);
  std::vector<std::vector<float>> matrices;
  for (size_t index = 4; index < meta->num_inputs(); index++) {
    const auto info = meta->input_tensor_meta(index);
    ASSERT_TRUE(info.ok());
    EXPECT_FALSE(info->is_memory_planned());
    matrices.emplace_back(info->sizes()[0] * info->sizes()[1], 0.0f);
    auto tensor = from_blob(
        matrices.back().data(), {info->sizes()[0], info->sizes()[1]}, ScalarType::Float);
    ASSERT_EQ(module.set_input(EValue(tensor), index), executorch::runtime::Error::Ok);
  }
  ASSERT_GT(matrices.size(), 2u);
  const auto fill = [&](float value) {
    for (auto& matrix : matrices) std::fill(matrix.begin(), matrix.end(), value);
  };
  std::vector<int64_t> token{5}, position{0}, row{0};
  const auto logits = [&] {
    auto out = module.forward(
        {EValue(from_blob(token.data(), {1, 1}, ScalarType::Long)),
         EValue(from_blob(position.data(), {1}, ScalarType::Long)),
         EValue(from_blob(row.data(), {1}, ScalarType::Long))});
    EXPECT_TRUE(out.ok());
    const auto tensor = out->at(0).toTensor();
    const float* values = tensor.const_data_ptr<float>();
    return std::vector<float>(values, values + tensor.numel());
  };
  const auto bare = logits();
  EXPECT_EQ(logits(), bare);
  fill(0.05f);
  const auto adapted = logits();
  EXPECT_NE(adapted, bare);
  // Without a head the products are not run at all.
  on = 0;
  EXPECT_EQ(logits(), bare);
  on = 1;
  EXPECT_EQ(logits(), adapted);
  fill(0.0f);
  EXPECT_EQ(logits(), bare);
}

TEST(Session, SeedsOfSteps) {
  NEED_FIXTURES();
  const auto session = opened();
  const auto drawn = [&](uint64_t seed) {
    EXPECT_TRUE(session->reset().ok());
    EXPECT_TRUE(session->prefill(prompt()).ok());
    EXPECT_TRUE(session->seed(seed).ok());
    std::vector<int64_t> ids;
    for (int i = 0; i < 12; i++) ids.push_back(session->step({2.0f, 0, 1.0f}).value());
    return ids;
  };
  const auto one = drawn(1);
  EXPECT_EQ(drawn(1), one);
  EXPECT_NE(drawn(2), one);
}
