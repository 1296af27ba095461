#include "convert.h"

using executorch::aten::ScalarType;
using executorch::runtime::EValue;

namespace {

constexpr char kValue[] = "org/pytorch/executorch/EValue";
constexpr char kTensor[] = "org/pytorch/executorch/Tensor";
constexpr int kInvalidArgument = 0x12;
constexpr jint kTensorCode = 1;

jobject value_from(JNIEnv* env, const char* signature, jvalue argument) {
  const jclass type = env->FindClass(kValue);
  const jmethodID from = env->GetStaticMethodID(type, "from", signature);
  return env->CallStaticObjectMethodA(type, from, &argument);
}

jobject native_order(JNIEnv* env, jobject buffer) {
  const jclass order = env->FindClass("java/nio/ByteOrder");
  const jobject native = env->CallStaticObjectMethod(
      order, env->GetStaticMethodID(order, "nativeOrder", "()Ljava/nio/ByteOrder;"));
  const jmethodID set = env->GetMethodID(
      env->FindClass("java/nio/ByteBuffer"), "order", "(Ljava/nio/ByteOrder;)Ljava/nio/ByteBuffer;");
  return env->CallObjectMethod(buffer, set, native);
}

// A view: the values stay where the method has them.
jobject tensor_to_java(JNIEnv* env, const executorch::aten::Tensor& tensor) {
  const std::vector<jlong> sizes(tensor.sizes().begin(), tensor.sizes().end());
  const jlongArray shape = env->NewLongArray(static_cast<jsize>(sizes.size()));
  env->SetLongArrayRegion(shape, 0, static_cast<jsize>(sizes.size()), sizes.data());
  const jobject buffer = native_order(
      env, env->NewDirectByteBuffer(tensor.mutable_data_ptr(), static_cast<jlong>(tensor.nbytes())));
  const jclass type = env->FindClass(kTensor);
  const jmethodID make = env->GetStaticMethodID(
      type, "nativeNewTensor",
      "(Ljava/nio/ByteBuffer;[JILcom/facebook/jni/HybridData;)Lorg/pytorch/executorch/Tensor;");
  const jobject made = env->CallStaticObjectMethod(
      type, make, buffer, shape, static_cast<jint>(tensor.scalar_type()),
      hybrid_data(env, new Peer));
  if (env->ExceptionCheck()) return nullptr;
  jvalue argument;
  argument.l = made;
  return value_from(env, "(Lorg/pytorch/executorch/Tensor;)Lorg/pytorch/executorch/EValue;", argument);
}

}  // namespace

void throw_java(JNIEnv* env, int code, const std::string& what) {
  const jclass type = env->FindClass("org/pytorch/executorch/ExecutorchRuntimeException");
  const jmethodID make = env->GetStaticMethodID(
      type, "makeExecutorchException", "(ILjava/lang/String;)Ljava/lang/RuntimeException;");
  const jobject error =
      env->CallStaticObjectMethod(type, make, static_cast<jint>(code), env->NewStringUTF(what.c_str()));
  env->Throw(static_cast<jthrowable>(error));
}

std::string text_of(JNIEnv* env, jstring text) {
  const char* characters = env->GetStringUTFChars(text, nullptr);
  std::string copied(characters);
  env->ReleaseStringUTFChars(text, characters);
  return copied;
}

jobject hybrid_data(JNIEnv* env, Peer* peer) {
  const jclass type = env->FindClass("com/facebook/jni/HybridData");
  const jobject data = env->NewObject(type, env->GetMethodID(type, "<init>", "()V"));
  const jobject destructor = env->GetObjectField(
      data, env->GetFieldID(type, "mDestructor", "Lcom/facebook/jni/HybridData$Destructor;"));
  const jfieldID pointer =
      env->GetFieldID(env->GetObjectClass(destructor), "mNativePointer", "J");
  env->SetLongField(destructor, pointer, reinterpret_cast<jlong>(peer));
  return data;
}

bool read_inputs(
    JNIEnv* env,
    jobjectArray inputs,
    std::vector<EValue>& values,
    std::vector<executorch::extension::TensorPtr>& kept) {
  const jclass value_type = env->FindClass(kValue), tensor_type = env->FindClass(kTensor);
  const jfieldID code = env->GetFieldID(value_type, "mTypeCode", "I");
  const jmethodID to_tensor =
      env->GetMethodID(value_type, "toTensor", "()Lorg/pytorch/executorch/Tensor;");
  const jmethodID dtype = env->GetMethodID(tensor_type, "dtypeJniCode", "()I");
  const jfieldID shape_field = env->GetFieldID(tensor_type, "shape", "[J");
  const jmethodID buffer = env->GetMethodID(tensor_type, "getRawDataBuffer", "()Ljava/nio/Buffer;");
  for (jsize i = 0; i < env->GetArrayLength(inputs); i++) {
    // A package of many matrices has hundreds of inputs: none of them may pile up references.
    env->PushLocalFrame(8);
    const jobject value = env->GetObjectArrayElement(inputs, i);
    if (env->GetIntField(value, code) != kTensorCode) {
      env->PopLocalFrame(nullptr);
      throw_java(env, kInvalidArgument, "an input is no tensor");
      return false;
    }
    const jobject tensor = env->CallObjectMethod(value, to_tensor);
    const auto shape = static_cast<jlongArray>(env->GetObjectField(tensor, shape_field));
    std::vector<jlong> sizes(static_cast<size_t>(env->GetArrayLength(shape)));
    env->GetLongArrayRegion(shape, 0, static_cast<jsize>(sizes.size()), sizes.data());
    kept.push_back(executorch::extension::from_blob(
        env->GetDirectBufferAddress(env->CallObjectMethod(tensor, buffer)),
        {sizes.begin(), sizes.end()},
        static_cast<ScalarType>(env->CallIntMethod(tensor, dtype))));
    values.emplace_back(kept.back());
    env->PopLocalFrame(nullptr);
  }
  return true;
}

jobject to_java(JNIEnv* env, const EValue& value) {
  jvalue argument;
  if (value.isTensor()) return tensor_to_java(env, value.toTensor());
  if (value.isInt()) {
    argument.j = value.toInt();
    return value_from(env, "(J)Lorg/pytorch/executorch/EValue;", argument);
  }
  if (value.isDouble()) {
    argument.d = value.toDouble();
    return value_from(env, "(D)Lorg/pytorch/executorch/EValue;", argument);
  }
  if (value.isBool()) {
    argument.z = static_cast<jboolean>(value.toBool());
    return value_from(env, "(Z)Lorg/pytorch/executorch/EValue;", argument);
  }
  if (value.isString()) {
    const auto view = value.toString();
    argument.l = env->NewStringUTF(std::string(view.data(), view.size()).c_str());
    return value_from(env, "(Ljava/lang/String;)Lorg/pytorch/executorch/EValue;", argument);
  }
  throw_java(env, kInvalidArgument, "an output of a type that Java has no class for");
  return nullptr;
}
