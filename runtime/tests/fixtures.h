// What the tests run on: a small model and package, and what Python's session answered with them.
// HYDRAPACK_FIXTURES names the folder; tests that need it are skipped without.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <unistd.h>

#include <gtest/gtest.h>
#include <hydrapack/engine.h>
#include <hydrapack/session.h>
#include <nlohmann/json.hpp>

inline std::string fixtures() {
  const char* folder = std::getenv("HYDRAPACK_FIXTURES");
  return folder ? folder : "";
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline nlohmann::json expected() {
  return nlohmann::json::parse(read_file(fixtures() + "/expected.json"));
}

#define NEED_FIXTURES() \
  if (fixtures().empty()) GTEST_SKIP() << "HYDRAPACK_FIXTURES is not set"

inline std::string model() { return fixtures() + "/model.pte"; }
inline std::string package() { return fixtures() + "/package"; }

inline std::vector<int64_t> prompt() {
  return expected()["prompt"].get<std::vector<int64_t>>();
}

// The session that a test needs; it ends the test program where it cannot be opened.
inline std::unique_ptr<hydrapack::Session> opened(const hydrapack::OpenOptions& options = {}) {
  return std::move(hydrapack::Session::open(model(), package(), options).value());
}

inline hydrapack::Engine engine(const hydrapack::OpenOptions& options = {}) {
  return std::move(hydrapack::Engine::open(model(), package(), options).value());
}

// The session's answer to the prompt, as long as Python's.
inline std::vector<int64_t> answer(hydrapack::Session& session, const std::string& task, size_t count) {
  EXPECT_TRUE(session.use(task.empty() ? std::nullopt : std::optional(task)).ok());
  EXPECT_TRUE(session.prefill(prompt()).ok());
  std::vector<int64_t> made;
  while (made.size() < count) made.push_back(session.step().value());
  return made;
}

// Every task's answer by this session is Python's.
inline void answers_as_python(hydrapack::Session& session) {
  const auto answers = expected()["answers"];
  for (const auto& item : answers.items()) {
    const auto want = item.value().get<std::vector<int64_t>>();
    EXPECT_EQ(answer(session, item.key(), want.size()), want) << item.key();
  }
}

// A copy of the fixtures that a test may damage.
class Copy {
 public:
  Copy() {
    folder_ = std::filesystem::temp_directory_path() / ("hydrapack" + std::to_string(::getpid()));
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    std::filesystem::copy(::model(), folder_ / "model.pte");
    std::filesystem::copy(::package(), folder_ / "package");
  }
  ~Copy() { std::filesystem::remove_all(folder_); }
  Copy(const Copy&) = delete;

  std::string model() const { return folder_ / "model.pte"; }
  std::string package() const { return folder_ / "package"; }
  std::string file(const char* name) const { return folder_ / "package" / name; }

  // A manifest of another content, whose digest no longer fits.
  template <typename Change>
  void edit(Change change) const {
    auto content = nlohmann::json::parse(read_file(file("manifest.json")));
    change(content);
    write_file(file("manifest.json"), content.dump());
  }

  hydrapack::Result<std::unique_ptr<hydrapack::Session>> open(bool check_digests = true) const {
    return hydrapack::Session::open(model(), package(), {check_digests, ""});
  }

  // The code of opening it.
  hydrapack::Code code(bool check_digests = true) const {
    const auto result = open(check_digests);
    return result.ok() ? hydrapack::Code::Ok : result.error().code;
  }

 private:
  std::filesystem::path folder_;
};
