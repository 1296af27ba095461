import com.facebook.soloader.nativeloader.NativeLoader;
import com.facebook.soloader.nativeloader.NativeLoaderDelegate;
import java.io.File;
import org.hydrapack.Answer;
import org.hydrapack.GenerateOptions;
import org.hydrapack.OpenOptions;
import org.hydrapack.Session;

/**
 * Runs the library out of whatever jar is on the class path: LIBRARY FOLDER TOKENS (TASK INPUT)...
 *
 * <p>Java, so that nothing of Kotlin's library is needed but what the jar holds. A line for each task,
 * "" for the base model, and input: task, finish, prompt ids, greedy ids a token a call, answer's ids.
 */
public class RunSession {
  public static void main(String[] arguments) throws Exception {
    String library = arguments[0];
    NativeLoader.init(
        new NativeLoaderDelegate() {
          @Override
          public boolean loadLibrary(String name, int flags) {
            System.load(library);
            return true;
          }

          // No override: a shrunk interface has only what the app calls.
          public String getLibraryPath(String name) {
            return library;
          }

          public int getSoSourcesVersion() {
            return 0;
          }
        });
    File folder = new File(arguments[1]);
    int count = Integer.parseInt(arguments[2]);
    OpenOptions options = new OpenOptions(true, null, 0, null, false);
    Session session =
        Session.Companion.open(new File(folder, "model.pte"), new File(folder, "package"), options);
    for (int i = 3; i < arguments.length; i += 2) {
      run(session, arguments[i], arguments[i + 1], count);
    }
    session.close();
    // fbjni's thread is no daemon.
    System.exit(0);
  }

  private static void run(Session session, String task, String input, int count) {
    session.use(task.isEmpty() ? null : task);
    int[] prompt = session.encode(input, null);
    GenerateOptions options = new GenerateOptions(count, 0.0, null, null, 0L, null, null, false);
    int[] greedy = greedy(session, prompt, count);
    Answer answer = session.generate(input, options, piece -> true);
    System.out.println(
        String.join(
            "\t",
            task,
            answer.getFinish().name().toLowerCase(),
            ids(prompt),
            ids(greedy),
            answer.getIds().toString()));
  }

  private static int[] greedy(Session session, int[] prompt, int count) {
    session.reset();
    float[] logits = null;
    for (int id : prompt) {
      logits = session.forward(new int[] {id});
    }
    int[] made = new int[count];
    for (int i = 0; i < count; i++) {
      if (i > 0) {
        logits = session.forward(new int[] {made[i - 1]});
      }
      for (int id = 0; id < logits.length; id++) {
        if (logits[id] > logits[made[i]]) {
          made[i] = id;
        }
      }
    }
    return made;
  }

  private static String ids(int[] ids) {
    return java.util.Arrays.toString(ids);
  }
}
