package org.pytorch.executorch;

import com.facebook.jni.HybridData;
import java.nio.Buffer;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.LongBuffer;

/** A view of memory: the caller's direct buffer, or what a method's output lies in. */
public abstract class Tensor {
  /** Read by the native side, by this name. */
  protected final long[] shape;

  /** Keeps an output alive on the native side. */
  private HybridData hybridData;

  /** In Kotlin's it is internal, which only Kotlin's compiler heeds. */
  public Tensor(long[] shape) {
    this.shape = shape.clone();
  }

  public static Tensor fromBlob(FloatBuffer data, long[] shape) {
    return new Typed(DType.FLOAT, data, data.order(), shape);
  }

  public static Tensor fromBlob(LongBuffer data, long[] shape) {
    return new Typed(DType.INT64, data, data.order(), shape);
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

  public abstract DType dtype();

  /** Called by the native side, by this name. */
  int dtypeJniCode() {
    return dtype().jniCode;
  }

  public Buffer getRawDataBuffer() {
    throw new IllegalStateException("the tensor cannot return raw data");
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

  private static final class Typed extends Tensor {
    private final DType dtype;
    private final Buffer data;

    Typed(DType dtype, Buffer data, ByteOrder order, long[] shape) {
      super(shape);
      if (!data.isDirect() || order != ByteOrder.nativeOrder() || data.capacity() != numel(shape)) {
        throw new IllegalArgumentException(
            "the buffer must be direct, in native order, and of the shape's size");
      }
      this.dtype = dtype;
      this.data = data;
    }

    @Override
    public DType dtype() {
      return dtype;
    }

    @Override
    public Buffer getRawDataBuffer() {
      return data;
    }
  }
}
