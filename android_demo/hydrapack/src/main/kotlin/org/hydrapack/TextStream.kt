package org.hydrapack

/** The text of tokens as they come, cut before the first stop string. */
class TextStream(tokenizer: Tokenizer, private val stop: List<String>) {
    private val stream = DecodeStream(tokenizer)

    /** A stop string may come in pieces: text that could begin one is held back. */
    private var held = ""

    /** A stop string was found. */
    var stopped = false
        private set

    /** What is certain once [token] has come. */
    fun push(token: Int): String {
        held += stream.push(token)
        val end = stop.map { held.indexOf(it) }.filter { it >= 0 }.minOrNull()
        stopped = end != null
        val ready = held.substring(0, end ?: (held.length - partialStop()))
        held = if (stopped) "" else held.substring(ready.length)
        return ready
    }

    /** What is held back, where no more tokens come. */
    fun rest(): String = held.also { held = "" }

    /** Length of the longest end of the text that begins a stop string. */
    private fun partialStop(): Int = stop.maxOfOrNull { string ->
        (minOf(string.length - 1, held.length) downTo 1)
            .firstOrNull { held.regionMatches(held.length - it, string, 0, it) } ?: 0
    } ?: 0
}

/** Token by token to text, in pieces that are whole characters, as tokenizers' DecodeStream. */
internal class DecodeStream(private val tokenizer: Tokenizer) {
    private val ids = ArrayList<Int>()

    /** The text of the first [known] of the ids: it is decoded with them, and not given again. */
    private var prefix = ""
    private var known = 0

    fun push(token: Int): String {
        if (prefix.isEmpty() && ids.isNotEmpty()) {
            val text = tokenizer.decode(ids)
            if (!text.endsWith(REPLACEMENT)) {
                prefix = text
                known = ids.size
            }
        }
        ids.add(token)
        val text = tokenizer.decode(ids)
        // An unfinished character ends in U+FFFD: it waits for its other bytes.
        if (text.length <= prefix.length || text.endsWith(REPLACEMENT)) return ""
        if (!text.startsWith(prefix)) {
            throw HydrapackException.Runtime("the tokens have no text that only grows")
        }
        val piece = text.substring(prefix.length)
        val fresh = ids.size - known
        ids.subList(0, known).clear()
        prefix = tokenizer.decode(ids)
        known = fresh
        return piece
    }

    private companion object {
        const val REPLACEMENT = '\uFFFD'
    }
}
