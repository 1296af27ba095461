package org.pytorch.executorch;

/** An input or output of a method. */
public final class EValue {
  private static final int TENSOR = 1;
  private static final int STRING = 2;
  private static final int DOUBLE = 3;
  private static final int INT = 4;
  private static final int BOOL = 5;

  /** Read by the native side, by this name. */
  public final int mTypeCode;

  private final Object data;

  private EValue(int typeCode, Object data) {
    this.mTypeCode = typeCode;
    this.data = data;
  }

  public static EValue from(Tensor value) {
    return new EValue(TENSOR, value);
  }

  public static EValue from(String value) {
    return new EValue(STRING, value);
  }

  public static EValue from(double value) {
    return new EValue(DOUBLE, value);
  }

  public static EValue from(long value) {
    return new EValue(INT, value);
  }

  public static EValue from(boolean value) {
    return new EValue(BOOL, value);
  }

  public boolean isTensor() {
    return mTypeCode == TENSOR;
  }

  public boolean isString() {
    return mTypeCode == STRING;
  }

  public boolean isInt() {
    return mTypeCode == INT;
  }

  public Tensor toTensor() {
    return (Tensor) held(TENSOR);
  }

  public String toStr() {
    return (String) held(STRING);
  }

  public long toInt() {
    return (Long) held(INT);
  }

  private Object held(int typeCode) {
    if (mTypeCode != typeCode) {
      throw new IllegalStateException("Expected EValue type " + typeCode + ", actual " + mTypeCode);
    }
    return data;
  }
}
