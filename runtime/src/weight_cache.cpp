#include "weight_cache.h"

#include <atomic>
#include <cstdio>
#include <filesystem>
#include <mutex>

#include <executorch/runtime/backend/backend_options_map.h>
#include <executorch/runtime/backend/options.h>
#include <unistd.h>

#include "files.h"

namespace hydrapack {
namespace {

using executorch::runtime::Program;

// The options' names in backends/xnnpack/runtime/XNNPACKBackend.h, which is not installed.
constexpr char kBackend[] = "XnnpackBackend";
constexpr char kEnabled[] = "weight_cache_enabled";
constexpr char kPath[] = "packed_cache_path";

std::string note_of(const std::string& path) { return path + ".sha256"; }

std::string note(int64_t bytes, const std::string& sha256) {
  return std::to_string(bytes) + " " + sha256 + "\n";
}

// Whether the file is the one that was noted.
bool fits(const std::string& path, bool check_digest) {
  const auto text = read_text(note_of(path));
  const auto size = file_bytes(path);
  if (!text.ok() || !size.ok()) return false;
  if (!check_digest) return text.value().rfind(std::to_string(size.value()) + " ", 0) == 0;
  const auto digest = file_sha256(path);
  return digest.ok() && text.value() == note(size.value(), digest.value());
}

// Whether a file that was made has its note and then its place.
bool moved(const std::string& made, const std::string& path) {
  const auto size = file_bytes(made);
  const auto digest = file_sha256(made);
  if (!size.ok() || !digest.ok()) return false;
  const std::string noted = note_of(made);
  std::FILE* file = std::fopen(noted.c_str(), "w");
  if (file == nullptr) return false;
  const bool written = std::fputs(note(size.value(), digest.value()).c_str(), file) >= 0;
  std::error_code error;
  if (std::fclose(file) == 0 && written) {
    std::filesystem::rename(made, path, error);
    if (!error) std::filesystem::rename(noted, note_of(path), error);
    if (!error) return true;
  }
  std::filesystem::remove(noted, error);
  return false;
}

// A name that no other engine of this or another process makes a file under.
std::string part_of(const std::string& path) {
  static std::atomic<unsigned> count{0};
  return path + "." + std::to_string(::getpid()) + "." + std::to_string(count++) + ".part";
}

}  // namespace

Result<WeightCache> WeightCache::in_memory(const std::string& model) {
  static std::mutex mutex;
  static std::weak_ptr<const std::string> claimed;
  std::error_code error;
  const std::string path = std::filesystem::weakly_canonical(model, error).string();
  const std::lock_guard<std::mutex> lock(mutex);
  WeightCache cache;
  cache.model_ = claimed.lock();
  if (cache.model_ == nullptr) claimed = cache.model_ = std::make_shared<const std::string>(path);
  if (*cache.model_ == path) return cache;
  return Error{
      Code::Invalid,
      "share_weights: " + *cache.model_ + " is open with it, and only one model at a time can be"};
}

Result<WeightCache> WeightCache::in(
    const std::string& folder, const std::string& model_sha256, bool check_digest) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    return Error{Code::NotFound, folder + ": no such folder for the weight cache"};
  }
  WeightCache cache;
  cache.path_ = folder + "/" + model_sha256.substr(0, 16) + ".xnnpack";
  const std::string part = part_of(cache.path_);
  if (part.size() >= executorch::runtime::kMaxOptionValueLength) {
    return Error{Code::Invalid, folder + ": too long a path for the weight cache"};
  }
  if (!fits(cache.path_, check_digest)) {
    // Not in place: another process may have the old one mapped.
    std::filesystem::remove(note_of(cache.path_), error);
    std::filesystem::remove(part, error);
    cache.made_ = part;
  }
  return cache;
}

executorch::runtime::Error WeightCache::load(executorch::extension::Module& module) const {
  executorch::runtime::BackendOptions<2> options;
  executorch::runtime::LoadBackendOptionsMap all;
  auto error = options.set_option(kEnabled, !path_.empty() || model_ != nullptr);
  if (error == executorch::runtime::Error::Ok && !path_.empty()) {
    error = options.set_option(kPath, (made_.empty() ? path_ : made_).c_str());
  }
  if (error == executorch::runtime::Error::Ok) error = all.set_options(kBackend, options.view());
  if (error != executorch::runtime::Error::Ok) return error;
  return module.load(all, Program::Verification::InternalConsistency);
}

bool WeightCache::keep(const std::string& model) {
  if (made_.empty()) return false;
  const std::string made = std::move(made_);
  made_.clear();
  if (moved(made, path_)) return true;
  std::error_code error;
  std::filesystem::remove(made, error);
  const auto memory = in_memory(model);
  *this = memory.ok() ? memory.value() : WeightCache();
  return false;
}

}  // namespace hydrapack
