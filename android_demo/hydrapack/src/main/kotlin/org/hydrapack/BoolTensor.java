package org.hydrapack;

import java.nio.Buffer;
import java.nio.ByteBuffer;
import org.pytorch.executorch.DType;
import org.pytorch.executorch.Tensor;

/**
 * One truth value. ExecuTorch's Tensor makes none, though what reads its tensors knows the type; in
 * Kotlin its constructor is internal, hence Java.
 */
final class BoolTensor extends Tensor {
  private final ByteBuffer value = ByteBuffer.allocateDirect(1);

  BoolTensor() {
    super(new long[0]);
  }

  void set(boolean on) {
    value.put(0, (byte) (on ? 1 : 0));
  }

  boolean get() {
    return value.get(0) != 0;
  }

  @Override
  public DType dtype() {
    return DType.BOOL;
  }

  @Override
  public Buffer getRawDataBuffer() {
    return value;
  }
}
