package org.hydrapack

/** What a caller may say of an answer; null is the task's own. */
data class GenerateOptions(
    val maxNewTokens: Int? = null,
    val temperature: Double? = null,
    val topK: Int? = null,
    val topP: Double? = null,
    /** All 64 bits count: a negative seed is the unsigned one of the same bits. */
    val seed: Long = 0,
    /** In place of the task's own. */
    val stop: List<String>? = null,
    /** In place of the task's own. */
    val promptTemplate: String? = null,
    /** Guess tokens from the text so far, and check several a call. */
    val lookup: Boolean = false,
)

/** Every option of one answer with its value. */
internal class Options private constructor(
    val generation: Generation,
    val seed: Long,
    val stop: List<String>,
) {
    companion object {
        const val MAX_TOKENS = 1L shl 20
        private const val MAX_STOPS = 65536

        fun resolve(task: Task?, said: GenerateOptions): Options {
            val own = task?.generation ?: Generation()
            val generation = Generation(
                said.maxNewTokens ?: own.maxNewTokens,
                said.temperature ?: own.temperature,
                said.topK ?: own.topK,
                said.topP ?: own.topP,
            )
            check(generation) { key, what -> throw HydrapackException.Invalid("$key: $what") }
            val stop = said.stop ?: task?.stop ?: emptyList()
            if (stop.size > MAX_STOPS || stop.any { it.isEmpty() }) {
                throw HydrapackException.Invalid("stop: must be at most $MAX_STOPS texts, none empty")
            }
            return Options(generation, said.seed, stop)
        }

        /** Complains of the first value out of its range, by its key in the manifest. */
        inline fun check(values: Generation, complain: (String, String) -> Nothing) {
            if (values.maxNewTokens !in 1..MAX_TOKENS) {
                complain("max_new_tokens", "must be from 1 to $MAX_TOKENS")
            }
            if (!(values.temperature >= 0 && values.temperature <= 100)) {
                complain("temperature", "must be from 0 to 100")
            }
            if (values.topK !in 0..MAX_TOKENS) complain("top_k", "must be from 0 to $MAX_TOKENS")
            if (!(values.topP > 0 && values.topP <= 1)) {
                complain("top_p", "must be above 0, at most 1")
            }
        }
    }
}
