#include "files.h"

#include <cstdio>
#include <fstream>
#include <sstream>
#include <vector>

#include <sys/stat.h>

#include <nlohmann/json.hpp>

#include "sha256.h"

namespace hydrapack {
namespace {

constexpr int64_t kMaxText = int64_t{64} << 20;

Result<std::string> file_sha256(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return Error{Code::NotFound, path + ": cannot be read"};
  Sha256 digest;
  std::vector<char> piece(1 << 20);
  size_t size = 0;
  while ((size = std::fread(piece.data(), 1, piece.size(), file)) > 0) {
    digest.update(piece.data(), size);
  }
  const bool failed = std::ferror(file) != 0;
  std::fclose(file);
  if (failed) return Error{Code::NotFound, path + ": cannot be read"};
  return digest.hex();
}

}  // namespace

int64_t file_bytes(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) ? info.st_size : -1;
}

Result<std::string> read_text(const std::string& path) {
  const int64_t size = file_bytes(path);
  if (size < 0) return Error{Code::NotFound, path + ": no such file"};
  if (size > kMaxText) return Error{Code::Invalid, path + ": is too large"};
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return Error{Code::NotFound, path + ": cannot be read"};
  return text.str();
}

Error check_file(
    const std::string& path, int64_t bytes, const std::string& sha256, bool check_digest) {
  const int64_t size = file_bytes(path);
  if (size < 0) return {Code::NotFound, path + ": no such file"};
  if (size != bytes) return {Code::Mismatch, path + ": is of another size than stated"};
  if (!check_digest) return {};
  const auto digest = file_sha256(path);
  if (!digest.ok()) return digest.error();
  if (digest.value() != sha256) return {Code::Mismatch, path + ": is not the file described"};
  return {};
}

Error check_model_file(const std::string& model, bool check_digest) {
  if (file_bytes(model) < 0) return {Code::NotFound, model + ": no such file"};
  const std::string path = model + ".json";
  if (file_bytes(path) < 0) {
    if (!check_digest) return {};
    return {
        Code::NotFound,
        path + ": missing; it has the SHA-256 of the program: keep it beside, or open without digests"};
  }
  const auto text = read_text(path);
  if (!text.ok()) return text.error();
  const auto json = nlohmann::json::parse(text.value(), nullptr, false);
  const bool fits = json.is_object() && json.contains("bytes") && json.contains("sha256") &&
      json["bytes"].is_number_unsigned() && json["sha256"].is_string();
  if (!fits) return {Code::Invalid, path + ": does not give bytes and sha256"};
  return check_file(
      model, json["bytes"].get<int64_t>(), json["sha256"].get<std::string>(), check_digest);
}

}  // namespace hydrapack
