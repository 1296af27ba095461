// A package's files, checked one against the other before any program of them is loaded.
#pragma once

#include <memory>
#include <string>

#include <hydrapack/engine.h>

#include "manifest.h"

namespace hydrapack {

struct Paths {
  std::string model;
  std::string package;
  std::string manifest = package + "/manifest.json";
  std::string signature = package + "/manifest.sig";
  std::string adapters = package + "/adapters.pte";
};

struct Package {
  Manifest manifest;
  std::shared_ptr<OpenFile> heads;  // adapters.pte, where its heads are still to be checked, else null
};

// The manifest, once it and adapters.pte are what they say: schema, digests, and with a public key
// the signature. NotFound, Io, Invalid, Mismatch.
Result<Package> read_package(const Paths& paths, const OpenOptions& options);

}  // namespace hydrapack
