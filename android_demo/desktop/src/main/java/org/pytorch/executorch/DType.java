package org.pytorch.executorch;

/** Element types that a tensor here may have; the codes are those of ExecuTorch's ScalarType. */
public enum DType {
  UINT8(0),
  INT32(3),
  INT64(4),
  FLOAT(6),
  BOOL(11);

  public final int jniCode;

  DType(int jniCode) {
    this.jniCode = jniCode;
  }
}
