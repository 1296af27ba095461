// Java values to ExecuTorch's and back.
#pragma once

#include <string>
#include <vector>

#include <jni.h>

#include <executorch/extension/tensor/tensor.h>
#include <executorch/runtime/core/evalue.h>

// What HybridData's pointer points to; fbjni deletes it by its virtual destructor.
struct Peer {
  virtual ~Peer() = default;
};

void throw_java(JNIEnv* env, int code, const std::string& what);
std::string text_of(JNIEnv* env, jstring text);
jobject hybrid_data(JNIEnv* env, Peer* peer);

// False, with a Java exception pending, if an input is no tensor.
bool read_inputs(
    JNIEnv* env,
    jobjectArray inputs,
    std::vector<executorch::runtime::EValue>& values,
    std::vector<executorch::extension::TensorPtr>& kept);

// Null, with a Java exception pending, for a type that the Java side has no class for.
jobject to_java(JNIEnv* env, const executorch::runtime::EValue& value);
