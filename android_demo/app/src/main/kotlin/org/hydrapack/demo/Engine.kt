package org.hydrapack.demo

import android.app.ActivityManager
import android.content.Context
import android.net.Uri
import android.os.Handler
import android.os.Looper
import java.io.File
import java.io.IOException
import java.util.Locale
import java.util.concurrent.Executors
import org.hydrapack.Finish
import org.hydrapack.HydrapackException
import org.hydrapack.Stats

/**
 * Runs everything that takes time, on one thread that owns the session, and tells the screen.
 * Calls come from the main thread, and so do those of the listener.
 */
class Engine(
    private val context: Context,
    private val store: ModelStore,
    private val opener: Opener,
) {
    private val thread = Executors.newSingleThreadExecutor { Thread(it, "engine") }
    private val main = Handler(Looper.getMainLooper())
    private val lock = Any()

    // Guarded by the lock.
    private var current = ScreenState()
    private var published = true

    /** The engine's thread opens and closes it; stop() may come from the main thread. */
    @Volatile private var runner: Runner? = null

    /** Gets each state, at most every [FRAME_MS]. */
    var listener: ((ScreenState) -> Unit)? = null
        set(value) {
            field = value
            value?.invoke(state)
        }

    val state: ScreenState get() = synchronized(lock) { current }

    /** Looks for files, once the app begins: what its assets hold is copied out first. */
    fun begin() = work(Work.IMPORTING) {
        store.copyAssets(::progress)
        found()
    }

    /** The answer of a process that was ended. */
    fun restore(output: String) = update { it.copy(output = output) }

    /** Copies a model or a package, or both, out of a folder that was picked. */
    fun importFolder(tree: Uri) = work(Work.IMPORTING) {
        closeRunner()
        store.importFolder(tree, ::progress)
        text(R.string.state_imported)
    }

    /** Opens what was found; [force] does it though memory is short. */
    fun load(threads: Int, force: Boolean) = work(Work.LOADING) {
        closeRunner()
        val files = store.find() ?: return@work found()
        if (!force && !enoughMemory(files.model)) return@work text(
            R.string.state_memory, needed(files.model) / MB, free() / MB,
        )
        update { it.copy(status = text(R.string.state_loading)) }
        val opened = opener.open(files.model, files.packageFolder, threads)
        runner = opened
        update { it.copy(tasks = opened.tasks, mayForce = false) }
        text(
            R.string.state_loaded,
            opened.baseModel, files.packageFolder.name, opened.tasks.size, opened.maxContext,
        )
    }

    /** Swaps to the task and answers. */
    fun run(task: String?, input: String) = work(Work.RUNNING) {
        val runner = runner ?: return@work found()
        update { it.copy(output = "", stats = "") }
        runner.use(task)
        val finish = runner.generate(input) { piece -> update { it.copy(output = it.output + piece) } }
        update { it.copy(stats = statsText(runner.stats, finish)) }
        null
    }

    fun stop() {
        runner?.stop()
    }

    /** Swaps to one task after the other. */
    fun measure() = work(Work.MEASURING) {
        val runner = runner ?: return@work found()
        val times = List(SWAPS) { i ->
            runner.use(runner.tasks[i % runner.tasks.size])
            runner.stats.swapMs
        }.sorted()
        update { it.copy(stats = text(R.string.state_benchmark, times.first(), times[SWAPS / 2], times.last())) }
        null
    }

    /** Does one thing after the other; what it gives, if anything, is the new status. */
    private fun work(kind: Work, call: () -> String?) {
        // The screen offers one thing at a time; a second press before it was drawn is dropped.
        if (!state.idle) return
        update { it.copy(work = kind, progress = 0) }
        thread.execute {
            val status = try {
                call()
            } catch (error: Exception) {
                // Whatever it is: the screen must not wait for ever.
                failed(error)
            } catch (error: LinkageError) {
                failed(error)
            } catch (error: OutOfMemoryError) {
                failed(error)
            }
            update { it.copy(work = Work.NONE, status = status ?: it.status) }
        }
    }

    private fun failed(error: Throwable): String {
        val kind = when (error) {
            is HydrapackException -> error.kind
            is IOException, is SecurityException -> "Io"
            else -> "Runtime"
        }
        return text(R.string.state_failed, kind, error.message ?: error.javaClass.simpleName)
    }

    private fun closeRunner() {
        val old = runner
        runner = null
        update { it.copy(tasks = null) }
        old?.close()
    }

    private fun found(): String {
        val files = store.find()
            ?: return text(R.string.state_no_files, store.pushFolder?.path.orEmpty())
        return text(R.string.state_found, files.model.parentFile?.name, files.packageFolder.name)
    }

    private fun progress(name: String, done: Long, all: Long) = update {
        it.copy(
            status = text(R.string.state_importing, name),
            progress = if (all > 0) (1000 * done / all).toInt() else 0,
        )
    }

    private fun update(change: (ScreenState) -> ScreenState) {
        synchronized(lock) {
            current = change(current)
            if (!published) return
            published = false
        }
        main.postDelayed({
            synchronized(lock) { published = true }
            listener?.invoke(state)
        }, FRAME_MS)
    }

    private fun enoughMemory(model: File): Boolean {
        val enough = free() > needed(model)
        update { it.copy(mayForce = !enough) }
        return enough
    }

    /** The file is mapped, but XNNPACK keeps a packed copy of the weights. */
    private fun needed(model: File): Long = model.length() + model.length() / 4 + 64 * MB

    private fun free(): Long {
        val info = ActivityManager.MemoryInfo()
        val manager = context.getSystemService(ActivityManager::class.java) ?: return Long.MAX_VALUE
        manager.getMemoryInfo(info)
        return info.availMem
    }

    private fun statsText(stats: Stats, finish: Finish) = text(
        R.string.stats,
        stats.loadMs, stats.swapMs, stats.prefillTokens, stats.prefillRate, stats.decodeRate,
        residentBytes() / MB, finish.name.lowercase(Locale.ROOT),
    )

    /** Memory of this process, as the kernel counts it; 0 where it does not say. */
    private fun residentBytes(): Long = try {
        PAGE * File("/proc/self/statm").readText().split(' ')[1].toLong()
    } catch (_: IOException) {
        0
    }

    private fun text(id: Int, vararg values: Any?): String = context.getString(id, *values)

    private companion object {
        const val FRAME_MS = 40L
        const val MB = 1_000_000L
        const val PAGE = 4096L
        const val SWAPS = 100
    }
}
