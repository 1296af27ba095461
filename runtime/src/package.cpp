#include "package.h"

#include "files.h"
#include "signature.h"

namespace hydrapack {
namespace {

Error check_signed(const Paths& paths, const std::string& manifest, const std::string& public_key) {
  const auto signature = read_text(paths.signature);
  if (!signature.ok()) return signature.error();
  return check_signature(signature.value(), paths.signature, manifest, public_key);
}

}  // namespace

Result<Manifest> read_package(const Paths& paths, const OpenOptions& options) {
  const bool signed_by_key = !options.public_key.empty();
  Error error;
  if (signed_by_key) error = check_public_key(options.public_key);
  if (!error.ok()) return error;
  const auto text = read_text(paths.manifest);
  if (!text.ok()) return text.error();
  auto manifest = parse_manifest(text.value(), paths.manifest, options.check_digests);
  if (!manifest.ok()) return manifest;
  if (signed_by_key) error = check_signed(paths, text.value(), options.public_key);
  if (!error.ok()) return error;
  const ManifestFile& adapters = *manifest.value().file("adapters.pte");
  error = check_file(paths.adapters, adapters.bytes, adapters.sha256, options.check_digests);
  if (!error.ok()) return error;
  return manifest;
}

}  // namespace hydrapack
