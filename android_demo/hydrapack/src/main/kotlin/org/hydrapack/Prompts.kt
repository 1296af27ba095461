package org.hydrapack

/** Prompt templates: the text around a task's input, and how both become token ids. */
internal object Prompts {
    const val HOLE = "{input}"

    /** Complains unless the template holds the hole exactly once. */
    inline fun check(template: String, complain: (String) -> Nothing) {
        val first = template.indexOf(HOLE)
        if (first < 0 || template.indexOf(HOLE, first + 1) >= 0) {
            complain("the prompt template must hold $HOLE exactly once")
        }
    }

    /**
     * Ids of [template] with [text] in place of the hole. Special tokens are recognised in the
     * template only: a user's text cannot close its own turn.
     */
    fun encode(tokenizer: Tokenizer, template: String, text: String): IntArray {
        check(template) { throw HydrapackException.Invalid("prompt_template: $it") }
        if (!Charsets.UTF_8.newEncoder().canEncode(text)) {
            throw HydrapackException.Invalid("the text has a lone surrogate: it has no UTF-8")
        }
        val (before, after) = template.split(HOLE)
        return tokenizer.encode(before) +
            tokenizer.encode(text, specialTokens = false) +
            tokenizer.encode(after)
    }
}
