package org.hydrapack

import java.io.File
import org.junit.Assert.assertTrue
import org.junit.Test

/** The demo's real model with its five adapters, 4 bits a weight. */
class SmolLm2Test {
    @Test
    fun allIsAsInPythonAndAThousandSwapsLeakNothing() {
        val folder = Fixtures.folder("smollm2")
        Fixtures.loadNative()
        Fixtures.open(folder).use { session ->
            Fixtures.assertAsInPython(session, folder, answers = false)
            val names = session.tasks.map { it.name }
            val bytes = 4L * session.also { it.use(names[0]) }.head().size
            fun swap(times: Int) = repeat(times) { session.use(names[it % names.size]) }
            swap(100)
            // The first gives back what reading the tokenizer took.
            repeat(2) { System.gc() }
            val before = residentBytes()
            val started = System.nanoTime()
            swap(1000)
            val ms = (System.nanoTime() - started) / 1e9
            System.gc()
            val grown = residentBytes() - before
            println("1,000 swaps: %.3f ms each, %.1f MB more; a head has %.1f MB".format(ms, grown / 1e6, bytes / 1e6))
            assertTrue("$grown", grown < 20 * bytes)
        }
    }

    /** Memory that no file lies behind: the mapped programs' pages come and go. */
    private fun residentBytes(): Long {
        val line = File("/proc/self/status").readLines().first { it.startsWith("RssAnon:") }
        return 1024 * line.filter { it.isDigit() }.toLong()
    }
}
