import java.io.File;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import org.hydrapack.GenerateOptions;
import org.hydrapack.OpenOptions;
import org.hydrapack.Session;
import org.hydrapack.Stats;
import org.hydrapack.Task;
import org.hydrapack.desktop.DesktopLibrary;

/** Prints times of the library as JSON: LIBRARY MODEL PACKAGE TOKENS SWAPS TEXT. */
public class Measure {
  public static void main(String[] arguments) {
    DesktopLibrary.load(arguments[0]);
    long began = ProcessHandle.current().info().startInstant().get().toEpochMilli();
    OpenOptions options = new OpenOptions(true, null, 0, null, false);
    Session session =
        Session.Companion.open(new File(arguments[1]), new File(arguments[2]), options);
    long[] first = {0};
    GenerateOptions asked =
        new GenerateOptions(
            Integer.parseInt(arguments[3]), 0.0, null, null, 0L, Collections.emptyList(), null, false);
    session.use(session.getTasks().get(0).getName());
    session.generate(
        arguments[5],
        asked,
        piece -> {
          if (first[0] == 0) {
            first[0] = System.currentTimeMillis() - began;
          }
          return true;
        });
    Stats stats = session.getStats();
    List<Double> swaps = new ArrayList<>();
    List<Task> tasks = session.getTasks();
    for (int i = 0; i < Integer.parseInt(arguments[4]); i++) {
      session.use(tasks.get(i % tasks.size()).getName());
      swaps.add(session.getStats().getSwapMs());
    }
    Collections.sort(swaps);
    System.out.printf(
        "{\"load_ms\": %f, \"first_ms\": %d, \"prefill_rate\": %f, \"decode_rate\": %f, "
            + "\"tokens\": %d, \"swap_ms\": %f}%n",
        stats.getLoadMs(),
        first[0],
        stats.getPrefillRate(),
        stats.getDecodeRate(),
        stats.getDecodeTokens(),
        swaps.get(swaps.size() / 2));
    session.close();
    // fbjni's thread is no daemon.
    System.exit(0);
  }
}
