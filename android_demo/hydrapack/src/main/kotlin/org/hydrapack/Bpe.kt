package org.hydrapack

import java.util.PriorityQueue

/** Byte-pair encoding of a word: the pair of the lowest rank is merged first, the leftmost of equals. */
internal class Bpe(
    private val vocabulary: Map<String, Int>,
    private val merges: Merges,
    private val unknown: Int?,
    private val fuseUnknown: Boolean,
    private val byteFallback: Boolean,
    private val ignoreMerges: Boolean,
) {
    fun encode(word: String, ids: MutableList<Int>) {
        if (word.isEmpty()) return
        if (ignoreMerges) {
            vocabulary[word]?.let {
                ids.add(it)
                return
            }
        }
        merge(symbols(word), ids)
    }

    /** A symbol a character; one that the vocabulary lacks as its bytes, or as the unknown token. */
    private fun symbols(word: String): IntArray {
        val found = IntList(word.length)
        var wasUnknown = false
        var at = 0
        while (at < word.length) {
            val end = at + Character.charCount(word.codePointAt(at))
            val character = word.substring(at, end)
            at = end
            val id = vocabulary[character]
            if (id != null) {
                found.add(id)
                wasUnknown = false
                continue
            }
            val bytes = if (byteFallback) bytesOf(character) else null
            if (bytes != null) {
                bytes.forEach(found::add)
            } else if (unknown != null) {
                if (!wasUnknown || !fuseUnknown) found.add(unknown)
                wasUnknown = true
            }
        }
        return found.toArray()
    }

    private fun bytesOf(character: String): List<Int>? {
        val ids = character.toByteArray(Charsets.UTF_8).map { vocabulary[byteToken(it)] }
        return if (null in ids) null else ids.filterNotNull()
    }

    private fun merge(symbols: IntArray, ids: MutableList<Int>) {
        val count = symbols.size
        // A list by places: a merged symbol leaves a hole of -1 behind.
        val before = IntArray(count) { it - 1 }
        val after = IntArray(count) { if (it + 1 < count) it + 1 else -1 }
        // Rank above, place below: the smallest is the next to merge.
        val queue = PriorityQueue<Long>()
        fun offer(left: Int) {
            val right = if (left < 0) -1 else after[left]
            if (right < 0) return
            val rank = merges.rank(symbols[left], symbols[right])
            if (rank >= 0) queue.add((rank.toLong() shl 32) or left.toLong())
        }
        for (i in 0 until count - 1) offer(i)
        while (true) {
            val next = queue.poll() ?: break
            val left = next.toInt()
            val right = after[left]
            // What stands there may have been merged otherwise since.
            if (symbols[left] < 0 || right < 0) continue
            val rank = (next shr 32).toInt()
            if (merges.rank(symbols[left], symbols[right]) != rank) continue
            symbols[left] = merges.made(rank)
            symbols[right] = -1
            after[left] = after[right]
            if (after[left] >= 0) before[after[left]] = left
            offer(before[left])
            offer(left)
        }
        for (symbol in symbols) if (symbol >= 0) ids.add(symbol)
    }

    companion object {
        private const val HEX = "0123456789ABCDEF"

        /** The name of a byte in vocabularies with byte fallback. */
        fun byteToken(byte: Byte): String =
            "<0x" + HEX[byte.toInt() shr 4 and 15] + HEX[byte.toInt() and 15] + ">"
    }
}

/** Ranks of pairs of ids, and what each makes: a hash table without a box for each of its numbers. */
internal class Merges(private val pairs: LongArray, private val made: IntArray) {
    private val mask = Integer.highestOneBit(maxOf(1, pairs.size)) * 4 - 1
    private val slots = IntArray(mask + 1) { -1 }

    init {
        for (rank in pairs.indices) {
            var at = slot(pairs[rank])
            while (slots[at] >= 0 && pairs[slots[at]] != pairs[rank]) at = at + 1 and mask
            // A pair that stands twice has its later rank, as the field's own reader gives it.
            slots[at] = rank
        }
    }

    /** The rank of the pair, or -1. */
    fun rank(left: Int, right: Int): Int {
        val pair = pair(left, right)
        var at = slot(pair)
        while (slots[at] >= 0) {
            if (pairs[slots[at]] == pair) return slots[at]
            at = at + 1 and mask
        }
        return -1
    }

    /** The id that the merge of a rank makes. */
    fun made(rank: Int): Int = made[rank]

    private fun slot(pair: Long): Int = ((pair * -0x61c8864680b583eb) ushr 32).toInt() and mask

    companion object {
        fun pair(left: Int, right: Int): Long = (left.toLong() shl 32) or right.toLong()
    }
}

internal class IntList(capacity: Int) {
    private var values = IntArray(maxOf(4, capacity))

    var size = 0
        private set

    operator fun get(at: Int): Int = values[at]

    fun add(value: Int) {
        if (size == values.size) values = values.copyOf(2 * size)
        values[size++] = value
    }

    fun toArray(): IntArray = values.copyOf(size)
}
