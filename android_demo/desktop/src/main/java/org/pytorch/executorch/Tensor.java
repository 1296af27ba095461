package org.pytorch.executorch;

import com.facebook.jni.HybridData;
import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;

/** A view of memory: the caller's direct buffer, or what a method's output lies in. */
public final class Tensor {
  /** Read by the native side, by this name. */
  protected final long[] shape;

  private final DType dtype;
  private final Buffer data;

  /** Keeps an output alive on the native side. */
  private HybridData hybridData;

  private Tensor(DType dtype, Buffer data, ByteOrder order, long[] shape) {
    if (!data.isDirect() || order != ByteOrder.nativeOrder() || data.capacity() != numel(shape)) {
      throw new IllegalArgumentException(
          "the buffer must be direct, in native order, and of the shape's size");
    }
    this.dtype = dtype;
    this.data = data;
    this.shape = shape.clone();
  }

  public static Tensor fromBlob(FloatBuffer data, long[] shape) {
    return new Tensor(DType.FLOAT, data, data.order(), shape);
  }

  public static Tensor fromBlob(LongBuffer data, long[] shape) {
    return new Tensor(DType.INT64, data, data.order(), shape);
  }

  public static FloatBuffer allocateFloatBuffer(int count) {
    return ByteBuffer.allocateDirect(4 * count).order(ByteOrder.nativeOrder()).asFloatBuffer();
  }

  public static LongBuffer allocateLongBuffer(int count) {
    return ByteBuffer.allocateDirect(8 * count).order(ByteOrder.nativeOrder()).asLongBuffer();
  }

  public static long numel(long[] shape) {
    long count = 1;
    for (long size : shape) {
      count *= size;
    }
    return count;
  }

  public long[] shape() {
    return shape.clone();
  }

  public long numel() {
    return numel(shape);
  }

  public DType dtype() {
    return dtype;
  }

  /** Called by the native side, by this name. */
  int dtypeJniCode() {
    return dtype.jniCode;
  }

  public Buffer getRawDataBuffer() {
    return data;
  }

  /** Called by the native side, by this name. */
  private static Tensor nativeNewTensor(
      ByteBuffer data, long[] shape, int dtype, HybridData hybridData) {
    Tensor tensor;
    if (dtype == DType.FLOAT.jniCode) {
      tensor = fromBlob(data.asFloatBuffer(), shape);
    } else if (dtype == DType.INT64.jniCode) {
      tensor = fromBlob(data.asLongBuffer(), shape);
    } else {
      throw new IllegalArgumentException("Unknown dtype " + dtype);
    }
    tensor.hybridData = hybridData;
    return tensor;
  }
}
