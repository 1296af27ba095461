// What the tests run on: a small model and package, and what Python's session answered with them.
// HYDRAPACK_FIXTURES names the folder; tests that need it are skipped without.
#pragma once

#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>

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
