package org.hydrapack

import java.io.File
import kotlin.math.abs
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

/** SmolLM2-135M with the five example adapters, in the 4-bit blocks of its GGUF file. */
class SmolLm2Test {
    private val folder = Fixtures.folder("smollm2-gguf")

    private fun opened(use: (Session) -> Unit) {
        Fixtures.loadNative()
        Fixtures.open(folder).use(use)
    }

    /** Whole answers may differ from Python's in such a program: see write_session. */
    @Test
    fun everyTokenIsPythons() = opened { session ->
        assertEquals(5, session.tasks.size)
        Fixtures.assertAsInPython(session, folder, answers = false)
    }

    @Test
    fun aSwapIsExact() = opened { Fixtures.assertSwapsAreExact(it, "how are you") }

    @Test
    fun anAnswerStopsAndAFullContextSaysSo() = opened { session ->
        session.use("grammar")
        val text = "This package contain a library that help you to write program."
        val options = GenerateOptions(maxNewTokens = 16, temperature = 0.0)
        val whole = session.generate(text, options)
        assertTrue(whole.text, whole.ids.size > 5)
        var pieces = 0
        val cut = session.generate(text, options) { ++pieces < 3 }
        assertEquals(Finish.STOPPED, cut.finish)
        assertEquals(whole.ids.take(cut.ids.size), cut.ids)
        assertTrue(cut.ids.size < whole.ids.size)
        val context = session.maxContext
        Fixtures.assertKind("ContextFull", "do not fit: 0 of $context are taken") {
            session.generate("one two ".repeat(context))
        }
        session.reset()
        session.forward(IntArray(context) { 7 })
        Fixtures.assertKind("ContextFull", "1 tokens do not fit: $context of $context") {
            session.forward(intArrayOf(7))
        }
        assertEquals(whole.ids, session.generate(text, options).ids)
    }

    @Test
    fun aThousandSwapsLeakNothing() = opened { session ->
        val names = session.tasks.map { it.name }
        val bytes = 4L * session.also { it.use(names[0]) }.head().size
        fun swap(times: Int) = repeat(times) { session.use(names[it % names.size]) }
        swap(100)
        val before = settledBytes()
        val started = System.nanoTime()
        swap(1000)
        val ms = (System.nanoTime() - started) / 1e9
        val grown = settledBytes() - before
        println("1,000 swaps: %.3f ms each, %.1f MB more; a head has %.1f MB".format(ms, grown / 1e6, bytes / 1e6))
        // Had much become less meanwhile, a leak could hide in it.
        assertTrue("$grown", abs(grown) < 20 * bytes)
    }

    /** Resident memory once it falls no more: Java gives back what it collects a while later. */
    private fun settledBytes(): Long {
        var before = Long.MAX_VALUE
        while (true) {
            System.gc()
            Thread.sleep(200)
            val now = residentBytes()
            if (now > before - 1_000_000) return now
            before = now
        }
    }

    /** Memory that no file lies behind: the mapped programs' pages come and go. */
    private fun residentBytes(): Long {
        val line = File("/proc/self/status").readLines().first { it.startsWith("RssAnon:") }
        return 1024 * line.filter { it.isDigit() }.toLong()
    }
}
