#include "package.h"

#include "files.h"
#include "signature.h"

namespace hydrapack {
namespace {

Error check_manifest(
    const Paths& paths, const std::string& manifest, const std::string& public_key) {
  const auto signature = read_text(paths.signature);
  if (!signature.ok()) return signature.error();
  return check_signature(signature.value(), paths.signature, manifest, public_key);
}

}  // namespace

Result<Package> read_package(const Paths& paths, const OpenOptions& options) {
  const bool signed_by_key = !options.public_key.empty();
  Error error;
  if (signed_by_key) error = check_public_key(options.public_key);
  if (!error.ok()) return error;
  const auto text = read_text(paths.manifest);
  if (!text.ok()) return text.error();
  auto manifest = parse_manifest(text.value(), paths.manifest, options.check_digests);
  if (!manifest.ok()) return manifest.error();
  if (signed_by_key) error = check_manifest(paths, text.value(), options.public_key);
  if (!error.ok()) return error;
  Package package{std::move(manifest.value()), nullptr};
  const ManifestFile& adapters = *package.manifest.file("adapters.pte");
  const std::string& shared = package.manifest.shared_sha256;
  const bool one_by_one = options.check_digests && !options.check_heads && !shared.empty();
  const bool whole = options.check_digests && !one_by_one;
  error = check_file(paths.adapters, adapters.bytes, adapters.sha256, whole);
  if (!error.ok()) return error;
  if (!one_by_one) return package;
  auto opened = OpenFile::open(paths.adapters);
  if (!opened.ok()) return opened.error();
  package.heads = std::move(opened.value());
  if (package.heads->sha256(package.manifest.shared) != shared) {
    return Error{Code::Mismatch, paths.adapters + ": is not the file described"};
  }
  return package;
}

}  // namespace hydrapack
