package org.hydrapack

import java.io.Closeable
import java.io.File
import java.util.concurrent.atomic.AtomicBoolean

/** Times of the last swap and answer, in ms, and token counts. */
data class Stats(
    val loadMs: Double = 0.0,
    val swapMs: Double = 0.0,
    val prefillMs: Double = 0.0,
    val prefillTokens: Int = 0,
    val decodeMs: Double = 0.0,
    val decodeTokens: Int = 0,
    /** Of the program; fewer than tokens with lookup. */
    val decodeCalls: Int = 0,
) {
    /** Tokens a second. */
    val prefillRate: Double get() = if (prefillMs > 0) 1000 * prefillTokens / prefillMs else 0.0

    /** Tokens a second. */
    val decodeRate: Double get() = if (decodeMs > 0) 1000 * decodeTokens / decodeMs else 0.0
}

/** Why an answer ended. */
enum class Finish {
    /** An end token of the model, or a stop string. */
    STOP,

    /** As many tokens as asked for. */
    LENGTH,

    /** The context is full. */
    CONTEXT,

    /** The callback or [Session.stop] ended it. */
    STOPPED,
}

/** What was generated; an end token is not among the ids. */
class Answer internal constructor(val text: String, val ids: List<Int>, val finish: Finish)

/**
 * One base program and perhaps a package; the position, the cache and the head are its state.
 *
 * For one thread at a time: a second that calls it meanwhile gets Busy, and so does an answer's own
 * callback. [stop], [task], [stats] and [position] are for any thread.
 */
class Session private constructor(
    private val opened: Opened,
    /** The package's; null for the bare base model alone. */
    val packageFolder: File?,
    private val checkDigests: Boolean,
    started: Long,
) : Closeable {
    private val manifest = opened.manifest
    private val programs = opened.programs
    private val busy = AtomicBoolean()
    private val running = AtomicBoolean()
    private val toStop = AtomicBoolean()
    private var closed = false

    @Volatile private var used: Task? = null

    /** Times of the last calls. */
    @Volatile
    var stats = Stats(loadMs = msSince(started))
        private set

    /** Tokens that the text so far has. */
    @Volatile
    var position = 0
        private set

    /** The package's tasks; none without a package. */
    val tasks: List<Task> get() = manifest?.tasks.orEmpty()

    /** The task in use; null for the bare base model. */
    val task: Task? get() = used

    /** Positions that the context has. */
    val maxContext: Int get() = programs.maxContext

    /** The id of the base model that the adapters were trained on. */
    val baseModel: String get() = opened.baseModel

    /**
     * Swaps to the head of [task], or to the bare base model, and begins a new text.
     *
     * A name that the package does not have gets what its fallback says. Whatever fails, Busy apart,
     * leaves the bare base model.
     */
    fun use(task: String?): Unit = holding { swap(task) }

    /** Replays the package's golden outputs; the bare base model is in use afterwards. */
    fun selfTest(): SelfTest = holding {
        if (packageFolder == null || manifest == null) {
            throw HydrapackException.NotFound("golden outputs are of a package, and there is none")
        }
        val golden = Golden.read(packageFolder, manifest, checkDigests)
        val greedy = Generation()
        golden.replay(::swap) { ids -> Sampler(0).pick(append(ids), greedy) }.also { swap(null) }
    }

    /** Ids of the task's prompt around [text]; with no task, of the text after BOS. */
    fun encode(text: String, promptTemplate: String? = null): IntArray = holding {
        promptIds(text, promptTemplate)
    }

    /** Forgets the text so far. */
    fun reset(): Unit = holding { position = 0 }

    /** Appends [ids] to the text; the logits of the next token. */
    fun forward(ids: IntArray): FloatArray = holding { append(ids).copyOf() }

    /**
     * Answers [text] from a fresh position. [onText] gets each piece as it comes and says whether to
     * go on.
     */
    fun generate(
        text: String,
        options: GenerateOptions = GenerateOptions(),
        onText: (String) -> Boolean = { true },
    ): Answer = holding {
        val resolved = Options.resolve(used, options)
        val ids = promptIds(text, options.promptTemplate)
        check(ids, 0)
        toStop.set(false)
        running.set(true)
        try {
            answer(ids, resolved, if (options.lookup) Lookup(ids) else null, onText)
        } finally {
            running.set(false)
        }
    }

    /** Ends the answer that is being made, before its next token; nothing if none is. */
    fun stop() {
        if (running.get()) toStop.set(true)
    }

    /** Frees both programs; no other call may follow. */
    override fun close() {
        if (closed) return
        holding {
            closed = true
            programs.close()
        }
    }

    /** The values of the head in use. For tests. */
    internal fun head(): FloatArray = holding { programs.head() }

    private fun swap(task: String?) {
        val begun = System.nanoTime()
        position = 0
        used = null
        programs.useBase()
        val chosen = if (task == null) null else find(task)
        if (chosen != null) programs.useHead(chosen.route)
        used = chosen
        stats = stats.copy(swapMs = msSince(begun))
    }

    private fun find(task: String): Task? {
        if (manifest != null) return manifest.find(task)
        throw HydrapackException.NotFound("unknown task '$task': the session has no package")
    }

    private inline fun <T> holding(call: () -> T): T {
        if (!busy.compareAndSet(false, true)) {
            throw HydrapackException.Busy(
                "the session is in use by another thread, or by a running answer whose callback calls it",
            )
        }
        try {
            if (closed) throw HydrapackException.Invalid("the session is closed: open it again")
            return call()
        } finally {
            busy.set(false)
        }
    }

    private fun promptIds(text: String, template: String?): IntArray {
        val said = template ?: used?.promptTemplate
        val ids = Prompts.encode(opened.tokenizer, said ?: Prompts.HOLE, text)
        // A template says all of its prompt; a bare text begins as the tokenizer has it.
        return if (said == null) opened.tokenizer.startIds + ids else ids
    }

    private fun check(ids: IntArray, taken: Int) {
        if (ids.isEmpty()) {
            throw HydrapackException.Invalid("the prompt is empty: there is nothing to go on from")
        }
        if (ids.size > maxContext - taken) {
            throw HydrapackException.ContextFull(
                "${ids.size} tokens do not fit: $taken of $maxContext are taken; give a shorter text",
            )
        }
        if (ids.any { it !in 0 until programs.vocabulary }) {
            throw HydrapackException.Invalid(
                "a token is not in the vocabulary of ${programs.vocabulary}",
            )
        }
    }

    private fun append(ids: IntArray): FloatArray {
        check(ids, position)
        var logits = FloatArray(0)
        var done = 0
        forgettingOnFailure {
            while (done < ids.size) {
                val count = minOf(programs.maxTokens, ids.size - done)
                logits = programs.forward(ids, done, count, position)[0]
                position += count
                done += count
            }
        }
        return logits
    }

    private inline fun <T> forgettingOnFailure(run: () -> T): T = try {
        run()
    } catch (error: HydrapackException.Runtime) {
        // What the cache holds now is not known.
        position = 0
        throw error
    }

    /** Logits after one more token of an answer, of which at most [useful] guesses can be of use. */
    private fun next(token: Int, answer: Guessing, useful: Int): FloatArray {
        val lookup = answer.lookup
        if (lookup != null && lookup.known(token)) {
            position++
            return answer.rows[++answer.row]
        }
        stats = stats.copy(decodeCalls = stats.decodeCalls + 1)
        if (lookup == null) return append(intArrayOf(token))
        check(intArrayOf(token), position)
        val room = minOf(programs.maxRows, maxContext - position) - 1
        val ids = intArrayOf(token) + lookup.guess(token, minOf(useful, room))
        answer.rows = forgettingOnFailure {
            programs.forward(ids, 0, ids.size, position, ids.size)
        }
        answer.row = 0
        // What was guessed wrong is in the cache, behind the position, where nothing reads it.
        position++
        return answer.rows[0]
    }

    /** The guesses of an answer, and the logits that the last call found after them. */
    private class Guessing(val lookup: Lookup?) {
        var rows = emptyList<FloatArray>()
        var row = 0
    }

    private fun answer(
        ids: IntArray,
        options: Options,
        lookup: Lookup?,
        onText: (String) -> Boolean,
    ): Answer {
        val guessing = Guessing(lookup)
        position = 0
        val ends = programs.endIds + options.stop.mapNotNull(opened.tokenizer::id)
        val sampler = Sampler(options.seed)
        val stream = TextStream(opened.tokenizer, options.stop)
        val text = StringBuilder()
        val made = ArrayList<Int>()
        fun give(piece: String): Boolean {
            text.append(piece)
            return piece.isEmpty() || onText(piece)
        }
        var begun = System.nanoTime()
        var logits = append(ids)
        stats = stats.copy(
            prefillMs = msSince(begun), prefillTokens = ids.size, decodeMs = 0.0, decodeTokens = 0,
            decodeCalls = 0,
        )
        val finish: Finish
        while (true) {
            if (toStop.get()) return Answer(text.toString(), made, Finish.STOPPED)
            val token = sampler.pick(logits, options.generation)
            if (token in ends) {
                finish = Finish.STOP
                break
            }
            made.add(token)
            val goOn = give(stream.push(token))
            if (stream.stopped) return Answer(text.toString(), made, Finish.STOP)
            if (!goOn) return Answer(text.toString(), made, Finish.STOPPED)
            if (made.size == options.generation.maxNewTokens) {
                finish = Finish.LENGTH
                break
            }
            if (position >= maxContext) {
                finish = Finish.CONTEXT
                break
            }
            begun = System.nanoTime()
            logits = next(token, guessing, options.generation.maxNewTokens - made.size - 1)
            stats = stats.copy(
                decodeMs = stats.decodeMs + msSince(begun), decodeTokens = stats.decodeTokens + 1,
            )
        }
        give(stream.rest())
        return Answer(text.toString(), made, finish)
    }

    companion object {
        /**
         * Checks that the files belong together, and loads both programs; without a package the bare
         * base model alone. It blocks: call it on the thread that is to own the session.
         */
        fun open(
            model: File,
            packageFolder: File? = null,
            options: OpenOptions = OpenOptions(),
        ): Session {
            val started = System.nanoTime()
            val opened = Opening(model, packageFolder, options).open()
            val session = Session(opened, packageFolder, options.checkDigests, started)
            var proven = !options.selfTest
            try {
                if (!proven) session.prove()
                proven = true
                return session
            } finally {
                if (!proven) session.close()
            }
        }

        private fun Session.prove() {
            val test = selfTest()
            if (test.passed) return
            throw HydrapackException.Mismatch(
                "$packageFolder: fails its self-test on this device: $test",
            )
        }

        private fun msSince(started: Long): Double = (System.nanoTime() - started) / 1e6
    }
}
