#include "patch.h"

#include <algorithm>

#include "files.h"
#include "manifest.h"
#include "sha256.h"
#include "signature.h"

namespace hydrapack {
namespace {

constexpr char kMagic[] = "hydrapack-patch-1\n";
constexpr size_t kMagicSize = sizeof kMagic - 1, kDigest = 32, kKey = 32, kSignature = 64;
constexpr int64_t kMaxPatch = int64_t{1} << 30;  // of a patch, and of a package's files
constexpr uint64_t kMaxFiles = 64;

std::string sha256(const char* data, size_t size) {
  Sha256 digest;
  digest.update(data, size);
  return digest.hex();
}

std::string hex(const std::string& bytes) {
  std::string digits;
  for (const unsigned char byte : bytes) {
    digits += "0123456789abcdef"[byte >> 4];
    digits += "0123456789abcdef"[byte & 15];
  }
  return digits;
}

// Numbers and pieces, one after the other. The first failure is kept; later reads give nothing.
class PatchReader {
 public:
  explicit PatchReader(const std::string& data, size_t from, size_t to)
      : data_(data), at_(from), end_(to) {}

  const std::string& failure() const { return failure_; }
  bool ok() const { return failure_.empty(); }
  bool at_end() const { return at_ == end_; }
  void fail(const char* what) {
    if (ok()) failure_ = what;
  }

  // Seven bits a byte, the low ones first; below 2^63.
  uint64_t number() {
    uint64_t value = 0;
    for (int shift = 0; shift < 63 && ok(); shift += 7) {
      const std::string byte = piece(1);
      if (!ok()) return 0;
      const auto bits = static_cast<unsigned char>(byte[0]);
      value |= uint64_t{bits & 127u} << shift;
      if (bits < 128) return value;
    }
    fail("a number is too large");
    return 0;
  }

  std::string piece(uint64_t size) {
    if (size > end_ - at_) fail("it ends too early");
    if (!ok()) return {};
    at_ += size;
    return data_.substr(at_ - size, size);
  }

 private:
  const std::string& data_;
  size_t at_, end_;
  std::string failure_;
};

struct Listed {
  std::string name;
  uint64_t size;
  std::string sha256;
};

std::vector<Listed> read_list(PatchReader& reader) {
  std::vector<Listed> files;
  uint64_t bytes = 0;
  for (uint64_t left = reader.number(); left > 0 && reader.ok(); left--) {
    const std::string name = reader.piece(reader.number());
    const uint64_t size = reader.number();
    const std::string digest = hex(reader.piece(kDigest));
    if (!reader.ok()) break;
    if (!is_plain_name(name) || files.size() == kMaxFiles) {
      reader.fail("a file's name is none, or there are too many");
    }
    for (const Listed& other : files) {
      if (other.name == name) reader.fail("a file's name stands twice");
    }
    // Each by itself first: no sum of them runs over.
    if (size > kMaxPatch || (bytes += size) > kMaxPatch) {
      reader.fail("its files have more than 1,073,741,824 bytes");
    }
    files.push_back({name, size, digest});
  }
  return files;
}

// Copies of old bytes and of new ones, and bytes as they are, until there are so many new ones.
std::string decoded(std::string window, PatchReader& reader, uint64_t size) {
  const size_t start = window.size(), end = start + size;
  window.reserve(end);
  uint64_t going_on = 0;
  while (window.size() < end && reader.ok()) {
    const uint64_t literal = reader.number();
    if (literal > end - window.size()) reader.fail("it gives more bytes than it says");
    window += reader.piece(literal);
    if (!reader.ok() || window.size() == end) break;
    const uint64_t count = reader.number(), coded = reader.number();
    const int64_t distance =
        coded % 2 == 1 ? -static_cast<int64_t>(coded / 2) - 1 : static_cast<int64_t>(coded / 2);
    const int64_t source = static_cast<int64_t>(going_on + literal) + distance;
    if (source < 0 || source >= static_cast<int64_t>(window.size())) {
      reader.fail("it copies from where nothing is");
    }
    if (count == 0 || count > end - window.size()) reader.fail("it gives more bytes than it says");
    if (!reader.ok()) break;
    // Byte by byte: a copy may run into its own output.
    for (uint64_t i = 0; i < count; i++) window.push_back(window[source + i]);
    going_on = source + count;
  }
  return reader.ok() ? window.substr(start) : std::string();
}

// The whole patch, once its magic, its SHA-256 and the signature fit; body_end is where it is told.
Result<std::string> checked(
    const std::string& path, const std::string& public_key, size_t& body_end) {
  auto read = read_bytes(path, kMaxPatch);
  if (!read.ok()) return read;
  const std::string& data = read.value();
  if (data.compare(0, kMagicSize, kMagic) != 0) {
    return Error{Code::Invalid, path + ": is no patch that this runtime reads"};
  }
  const bool is_signed = data.size() > kMagicSize && data[kMagicSize] == 1;
  const size_t frame = kDigest + (is_signed ? kKey + kSignature : 0);
  if (data.size() < kMagicSize + 1 + frame ||
      sha256(data.data(), data.size() - kDigest) != hex(data.substr(data.size() - kDigest))) {
    return Error{Code::Invalid, path + ": is damaged: its SHA-256 is another; fetch it again"};
  }
  body_end = data.size() - frame;
  if (!public_key.empty()) {
    Error error = check_public_key(public_key);
    if (error.ok() && !is_signed) error = {Code::Mismatch, path + ": is not signed"};
    if (error.ok()) {
      const std::string key = hex(data.substr(body_end, kKey));
      const std::string made = hex(data.substr(body_end + kKey, kSignature));
      error = check_signed(
          data.substr(0, body_end), key, made, public_key, path,
          "its signature is of other bytes");
    }
    if (!error.ok()) return error;
  }
  return read;
}

}  // namespace

Result<std::vector<PatchedFile>> patched_files(
    const std::string& package, const std::string& patch, const std::string& public_key) {
  size_t body_end = 0;
  const auto data = checked(patch, public_key, body_end);
  if (!data.ok()) return data.error();
  PatchReader reader(data.value(), kMagicSize + 1, body_end);
  const auto damaged = [&] {
    return Error{Code::Invalid, patch + ": is damaged: " + reader.failure()};
  };
  const std::vector<Listed> before = read_list(reader), after = read_list(reader);
  const auto has = [&](const char* name) {
    return std::any_of(after.begin(), after.end(), [&](const Listed& f) { return f.name == name; });
  };
  if (!has("manifest.json") || !has("adapters.pte")) {
    reader.fail("it makes no package, manifest.json or adapters.pte is missing");
  }
  if (!reader.ok()) return damaged();
  std::string old;
  for (const Listed& file : before) {
    const std::string path = package + "/" + file.name;
    const auto size = file_bytes(path);
    if (!size.ok()) return size.error();
    const Error other = {Code::Mismatch, path + ": is not the file that " + patch + " was made from"};
    if (size.value() != static_cast<int64_t>(file.size)) return other;
    const auto content = read_bytes(path, kMaxPatch);
    if (!content.ok()) return content.error();
    if (sha256(content.value().data(), content.value().size()) != file.sha256) return other;
    old += content.value();
  }
  uint64_t total = 0;
  for (const Listed& file : after) total += file.size;
  const std::string made = decoded(std::move(old), reader, total);
  if (reader.ok() && !reader.at_end()) reader.fail("it goes on after its end");
  if (!reader.ok()) return damaged();
  std::vector<PatchedFile> files;
  size_t at = 0;
  for (const Listed& file : after) {
    files.push_back({file.name, made.substr(at, file.size)});
    at += file.size;
    if (sha256(files.back().content.data(), file.size) != file.sha256) {
      const std::string what = "the " + file.name + " that it gives is another than it says";
      return Error{Code::Invalid, patch + ": is damaged: " + what};
    }
  }
  return files;
}

}  // namespace hydrapack
