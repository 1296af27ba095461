package org.hydrapack

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class SamplerTest {
    @Test
    fun theDrawsArePythons() {
        val rows = Fixtures.lines(Fixtures.folder("draws.jsonl"))
        assertTrue(rows.size > 400)
        var distinct = 0
        for (row in rows) {
            val logits = (row["logits"] as List<*>).map { (it as Number).toFloat() }.toFloatArray()
            val generation = Generation(
                1,
                (row["temperature"] as Number).toDouble(),
                (row["top_k"] as Long).toInt(),
                (row["top_p"] as Number).toDouble(),
            )
            val sampler = Sampler(row["seed"] as Long)
            val drawn = List((row["count"] as Long).toInt()) { sampler.pick(logits, generation) }
            assertEquals("${row - "logits"}", row["ids"].ints(), drawn)
            distinct += drawn.toSet().size
        }
        assertTrue("$distinct", distinct > 1000)
    }

    @Test
    fun whatIsNoNumberIsRefused() {
        for (bad in listOf(Float.NaN, Float.POSITIVE_INFINITY, Float.NEGATIVE_INFINITY)) {
            Fixtures.assertKind("Invalid", "NaN or infinity") {
                Sampler(0).pick(floatArrayOf(0f, bad), Generation())
            }
        }
    }

    @Test
    fun uniformIsSplitMix64() {
        // The first output of the reference code for seed 1234567 is 6457827717110365317.
        assertEquals((6457827717110365317 ushr 11) / 9007199254740992.0, Sampler(1234567).uniform(), 0.0)
        // All 64 bits of a seed count.
        assertTrue(Sampler(-1).uniform() != Sampler(Long.MAX_VALUE).uniform())
    }
}
