// libFuzzer: any bytes as a manifest are read or refused; runtime/tests/fuzz.sh runs it.
#include <string>

#include "manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  for (const bool check : {false, true}) {
    const auto read = hydrapack::parse_manifest(text, "m", check);
    if (!read.ok() && read.error().message.empty()) __builtin_trap();
  }
  return 0;
}
