package org.hydrapack.desktop;

import com.facebook.soloader.nativeloader.NativeLoader;
import com.facebook.soloader.nativeloader.NativeLoaderDelegate;

/** Points ExecuTorch's classes to the native library of a desktop. */
public final class DesktopLibrary {
  private DesktopLibrary() {}

  /** To be called before the first of those classes; once for a process, later calls do nothing. */
  public static void load(String path) {
    if (NativeLoader.isInitialized()) {
      return;
    }
    NativeLoader.init(
        new NativeLoaderDelegate() {
          @Override
          public boolean loadLibrary(String name, int flags) {
            System.load(path);
            return true;
          }

          @Override
          public String getLibraryPath(String name) {
            return path;
          }

          @Override
          public int getSoSourcesVersion() {
            return 0;
          }
        });
  }
}
