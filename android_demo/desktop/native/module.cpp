// The native methods of org.pytorch.executorch.Module, bound by name. They fit the classes of
// executorch-android as well as those beside this file.
#include <memory>

#include <executorch/extension/module/module.h>

#include "convert.h"

using executorch::extension::Module;
using executorch::runtime::EValue;

namespace {

struct ModulePeer : Peer {
  ModulePeer(const std::string& path, Module::LoadMode mode) : module(path, mode) {}
  Module module;
};

Module& module_of(JNIEnv* env, jobject self) {
  const jobject data = env->GetObjectField(
      self, env->GetFieldID(env->GetObjectClass(self), "mHybridData", "Lcom/facebook/jni/HybridData;"));
  const jobject destructor = env->GetObjectField(
      data,
      env->GetFieldID(
          env->GetObjectClass(data), "mDestructor", "Lcom/facebook/jni/HybridData$Destructor;"));
  const jlong pointer = env->GetLongField(
      destructor, env->GetFieldID(env->GetObjectClass(destructor), "mNativePointer", "J"));
  return static_cast<ModulePeer*>(reinterpret_cast<Peer*>(pointer))->module;
}

jobjectArray texts(JNIEnv* env, const std::vector<std::string>& values) {
  const jobjectArray array = env->NewObjectArray(
      static_cast<jsize>(values.size()), env->FindClass("java/lang/String"), nullptr);
  for (size_t i = 0; i < values.size(); i++) {
    const jstring text = env->NewStringUTF(values[i].c_str());
    env->SetObjectArrayElement(array, static_cast<jsize>(i), text);
    env->DeleteLocalRef(text);
  }
  return array;
}

}  // namespace

extern "C" {

JNIEXPORT void JNICALL Java_com_facebook_jni_HybridData_00024Destructor_deleteNative(
    JNIEnv*, jclass, jlong pointer) {
  delete reinterpret_cast<Peer*>(pointer);
}

JNIEXPORT jobject JNICALL Java_org_pytorch_executorch_Module_initHybrid(
    JNIEnv* env, jclass, jstring path, jint mode, jint) {
  // The wheel has no header to set the number of threads by: it is left as it is.
  return hybrid_data(
      env,
      new ModulePeer(text_of(env, path), mode == 1 ? Module::LoadMode::Mmap : Module::LoadMode::File));
}

JNIEXPORT jobjectArray JNICALL
Java_org_pytorch_executorch_Module_getMethodsNative(JNIEnv* env, jobject self) {
  const auto names = module_of(env, self).method_names();
  if (!names.ok()) {
    throw_java(env, static_cast<int>(names.error()), "the file is no program");
    return nullptr;
  }
  return texts(env, {names->begin(), names->end()});
}

JNIEXPORT jobjectArray JNICALL
Java_org_pytorch_executorch_Module_getUsedBackends(JNIEnv* env, jobject, jstring) {
  return texts(env, {});
}

JNIEXPORT jobjectArray JNICALL
Java_org_pytorch_executorch_Module_readLogBufferStaticNative(JNIEnv* env, jclass) {
  return texts(env, {});
}

JNIEXPORT jint JNICALL
Java_org_pytorch_executorch_Module_loadMethodNative(JNIEnv* env, jobject self, jstring name) {
  return static_cast<jint>(module_of(env, self).load_method(text_of(env, name)));
}

JNIEXPORT jobjectArray JNICALL Java_org_pytorch_executorch_Module_executeNative(
    JNIEnv* env, jobject self, jstring name, jobjectArray inputs) {
  std::vector<EValue> values;
  std::vector<executorch::extension::TensorPtr> kept;
  if (!read_inputs(env, inputs, values, kept)) return nullptr;
  const std::string method = text_of(env, name);
  const auto outputs = module_of(env, self).execute(method, values);
  if (!outputs.ok()) {
    throw_java(env, static_cast<int>(outputs.error()), "Execution failed for method: " + method);
    return nullptr;
  }
  const jobjectArray found = env->NewObjectArray(
      static_cast<jsize>(outputs->size()), env->FindClass("org/pytorch/executorch/EValue"), nullptr);
  for (size_t i = 0; i < outputs->size(); i++) {
    env->PushLocalFrame(16);
    const jobject value = env->PopLocalFrame(to_java(env, (*outputs)[i]));
    if (env->ExceptionCheck()) return nullptr;
    env->SetObjectArrayElement(found, static_cast<jsize>(i), value);
    env->DeleteLocalRef(value);
  }
  return found;
}
}
