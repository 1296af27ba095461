/** Prints the code points that this Java knows, a range a line: start and end, both inclusive. */
public class Assigned {
  public static void main(String[] arguments) {
    int start = -1;
    for (int code = 0; code <= Character.MAX_CODE_POINT + 1; code++) {
      boolean known =
          code <= Character.MAX_CODE_POINT
              && Character.isDefined(code)
              && Character.getType(code) != Character.SURROGATE;
      if (known && start < 0) {
        start = code;
      } else if (!known && start >= 0) {
        System.out.println(start + " " + (code - 1));
        start = -1;
      }
    }
  }
}
