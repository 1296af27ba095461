// Golden outputs on this machine, and packages that switch.
#include <cstddef>
#include <filesystem>

#include <hydrapack.h>
#include <hydrapack/activation.h>

#include "fixtures.h"

using namespace hydrapack;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

std::string proven() { return fixtures() + "/proven"; }

// A copy of the proven package; without digests its golden.json may be edited, byte for byte as long.
class Proven {
 public:
  Proven() : folder_(fs::temp_directory_path() / ("hydrapack-golden" + std::to_string(::getpid()))) {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    fs::copy(proven(), folder_ / "package");
  }
  ~Proven() { fs::remove_all(folder_); }
  Proven(const Proven&) = delete;

  std::string package() const { return folder_ / "package"; }
  std::string packages() const { return folder_ / "packages"; }

  template <typename Change>
  void edit(Change change) const {
    const std::string path = package() + "/golden.json";
    auto content = json::parse(read_file(path));
    change(content);
    const size_t size = fs::file_size(path);
    std::string text = content.dump();
    ASSERT_LE(text.size(), size);
    text.resize(size, ' ');
    write_file(path, text);
  }

 private:
  fs::path folder_;
};

// Another first token, at a margin, of the second task's last prompt.
void change_first(json& golden, double margin) {
  json& prompt = golden["tasks"][1]["prompts"].back();
  prompt["tokens"][0] = prompt["tokens"][0].get<int64_t>() ^ 1;
  prompt["margins"][0] = margin;
}

}  // namespace

TEST(Golden, ReplayedAsPacked) {
  NEED_FIXTURES();
  OpenOptions options;
  options.self_test = true;
  const auto opened = Session::open(model(), proven(), options);
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const auto test = opened.value()->self_test();
  ASSERT_TRUE(test.ok()) << test.error().message;
  EXPECT_TRUE(test.value().passed());
  EXPECT_EQ(test.value().tokens, 3 * 2 * 8);
  EXPECT_EQ(test.value().tasks, std::vector<std::string>({"one", "two", "three"}));
  EXPECT_EQ(test.value().near_ties, 0);
  EXPECT_EQ(opened.value()->task(), "");
  EXPECT_EQ(opened.value()->position(), 0);
  EXPECT_TRUE(Engine::open(model(), proven(), options).ok());
}

TEST(Golden, APackageWithoutThem) {
  NEED_FIXTURES();
  const auto test = opened()->self_test();
  ASSERT_FALSE(test.ok());
  EXPECT_EQ(test.error().code, Code::NotFound);
}

TEST(Golden, DifferencesAndNearTies) {
  NEED_FIXTURES();
  const Proven copy;
  OpenOptions options{false};
  copy.edit([](json& golden) { change_first(golden, 2.5); });
  const auto session = Session::open(model(), copy.package(), options);
  ASSERT_TRUE(session.ok());
  auto test = session.value()->self_test();
  ASSERT_TRUE(test.ok()) << test.error().message;
  ASSERT_FALSE(test.value().passed());
  const GoldenDifference& first = test.value().differences[0];
  EXPECT_EQ(first.task, session.value()->tasks()[1].name);
  EXPECT_EQ(first.prompt, 1);
  EXPECT_EQ(first.token, 0);
  EXPECT_EQ(first.found, first.expected ^ 1);
  EXPECT_EQ(first.margin, 2.5);
  EXPECT_NE(test.value().text().find("golden tokens differ, of two; first"), std::string::npos);
  options.self_test = true;
  for (const Error& error :
       {Session::open(model(), copy.package(), options).error(),
        Engine::open(model(), copy.package(), options).error()}) {
    EXPECT_EQ(error.code, Code::Mismatch);
    EXPECT_NE(error.message.find("fails its self-test"), std::string::npos);
  }
  copy.edit([](json& golden) { golden["tasks"][1]["prompts"].back()["margins"][0] = 0.2; });
  test = session.value()->self_test();
  ASSERT_TRUE(test.ok());
  EXPECT_GE(test.value().near_ties, 1);
}

TEST(Golden, Malformed) {
  NEED_FIXTURES();
  const auto refused = [](const std::function<void(json&)>& change, bool digests = false) {
    const Proven copy;
    copy.edit(change);
    const auto session = Session::open(model(), copy.package(), {digests});
    const auto test = session.value()->self_test();
    return test.ok() ? Error{} : test.error();
  };
  EXPECT_EQ(refused([](json&) {}).code, Code::Ok);
  EXPECT_EQ(refused([](json&) {}, true).code, Code::Mismatch);
  const std::vector<std::pair<std::string, std::function<void(json&)>>> cases = {
      {"schema_version", [](json& golden) { golden["schema_version"] = 2; }},
      {"near_tie", [](json& golden) { golden["near_tie"] = -1; }},
      {"near_tie", [](json& golden) { golden.erase("near_tie"); }},
      {"is not in the package", [](json& golden) { golden["tasks"][0]["name"] = "x"; }},
      {"tasks", [](json& golden) { golden["tasks"] = json::array(); }},
      {"ids", [](json& golden) { golden["tasks"][0]["prompts"][0]["ids"] = json::array(); }},
      {"tokens.0", [](json& golden) { golden["tasks"][0]["prompts"][0]["tokens"][0] = 1.5; }},
      {"not a margin", [](json& golden) { golden["tasks"][0]["prompts"][0]["margins"].erase(0); }},
      {"vocabulary", [](json& golden) { golden["tasks"][0]["prompts"][0]["ids"][0] = 9999; }},
  };
  for (const auto& [words, change] : cases) {
    const Error error = refused(change);
    EXPECT_EQ(error.code, Code::Invalid) << words;
    EXPECT_NE(error.message.find(words), std::string::npos) << error.message;
  }
}

TEST(Activation, SwitchesAndFallsBack) {
  NEED_FIXTURES();
  const Proven copy;
  const std::string packages = copy.packages();
  EXPECT_EQ(open_last_good(model(), packages).error().code, Code::NotFound);
  const auto first = activate(packages, copy.package());
  ASSERT_TRUE(first.ok()) << first.error().message;
  EXPECT_FALSE(fs::exists(packages + "/previous"));
  // The package of the other tests has no golden outputs: it opens, and does not prove itself.
  ASSERT_TRUE(activate(packages, package()).ok());
  EXPECT_TRUE(Session::open(model(), packages + "/current").ok());
  auto good = open_last_good(model(), packages);
  ASSERT_TRUE(good.ok()) << good.error().message;
  EXPECT_TRUE(good.value().fell_back);
  good.value().session.reset();
  // The way back copies nothing.
  EXPECT_EQ(activate(packages, packages + "/previous").value(), first.value());
  EXPECT_EQ(activate(packages, packages + "/current").value(), first.value());
  EXPECT_FALSE(open_last_good(model(), packages).value().fell_back);
  EXPECT_EQ(std::distance(fs::directory_iterator(packages), fs::directory_iterator()), 4);
  EXPECT_EQ(activate(packages, fixtures() + "/none").error().code, Code::NotFound);
  write_file(copy.package() + "/adapters.pte", "x");
  EXPECT_EQ(activate(packages, copy.package()).error().code, Code::Mismatch);
  EXPECT_FALSE(open_last_good(model(), packages).value().fell_back);
}

TEST(CApi, SelfTests) {
  NEED_FIXTURES();
  const Proven copy;
  copy.edit([](json& golden) { change_first(golden, 2.5); });
  hydrapack_open_options options = hydrapack_default_open_options();
  options.check_digests = 0;
  hydrapack_session* session = nullptr;
  const auto open = [&](const std::string& folder) {
    return hydrapack_open(model().c_str(), folder.c_str(), &options, &session);
  };
  ASSERT_EQ(open(copy.package()), HYDRAPACK_OK) << hydrapack_last_error();
  size_t tokens = 0, near_ties = 0, differences = 0;
  std::vector<std::string> found;
  const hydrapack_difference note = [](const char* task, int64_t prompt, int64_t token,
                                       int64_t expected, int64_t found, double margin, void* user) {
    EXPECT_NE(expected, found);
    static_cast<std::vector<std::string>*>(user)->push_back(
        std::string(task) + " " + std::to_string(prompt) + " " + std::to_string(token) + " " +
        std::to_string(margin).substr(0, 3));
  };
  ASSERT_EQ(
      hydrapack_self_test(session, note, &found, &tokens, &near_ties, &differences), HYDRAPACK_OK);
  EXPECT_EQ(tokens, 3u * 2 * 8);
  EXPECT_EQ(found.size(), differences);
  ASSERT_GE(differences, 1u);
  EXPECT_EQ(found[0], "two 1 0 2.5");
  EXPECT_EQ(
      hydrapack_self_test(session, nullptr, nullptr, nullptr, nullptr, nullptr), HYDRAPACK_OK);
  hydrapack_close(session);
  // Opened with it. A caller of a header without the field: what lies there is not looked at.
  options.self_test = 1;
  EXPECT_EQ(open(copy.package()), HYDRAPACK_MISMATCH);
  EXPECT_EQ(open(package()), HYDRAPACK_NOT_FOUND);
  options.struct_size = offsetof(hydrapack_open_options, self_test);
  EXPECT_EQ(open(copy.package()), HYDRAPACK_OK);
  hydrapack_close(session);
  options.struct_size = sizeof options;
  EXPECT_EQ(open(proven()), HYDRAPACK_OK) << hydrapack_last_error();
  hydrapack_close(session);
  EXPECT_EQ(
      hydrapack_self_test(nullptr, nullptr, nullptr, nullptr, nullptr, nullptr), HYDRAPACK_INVALID);
}

TEST(CApi, SwitchesAndFallsBack) {
  NEED_FIXTURES();
  const Proven copy;
  const std::string packages = copy.packages();
  hydrapack_session* session = nullptr;
  int fell_back = -1;
  const auto open = [&](int* answer) {
    const int code =
        hydrapack_open_last_good(model().c_str(), packages.c_str(), nullptr, &session, answer);
    EXPECT_EQ(session != nullptr, code == HYDRAPACK_OK);
    hydrapack_close(session);
    return code;
  };
  EXPECT_EQ(open(&fell_back), HYDRAPACK_NOT_FOUND);
  ASSERT_EQ(hydrapack_activate(packages.c_str(), copy.package().c_str()), HYDRAPACK_OK)
      << hydrapack_last_error();
  ASSERT_EQ(open(&fell_back), HYDRAPACK_OK) << hydrapack_last_error();
  EXPECT_EQ(fell_back, 0);
  ASSERT_EQ(hydrapack_activate(packages.c_str(), package().c_str()), HYDRAPACK_OK);
  ASSERT_EQ(open(&fell_back), HYDRAPACK_OK) << hydrapack_last_error();
  EXPECT_EQ(fell_back, 1);
  EXPECT_EQ(open(nullptr), HYDRAPACK_OK);
  EXPECT_EQ(hydrapack_activate(packages.c_str(), "none"), HYDRAPACK_NOT_FOUND);
  EXPECT_EQ(hydrapack_activate(nullptr, "none"), HYDRAPACK_INVALID);
  EXPECT_EQ(
      hydrapack_open_last_good("x", nullptr, nullptr, &session, nullptr), HYDRAPACK_INVALID);
}
