package org.hydrapack

/**
 * Prompt lookup: guesses that the answer goes on as the text did where its last tokens stood before
 * (docs/runtime-contract.md). The three runtimes guess alike.
 */
internal class Lookup(prompt: IntArray) {
    private val text = IntList(2 * prompt.size).apply { prompt.forEach(::add) }
    private var credit = CREDIT
    private var guessed = IntArray(0)
    private var right = 0

    /** Whether [token], which joins the text, was guessed next: the logits after it are there. */
    fun known(token: Int): Boolean {
        if (right == guessed.size) return false
        if (guessed[right] != token) {
            guessed = IntArray(0)
            right = 0
            return false
        }
        text.add(token)
        credit = minOf(credit + 1, MOST_CREDIT)
        right++
        return true
    }

    /** [token] joins the text: at most [most] guesses of what comes after it. */
    fun guess(token: Int, most: Int): IntArray {
        text.add(token)
        guessed = if (credit > 0 && most > 0) found(most) else IntArray(0)
        right = 0
        credit += if (guessed.isEmpty()) EARNED else -COST * guessed.size
        return guessed
    }

    private fun found(most: Int): IntArray {
        for ((alike, count) in RULES) {
            if (alike == 1 && credit < ONE_TOKEN) continue
            val place = placeAfter(alike)
            if (place < 0) continue
            return IntArray(minOf(count, most, text.size - place)) { text[place + it] }
        }
        return IntArray(0)
    }

    /** The place after the last one where the text's last [alike] tokens stood before, or -1. */
    private fun placeAfter(alike: Int): Int {
        for (end in text.size - 1 downTo alike) {
            if ((1..alike).all { text[end - it] == text[text.size - it] }) return end
        }
        return -1
    }

    private companion object {
        /** Tokens that must stand alike, and how many are guessed after them. */
        val RULES = listOf(3 to 5, 2 to 3, 1 to 3)

        /** In plain steps: what wrong guesses may cost at first and at most, what each costs. */
        const val CREDIT = 1.5
        const val MOST_CREDIT = 4.0
        const val COST = 0.1

        /** What a plain step earns, and from which credit one token alike is enough. */
        const val EARNED = 0.02
        const val ONE_TOKEN = 1.5
    }
}
