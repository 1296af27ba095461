// An update of a package, as `hydrapack diff` writes it: small, and for one package only.
//
//   auto applied = hydrapack::apply_patch("package", "1-to-2.patch", "package", key);
//   if (!applied.ok()) puts(applied.message.c_str());  // "package" is what it was
#pragma once

#include <string>

#include <hydrapack/result.h>

namespace hydrapack {

// Make the new package at target: the patch's, applied to the one at package. target may be the same
// folder, which is replaced in one step, once the new files are on the disk: whatever ends the process
// or the device, a whole package is there, the old or the new. What a run that was killed left beside it
// is removed by the next one. One at a time in a folder.
//
// public_key: 64 hex digits of the Ed25519 key that must have signed the patch; empty asks for none.
//
// NotFound, Io: a file; a target that cannot be written, or replaced in one step there. Invalid: no
// patch or a damaged one, a malformed key, or a build without libsodium. Mismatch: the package is not the
// one that the patch was made from, or another key signed it. Busy: another runs in the target's folder.
Error apply_patch(
    const std::string& package,
    const std::string& patch,
    const std::string& target,
    const std::string& public_key = {});

}  // namespace hydrapack
