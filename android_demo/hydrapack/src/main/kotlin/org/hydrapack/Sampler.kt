package org.hydrapack

/**
 * The next token from logits; the same draws as in Python and C++ for a seed
 * (docs/runtime-contract.md has the rules). Sums run in the order of ids, in double.
 */
class Sampler(private var state: Long) {
    /** The next number of [0, 1): 53 bits of SplitMix64 (https://prng.di.unimi.it/splitmix64.c). */
    fun uniform(): Double {
        state += -0x61c8864680b583eb
        var x = state
        x = (x xor (x ushr 30)) * -0x40a7b892e31b1a47
        x = (x xor (x ushr 27)) * -0x6b2fb644ecceee15
        x = x xor (x ushr 31)
        return (x ushr 11) * TWO_TO_MINUS_53
    }

    /** The id of the next token; Invalid where a logit is NaN or infinite. */
    fun pick(logits: FloatArray, generation: Generation): Int {
        var largest = 0
        for (i in logits.indices) {
            if (!logits[i].isFinite()) {
                throw HydrapackException.Invalid("the model gives NaN or infinity (token $i)")
            }
            if (logits[i] > logits[largest]) largest = i
        }
        // The options are float32 in every runtime.
        val temperature = generation.temperature.toFloat().toDouble()
        if (temperature == 0.0) return largest
        val topP = generation.topP.toFloat().toDouble()
        var ids = largest(logits, generation.topK)
        var weights = DoubleArray(ids.size) {
            Math.exp((logits[ids[it]].toDouble() - logits[largest]) / temperature)
        }
        if (topP < 1) {
            val kept = nucleus(logits, ids, weights, topP)
            val all = weights
            weights = DoubleArray(kept.size) { all[kept[it]] }
            val from = ids
            ids = IntArray(kept.size) { from[kept[it]] }
        }
        val drawn = uniform() * sum(weights)
        var reached = 0.0
        for (i in ids.indices) {
            reached += weights[i]
            if (drawn < reached) return ids[i]
        }
        return ids.last()
    }

    /** Ids, rising, of the [count] largest; of equal ones the lower; 0 for all. */
    private fun largest(logits: FloatArray, count: Int): IntArray {
        if (count !in 1 until logits.size) return IntArray(logits.size) { it }
        // Adding zero makes the two zeros equal, which a sort would tell apart.
        val sorted = FloatArray(logits.size) { logits[it] + 0f }
        sorted.sort()
        val least = sorted[logits.size - count]
        var equal = count - logits.count { it > least }
        val ids = IntArray(count)
        var found = 0
        for (i in logits.indices) {
            if (logits[i] > least || (logits[i] == least && equal-- > 0)) ids[found++] = i
        }
        return ids
    }

    /** Places, rising, of the fewest, heaviest first, whose weights reach [topP] of the whole. */
    private fun nucleus(
        logits: FloatArray,
        ids: IntArray,
        weights: DoubleArray,
        topP: Double,
    ): IntArray {
        val whole = sum(weights)
        // Those below this share cannot be needed, even all together: the sort is of the rest.
        val least = (1 - topP) * whole / weights.size
        val places = weights.indices.filter { weights[it] >= least }
            // Stable: of equal logits the lower id comes first.
            .sortedWith { x, y -> java.lang.Float.compare(logits[ids[y]] + 0f, logits[ids[x]] + 0f) }
        var reached = 0.0
        var count = 0
        while (count < places.size) {
            reached += weights[places[count++]]
            if (reached >= topP * whole) break
        }
        return places.subList(0, count).sorted().toIntArray()
    }

    private fun sum(values: DoubleArray): Double {
        var sum = 0.0
        for (value in values) sum += value
        return sum
    }

    private companion object {
        const val TWO_TO_MINUS_53 = 1.0 / (1L shl 53)
    }
}
