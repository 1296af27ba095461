package org.pytorch.executorch;

/** Element types that a tensor here may have; the codes are those of ExecuTorch's ScalarType. */
public enum DType {
  INT64(4),
  FLOAT(6);

  public final int jniCode;

  DType(int jniCode) {
    this.jniCode = jniCode;
  }
}
