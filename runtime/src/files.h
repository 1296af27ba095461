// Files as they are found and as they are described.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <hydrapack/result.h>

namespace hydrapack {

// A part of a file.
struct Span {
  int64_t start = 0;
  int64_t end = 0;
};

// Size of a regular file. NotFound, or Io: something else has that name, or it may not be looked at.
Result<int64_t> file_bytes(const std::string& path);

// Bring a file or a folder to the disk, so that a loss of power does not lose it. False: it cannot be.
bool on_disk(const std::string& path);

// The whole of a file of at most so many bytes, whole MiB. NotFound, Io; Invalid: it is larger.
Result<std::string> read_bytes(const std::string& path, int64_t most);

// The whole of a text file of at most 64 MiB. NotFound, Io; Invalid: it is larger.
Result<std::string> read_text(const std::string& path);

// The size, and if asked the SHA-256, against what is stated. NotFound, Io, Mismatch.
Error check_file(
    const std::string& path, int64_t bytes, const std::string& sha256, bool check_digest);

// Hex, of the whole file. NotFound, Io.
Result<std::string> file_sha256(const std::string& path);

// A file held open, so that another put in its place is no matter.
class OpenFile {
 public:
  // NotFound, Io.
  static Result<std::shared_ptr<OpenFile>> open(const std::string& path);
  explicit OpenFile(int handle) : handle_(handle) {}
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  // Hex, of parts of it one after the other; of what is there where it ends sooner.
  std::string sha256(const std::vector<Span>& parts) const;

 private:
  int handle_;
};

// model.pte against model.pte.json, which export-base writes beside it; without digests it may be
// missing. The SHA-256 that it states, or nothing. NotFound, Io, Invalid, Mismatch.
Result<std::string> check_model_file(const std::string& model, bool check_digest);

}  // namespace hydrapack
