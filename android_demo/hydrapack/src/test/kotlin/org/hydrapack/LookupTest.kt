package org.hydrapack

import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class LookupTest {
    @Test
    fun theGuessesArePythons() {
        val rows = Fixtures.lines(Fixtures.folder("lookups.jsonl"))
        var known = 0
        var guesses = 0
        for (row in rows) {
            val lookup = Lookup(row["prompt"].ints().toIntArray())
            for ((token, expected) in row["tokens"].ints().zip(row["guesses"] as List<*>)) {
                val wasKnown = lookup.known(token)
                assertEquals(expected == null, wasKnown)
                if (expected == null) {
                    known++
                    continue
                }
                val most = expected.ints().first()
                assertEquals(expected.ints().drop(1), lookup.guess(token, most).toList())
                guesses += expected.ints().size - 1
            }
        }
        assertTrue("$known known, $guesses guesses", known > 1000 && guesses > 3000)
    }
}
