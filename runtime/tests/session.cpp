// The session on the small model.
#include <gtest/gtest.h>

#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <random>
#include <thread>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <hydrapack/session.h>

#include "fixtures.h"

using namespace hydrapack;
namespace fs = std::filesystem;

namespace {

std::string model() { return fixtures() + "/model.pte"; }
std::string package() { return fixtures() + "/package"; }

std::unique_ptr<Session> opened(const OpenOptions& options = {}) {
  auto result = Session::open(model(), package(), options);
  EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.error().message);
  return std::move(result.value());
}

std::vector<int64_t> prompt() { return expected()["prompt"].get<std::vector<int64_t>>(); }

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

// A copy of the fixtures that a test may damage.
class Copy {
 public:
  Copy() {
    folder_ = fs::temp_directory_path() / ("hydrapack" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    fs::copy(::model(), folder_ / "model.pte");
    fs::copy(::package(), folder_ / "package");
  }
  ~Copy() { fs::remove_all(folder_); }
  std::string model() const { return folder_ / "model.pte"; }
  std::string package() const { return folder_ / "package"; }
  std::string file(const char* name) const { return folder_ / "package" / name; }
  Result<std::unique_ptr<Session>> open(bool check_digests = true) const {
    return Session::open(model(), package(), {check_digests});
  }

 private:
  fs::path folder_;
};

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

TEST(Session, GenerateStops) {
  NEED_FIXTURES();
  const auto session = opened();
  GenerateOptions options;
  options.max_new_tokens = 10;
  auto made = session->generate(prompt(), options);
  ASSERT_TRUE(made.ok());
  ASSERT_EQ(made.value().finish, Finish::MaxTokens);
  ASSERT_EQ(made.value().ids.size(), 10u);
  EXPECT_EQ(session->stats().decode_tokens, 9);
  const auto all = made.value().ids;
  options.stop_ids = {all[4]};
  made = session->generate(prompt(), options);
  EXPECT_EQ(made.value().finish, Finish::StopId);
  EXPECT_LE(made.value().ids.size(), 4u);
  options.stop_ids.clear();
  int seen = 0;
  made = session->generate(prompt(), options, [&](int64_t) { return ++seen < 3; });
  EXPECT_EQ(made.value().finish, Finish::Callback);
  EXPECT_EQ(made.value().ids.size(), 3u);
  options.sampling = {2.0f, 0, 1.0f, 5};
  const auto one = session->generate(prompt(), options).value().ids;
  EXPECT_EQ(session->generate(prompt(), options).value().ids, one);
  options.sampling.seed = 6;
  EXPECT_NE(session->generate(prompt(), options).value().ids, one);
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
  GenerateOptions options;
  options.max_new_tokens = 1000;
  const auto made = session->generate({full.begin(), full.end() - 3}, options);
  ASSERT_TRUE(made.ok());
  if (made.value().finish != Finish::StopId) {
    EXPECT_EQ(made.value().finish, Finish::ContextFull);
    EXPECT_EQ(made.value().ids.size(), 4u);
  }
}

TEST(Session, RefusesArguments) {
  NEED_FIXTURES();
  const auto session = opened();
  EXPECT_EQ(session->step().error().code, Code::Invalid);
  EXPECT_FALSE(session->logits().ok());
  EXPECT_EQ(session->prefill({}).code, Code::Invalid);
  EXPECT_EQ(session->prefill({-1}).code, Code::Invalid);
  EXPECT_EQ(session->prefill({session->vocab_size()}).code, Code::Invalid);
  EXPECT_EQ(session->use("nobody").code, Code::NotFound);
  GenerateOptions options;
  options.max_new_tokens = 0;
  EXPECT_EQ(session->generate(prompt(), options).error().code, Code::Invalid);
  options.max_new_tokens = 1;
  options.sampling.top_p = 0;
  EXPECT_EQ(session->generate(prompt(), options).error().code, Code::Invalid);
}

TEST(Session, PrefixesAreKeptOnlyUnderTheSameHead) {
  NEED_FIXTURES();
  const auto session = opened();
  const auto tasks = session->tasks();
  const auto answers = expected()["answers"];
  ASSERT_TRUE(session->use(tasks[0].name).ok());
  const auto ids = prompt();
  const auto whole = greedy(*session, ids, 6);
  EXPECT_EQ(session->use(std::nullopt, 1).code, Code::Invalid);
  EXPECT_EQ(session->task(), tasks[0].name);
  EXPECT_EQ(session->use(tasks[0].name, 10000).code, Code::Invalid);
  EXPECT_EQ(session->use(tasks[0].name, -1).code, Code::Invalid);
  // The same head: all but the last id of the prompt stay.
  const auto kept = static_cast<int64_t>(ids.size()) - 1;
  ASSERT_TRUE(session->use(tasks[0].name, kept).ok());
  ASSERT_TRUE(session->prefill({ids.back()}).ok());
  std::vector<int64_t> made;
  for (int i = 0; i < 6; i++) made.push_back(session->step().value());
  EXPECT_EQ(made, whole);
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

TEST(Session, TwoThreadsAreTold) {
  NEED_FIXTURES();
  const auto session = opened();
  std::atomic<int> busy{0}, fine{0};
  const auto work = [&] {
    for (int i = 0; i < 50; i++) {
      const auto made = session->generate(prompt(), {});
      made.ok() ? fine++ : made.error().code == Code::Busy ? busy++ : fine -= 1000;
    }
  };
  std::thread one(work), two(work);
  one.join();
  two.join();
  EXPECT_GT(fine.load(), 0);
  EXPECT_GT(busy.load(), 0);
  EXPECT_EQ(fine.load() + busy.load(), 100);
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
  std::vector<std::vector<float>> vectors;
  for (size_t index : {2, 3}) {
    const auto info = meta->input_tensor_meta(index);
    ASSERT_TRUE(info.ok());
    EXPECT_FALSE(info->is_memory_planned());
    vectors.emplace_back(info->sizes()[0], index == 2 ? 0.05f : 0.0f);
  }
  for (int i = 0; i < 2; i++) {
    auto tensor = from_blob(
        vectors[i].data(), {static_cast<int32_t>(vectors[i].size())}, ScalarType::Float);
    ASSERT_EQ(module.set_input(EValue(tensor), 2 + i), executorch::runtime::Error::Ok);
  }
  std::vector<int64_t> token{5}, position{0};
  const auto logits = [&] {
    auto out = module.forward(
        {EValue(from_blob(token.data(), {1, 1}, ScalarType::Long)),
         EValue(from_blob(position.data(), {1}, ScalarType::Long))});
    EXPECT_TRUE(out.ok());
    const auto tensor = out->at(0).toTensor();
    const float* values = tensor.const_data_ptr<float>();
    return std::vector<float>(values, values + tensor.numel());
  };
  const auto bare = logits();
  EXPECT_EQ(logits(), bare);
  std::fill(vectors[1].begin(), vectors[1].end(), 0.05f);
  EXPECT_NE(logits(), bare);
  std::fill(vectors[1].begin(), vectors[1].end(), 0.0f);
  EXPECT_EQ(logits(), bare);
}

TEST(Session, StatsAreFilled) {
  NEED_FIXTURES();
  const auto session = opened();
  ASSERT_TRUE(session->use(session->tasks()[0].name).ok());
  ASSERT_TRUE(session->generate(prompt(), {}).ok());
  const Stats stats = session->stats();
  EXPECT_GT(stats.load_ms, 0);
  EXPECT_GT(stats.swap_ms, 0);
  EXPECT_GT(stats.prefill_ms, 0);
  EXPECT_EQ(stats.prefill_tokens, static_cast<int64_t>(prompt().size()));
  EXPECT_EQ(stats.model_bytes, static_cast<int64_t>(fs::file_size(model())));
  EXPECT_GT(stats.vector_bytes, 0);
  EXPECT_GT(stats.resident_bytes, 1 << 20);
}

TEST(Session, MissingFiles) {
  NEED_FIXTURES();
  EXPECT_EQ(Session::open("none.pte", package()).error().code, Code::NotFound);
  EXPECT_EQ(Session::open(model(), "nowhere").error().code, Code::NotFound);
  const Copy copy;
  // Without the file that has the model's digest, only on demand.
  const auto undescribed = copy.open();
  ASSERT_FALSE(undescribed.ok());
  EXPECT_NE(undescribed.error().message.find("model.pte.json: missing"), std::string::npos);
  EXPECT_TRUE(copy.open(false).ok());
  fs::remove(copy.file("adapters.pte"));
  EXPECT_EQ(copy.open().error().code, Code::NotFound);
}

TEST(Session, ProgramsInTheWrongPlace) {
  NEED_FIXTURES();
  const auto swapped = Session::open(package() + "/adapters.pte", package(), {false});
  ASSERT_FALSE(swapped.ok());
  EXPECT_NE(swapped.error().message.find("no method forward"), std::string::npos);
  const auto other = Session::open(fixtures() + "/other.pte", package());
  ASSERT_FALSE(other.ok());
  EXPECT_EQ(other.error().code, Code::Mismatch);
}

TEST(Session, FlippedAndTruncatedFilesAreFound) {
  NEED_FIXTURES();
  const Copy copy;
  fs::copy(::model() + ".json", copy.model() + ".json");
  for (const std::string& path : {copy.file("adapters.pte"), copy.model()}) {
    const std::string whole = read_file(path);
    std::mt19937 random(1);
    for (int i = 0; i < 40; i++) {
      std::string changed = whole;
      changed[random() % changed.size()] ^= static_cast<char>(1 << (i % 8));
      write_file(path, changed);
      EXPECT_FALSE(copy.open().ok());
    }
    for (size_t size : {size_t{0}, size_t{3}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
      write_file(path, whole.substr(0, size));
      EXPECT_FALSE(copy.open(true).ok());
      EXPECT_FALSE(copy.open(false).ok());
    }
    write_file(path, whole);
    EXPECT_TRUE(copy.open().ok());
  }
}

TEST(Session, TruncatedProgramsAreFoundWithoutDigests) {
  NEED_FIXTURES();
  const Copy copy;  // without model.pte.json
  const std::string whole = read_file(copy.model());
  for (size_t size = 0; size < whole.size(); size += whole.size() / 50) {
    write_file(copy.model(), whole.substr(0, size));
    EXPECT_FALSE(copy.open(false).ok()) << size;
  }
}
