package org.hydrapack.demo

import java.util.concurrent.LinkedBlockingQueue
import org.hydrapack.Finish
import org.hydrapack.Stats

/** The app with a runner whose tokens come when a test says so. */
class FakeApplication : DemoApplication() {
    val runner = FakeRunner()

    override fun opener() = Opener { _, _, threads ->
        runner.threads = threads
        runner
    }
}

class FakeRunner : Runner {
    val pieces = LinkedBlockingQueue<String>()
    val used = ArrayList<String?>()
    var threads = -1

    @Volatile private var stopped = false

    override val baseModel = "fake/base"
    override val maxContext = 512
    override val tasks = listOf("grammar", "summary", "tone")
    override val stats = Stats(812.0, 1.25, 100.0, 40, 1000.0, 25)

    override fun use(task: String?) {
        used.add(task)
    }

    override fun generate(text: String, onText: (String) -> Unit): Finish {
        stopped = false
        onText("[$text]")
        while (true) {
            val piece = pieces.take()
            if (stopped) return Finish.STOPPED
            if (piece == END) return Finish.STOP
            onText(piece)
        }
    }

    override fun stop() {
        stopped = true
        pieces.add("")
    }

    override fun close() = Unit

    companion object {
        const val END = "\u0000"
    }
}
