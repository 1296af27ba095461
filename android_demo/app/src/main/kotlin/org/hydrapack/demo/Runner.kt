package org.hydrapack.demo

import java.io.Closeable
import java.io.File
import org.hydrapack.Finish
import org.hydrapack.OpenOptions
import org.hydrapack.Session
import org.hydrapack.Stats

/** What the screen needs of a session; all but [stop] and [stats] on one thread. */
interface Runner : Closeable {
    val baseModel: String
    val maxContext: Int
    val tasks: List<String>
    val stats: Stats

    fun use(task: String?)

    fun generate(text: String, onText: (String) -> Unit): Finish

    fun stop()
}

fun interface Opener {
    fun open(model: File, packageFolder: File, threads: Int): Runner
}

object SessionOpener : Opener {
    override fun open(model: File, packageFolder: File, threads: Int): Runner =
        SessionRunner(Session.open(model, packageFolder, OpenOptions(threads = threads)))
}

private class SessionRunner(private val session: Session) : Runner {
    override val baseModel: String get() = session.baseModel
    override val maxContext: Int get() = session.maxContext
    override val tasks: List<String> get() = session.tasks.map { it.name }
    override val stats: Stats get() = session.stats

    override fun use(task: String?) = session.use(task)

    override fun generate(text: String, onText: (String) -> Unit): Finish {
        val answer = session.generate(text) {
            onText(it)
            true
        }
        return answer.finish
    }

    override fun stop() = session.stop()

    override fun close() = session.close()
}
