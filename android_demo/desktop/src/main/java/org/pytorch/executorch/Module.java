package org.pytorch.executorch;

import com.facebook.jni.HybridData;
import com.facebook.soloader.nativeloader.NativeLoader;
import com.facebook.soloader.nativeloader.SystemDelegate;
import java.io.Closeable;
import java.io.File;
import java.util.concurrent.locks.ReentrantLock;

/** A loaded .pte file. */
public class Module implements Closeable {
  public static final int LOAD_MODE_FILE = 0;
  public static final int LOAD_MODE_MMAP = 1;

  static {
    if (!NativeLoader.isInitialized()) {
      NativeLoader.init(new SystemDelegate());
    }
    NativeLoader.loadLibrary("executorch");
  }

  /** Read by the native side, by this name. */
  private final HybridData mHybridData;

  private final ReentrantLock lock = new ReentrantLock();

  private Module(String path, int loadMode, int numThreads) {
    mHybridData = initHybrid(path, loadMode, numThreads);
    // Fails where the file is no program.
    getMethodsNative();
  }

  public static Module load(String modelPath, int loadMode, int numThreads) {
    if (modelPath == null || !new File(modelPath).canRead()) {
      throw new RuntimeException("Cannot load model path " + modelPath);
    }
    return new Module(modelPath, loadMode, numThreads);
  }

  public String[] getMethods() {
    lock.lock();
    try {
      checkOpen();
      return getMethodsNative();
    } finally {
      lock.unlock();
    }
  }

  public void loadMethod(String methodName) {
    lock.lock();
    try {
      checkOpen();
      int error = loadMethodNative(methodName);
      if (error != 0) {
        throw ExecutorchRuntimeException.makeExecutorchException(
            error, "Failed to load method: " + methodName);
      }
    } finally {
      lock.unlock();
    }
  }

  public EValue[] execute(String methodName, EValue... inputs) {
    lock.lock();
    try {
      checkOpen();
      return executeNative(methodName, inputs);
    } finally {
      lock.unlock();
    }
  }

  public void destroy() {
    if (!lock.tryLock()) {
      throw new IllegalStateException("Cannot destroy module while method is executing");
    }
    try {
      if (mHybridData.isValid()) {
        mHybridData.resetNative();
      }
    } finally {
      lock.unlock();
    }
  }

  @Override
  public void close() {
    destroy();
  }

  private void checkOpen() {
    if (!mHybridData.isValid()) {
      throw new IllegalStateException("Module has been destroyed");
    }
  }

  private static native HybridData initHybrid(String path, int loadMode, int numThreads);

  private native String[] getMethodsNative();

  private native int loadMethodNative(String methodName);

  private native EValue[] executeNative(String methodName, EValue... inputs);
}
