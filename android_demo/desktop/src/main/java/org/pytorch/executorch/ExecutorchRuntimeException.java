package org.pytorch.executorch;

/** A call that ExecuTorch refused. */
public class ExecutorchRuntimeException extends RuntimeException {
  private final int errorCode;

  public ExecutorchRuntimeException(int errorCode, String details) {
    super("[ExecuTorch error 0x" + Integer.toHexString(errorCode) + "] " + details);
    this.errorCode = errorCode;
  }

  public int getErrorCode() {
    return errorCode;
  }

  /** Called by the native side, by this name. */
  public static RuntimeException makeExecutorchException(int errorCode, String details) {
    return new ExecutorchRuntimeException(errorCode, details);
  }
}
