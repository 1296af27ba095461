// ExecuTorch programs, with messages in place of bare codes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <executorch/extension/module/module.h>
#include <hydrapack/result.h>

namespace hydrapack {

// A mapped program whose flatbuffer has been checked and that has the method.
Result<std::unique_ptr<executorch::extension::Module>> load_module(
    const std::string& path, const char* method);

// What a constant method gives; path names the program in messages.
Result<int64_t> integer_constant(
    executorch::extension::Module& module, const std::string& path, const char* name);
Result<std::string> text_constant(
    executorch::extension::Module& module, const std::string& path, const char* name);

// Values of a float vector input or output, -1 if it is none.
int64_t vector_size(
    const executorch::runtime::Result<executorch::runtime::TensorInfo>& info);

}  // namespace hydrapack
