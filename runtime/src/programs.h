// ExecuTorch programs, with messages in place of bare codes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <hydrapack/result.h>

namespace hydrapack {

Error runtime_error(const std::string& what, executorch::runtime::Error error);

// A mapped program whose flatbuffer has been checked and that has the method.
Result<std::unique_ptr<executorch::extension::Module>> load_module(
    const std::string& path, const char* method);

// What a constant method gives; path names the program in messages.
Result<int64_t> integer_constant(
    executorch::extension::Module& module, const std::string& path, const char* name);
Result<std::string> text_constant(
    executorch::extension::Module& module, const std::string& path, const char* name);

using Sizes = std::vector<executorch::aten::SizesType>;

// Values of a float vector output, -1 if it is none.
int64_t vector_size(const executorch::runtime::Result<executorch::runtime::TensorInfo>& info);

// Rows and columns of a float matrix input; empty if it is none.
Sizes matrix_sizes(const executorch::runtime::Result<executorch::runtime::TensorInfo>& info);

// How many values a matrix of these sizes has.
int64_t values(const Sizes& sizes);

}  // namespace hydrapack
