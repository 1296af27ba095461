#include "programs.h"

#include "files.h"

namespace hydrapack {

using executorch::aten::ScalarType;
using executorch::extension::Module;
using executorch::runtime::EValue;
using executorch::runtime::Program;

namespace {

Result<EValue> constant(Module& module, const std::string& path, const char* name) {
  const auto names = module.method_names();
  if (!names.ok() || names->count(name) == 0) {
    return Error{Code::Invalid, path + ": has no method " + name + "; export it with hydrapack"};
  }
  auto values = module.execute(name);
  if (!values.ok() || values->empty()) {
    return Error{Code::Invalid, path + ": " + name + " cannot be read"};
  }
  return values->at(0);
}

}  // namespace

Error runtime_error(const std::string& what, executorch::runtime::Error error) {
  return {Code::Runtime, what + " (ExecuTorch error " + std::to_string(static_cast<int>(error)) + ")"};
}

Result<std::unique_ptr<Module>> load_module(const std::string& path, const char* method) {
  const auto size = file_bytes(path);
  if (!size.ok()) return size.error();
  auto module = std::make_unique<Module>(path, Module::LoadMode::Mmap);
  // The whole flatbuffer is checked: offsets in a damaged one would lead anywhere.
  const auto loaded = module->load(Program::Verification::InternalConsistency);
  if (loaded != executorch::runtime::Error::Ok) {
    return Error{Code::Invalid, path + ": not an ExecuTorch program, or a damaged one"};
  }
  const auto names = module->method_names();
  if (!names.ok() || names->count(method) == 0) {
    return Error{Code::Invalid, path + ": has no method " + method + "; is it a .pte of hydrapack?"};
  }
  return module;
}

Result<int64_t> integer_constant(Module& module, const std::string& path, const char* name) {
  const auto value = constant(module, path, name);
  if (!value.ok()) return value.error();
  if (!value.value().isInt()) return Error{Code::Invalid, path + ": " + name + " is no integer"};
  return value.value().toInt();
}

Result<std::string> text_constant(Module& module, const std::string& path, const char* name) {
  const auto value = constant(module, path, name);
  if (!value.ok()) return value.error();
  if (!value.value().isString()) return Error{Code::Invalid, path + ": " + name + " is no text"};
  const auto text = value.value().toString();
  return std::string(text.data(), text.size());
}

int64_t vector_size(const executorch::runtime::Result<executorch::runtime::TensorInfo>& info) {
  if (!info.ok() || info->scalar_type() != ScalarType::Float || info->sizes().size() != 1) {
    return -1;
  }
  return info->sizes()[0];
}

Sizes matrix_sizes(const executorch::runtime::Result<executorch::runtime::TensorInfo>& info) {
  if (!info.ok() || info->scalar_type() != ScalarType::Float || info->sizes().size() != 2) return {};
  return {info->sizes().begin(), info->sizes().end()};
}

int64_t values(const Sizes& sizes) {
  return static_cast<int64_t>(sizes[0]) * sizes[1];
}

}  // namespace hydrapack
