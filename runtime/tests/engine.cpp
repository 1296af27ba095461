// Several sessions on one engine.
#include <filesystem>

#include "fixtures.h"

using namespace hydrapack;
namespace fs = std::filesystem;

TEST(Engine, SessionsHaveTheirOwnHeadsAndTexts) {
  NEED_FIXTURES();
  const fs::path folder = fs::temp_directory_path() / ("engine" + std::to_string(::getpid()));
  fs::create_directory(folder);
  std::vector<OpenOptions> ways(3);
  ways[1].share_weights = true;
  ways[2].weight_cache = folder.string();
  for (const OpenOptions& options : ways) {
    const Engine one = engine(options);
    auto first = std::move(one.open_session().value()), second = std::move(one.open_session().value());
    EXPECT_EQ(first->vocab_size(), one.vocab_size());
    EXPECT_EQ(first->max_context(), one.max_context());
    EXPECT_EQ(&first->tasks(), &one.tasks());
    const auto answers = expected()["answers"];
    const std::string tasks[] = {one.tasks()[0].name, one.tasks()[1].name};
    ASSERT_NE(answers[tasks[0]], answers[tasks[1]]);
    ASSERT_TRUE(first->use(tasks[0]).ok());
    ASSERT_TRUE(first->prefill(prompt()).ok());
    ASSERT_TRUE(second->use(tasks[1]).ok());
    EXPECT_EQ(first->task(), tasks[0]);
    EXPECT_EQ(second->position(), 0);
    ASSERT_TRUE(second->prefill(prompt()).ok());
    for (size_t i = 0; i < 16; i++) {
      EXPECT_EQ(first->step().value(), answers[tasks[0]][i].get<int64_t>());
      EXPECT_EQ(second->step().value(), answers[tasks[1]][i].get<int64_t>());
    }
    // A session that ends takes nothing from the other.
    first.reset();
    answers_as_python(*second);
    first = std::move(one.open_session().value());
    answers_as_python(*first);
  }
  // Packed once, by the first session.
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(folder)) files += entry.is_regular_file();
  EXPECT_EQ(files, 2u);
  fs::remove_all(folder);
}

TEST(Engine, SessionsOutliveIt) {
  NEED_FIXTURES();
  std::unique_ptr<Session> session;
  {
    const Engine one = engine();
    session = std::move(one.open_session().value());
  }
  answers_as_python(*session);
}

TEST(Engine, FilesAreReadOnce) {
  NEED_FIXTURES();
  const Copy copy;
  const auto opened = Engine::open(copy.model(), copy.package(), {false, ""});
  ASSERT_TRUE(opened.ok());
  const Engine same = opened.value();
  fs::remove(copy.model());
  fs::remove_all(copy.package());
  EXPECT_FALSE(copy.open(false).ok());
  const auto session = same.open_session();
  ASSERT_TRUE(session.ok()) << session.error().message;
  answers_as_python(*session.value());
}

TEST(Engine, RefusesWhatASessionRefuses) {
  NEED_FIXTURES();
  EXPECT_EQ(Engine::open("none.pte", package()).error().code, Code::NotFound);
  EXPECT_EQ(Engine::open(fixtures() + "/twin.pte", package()).error().code, Code::Mismatch);
}

TEST(Engine, OneModelAtATimeSharesItsWeightsInMemory) {
  NEED_FIXTURES();
  const Copy copy;
  copy.edit([](nlohmann::json& manifest) { manifest["base_model"]["weights_sha256"] = nullptr; });
  OpenOptions options;
  options.share_weights = true;
  options.check_digests = false;
  const std::string twin = fixtures() + "/twin.pte";
  auto other = [&] { return Engine::open(twin, copy.package(), options); };
  {
    const Engine one = engine(options), same = engine(options);
    const auto refused = other();
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.error().code, Code::Invalid);
    EXPECT_NE(refused.error().message.find("share_weights"), std::string::npos);
  }
  EXPECT_TRUE(other().ok());
}

TEST(Engine, AFileThatCannotBeKeptIsSharedInMemoryByOneModel) {
  NEED_FIXTURES();
  const Copy copy;
  copy.edit([](nlohmann::json& manifest) { manifest["base_model"]["weights_sha256"] = nullptr; });
  const auto stated = nlohmann::json::parse(read_file(model() + ".json"));
  const fs::path folder = fs::path(copy.model()).parent_path() / "cache";
  // A folder that is not empty is in its place.
  const std::string name = stated["sha256"].get<std::string>().substr(0, 16) + ".xnnpack";
  fs::create_directories(folder / name / "full");
  OpenOptions in_file, in_memory;
  in_file.weight_cache = folder.string();
  in_memory.share_weights = true;
  in_memory.check_digests = false;
  auto other = [&] { return Engine::open(fixtures() + "/twin.pte", copy.package(), in_memory); };
  {
    const Engine one = engine(in_file);
    const auto session = std::move(one.open_session().value());
    EXPECT_FALSE(other().ok());
    answers_as_python(*session);
    answers_as_python(*one.open_session().value());
  }
  // Where another model shares in memory, each session has its own.
  const auto held = other();
  ASSERT_TRUE(held.ok());
  const Engine one = engine(in_file);
  answers_as_python(*one.open_session().value());
  answers_as_python(*one.open_session().value());
}
