package org.hydrapack

import java.io.File
import java.util.Locale

/** A clear golden token that came out otherwise. */
data class GoldenDifference(
    val task: String,
    /** Its place among the task's, from 0. */
    val prompt: Int,
    /** Its place in the answer, from 0. */
    val token: Int,
    val expected: Int,
    val found: Int,
    /** Of the expected one, in logits, when it was packed. */
    val margin: Double,
)

/** What a replay of golden outputs found. */
class SelfTest internal constructor(
    /** That were replayed. */
    val tasks: List<String>,
    /** Compared, of all tasks. */
    val tokens: Int,
    /** Other tokens at margins below the bound, which pass. */
    val nearTies: Int,
    val differences: List<GoldenDifference>,
) {
    val passed: Boolean get() = differences.isEmpty()

    /** One line. */
    override fun toString(): String {
        val first = differences.firstOrNull()
            ?: return "$tokens golden tokens as packed, $nearTies near ties apart"
        val failed = differences.map { it.task }.toSortedSet().joinToString()
        return "${differences.size} of $tokens golden tokens differ, of $failed; first: task " +
            "'${first.task}', prompt ${first.prompt}, token ${first.token} is ${first.found}, not " +
            "${first.expected} (margin ${"%.2f".format(Locale.ROOT, first.margin)})"
    }
}

/** golden.json: what each head said when it was packed (docs/runtime-contract.md). */
internal class Golden private constructor(
    private val nearTie: Double,
    private val tasks: List<GoldenTask>,
) {
    private class GoldenTask(val name: String, val prompts: List<GoldenPrompt>)

    private class GoldenPrompt(val ids: IntArray, val tokens: List<Int>, val margins: List<Double>)

    /**
     * Runs every prompt under its head: [use] swaps to it, [next] appends ids and gives the greedy
     * token after them. Whatever comes out, the golden token goes on.
     */
    fun replay(use: (String) -> Unit, next: (IntArray) -> Int): SelfTest {
        var compared = 0
        var nearTies = 0
        val differences = ArrayList<GoldenDifference>()
        for (task in tasks) {
            for ((number, prompt) in task.prompts.withIndex()) {
                use(task.name)
                var step = prompt.ids
                for ((place, expected) in prompt.tokens.withIndex()) {
                    val found = next(step)
                    step = intArrayOf(expected)
                    compared++
                    if (found == expected) continue
                    val margin = prompt.margins[place]
                    if (margin < nearTie) {
                        nearTies++
                    } else {
                        differences.add(
                            GoldenDifference(task.name, number, place, expected, found, margin),
                        )
                    }
                }
            }
        }
        return SelfTest(tasks.map { it.name }, compared, nearTies, differences)
    }

    companion object {
        private const val FILE = "golden.json"
        private const val MAX_ID = (1L shl 31) - 1
        private const val MAX_ANSWER = 4096

        /** The golden outputs of the package in [folder], compared with its manifest. */
        fun read(folder: File, manifest: Manifest, checkDigest: Boolean): Golden {
            val stated = manifest.files.find { it.name == FILE } ?: throw HydrapackException.NotFound(
                "$folder: has no golden outputs: pack it with --golden",
            )
            stated.check(folder, checkDigest)
            val file = File(folder, FILE)
            val root = JsonReader(Json.parseObject(Files.readJsonBytes(file), file.path), "$file:")
            root.at("schema_version").integer(1, 1)
            val names = manifest.tasks.mapTo(HashSet()) { it.name }
            return Golden(
                root.at("near_tie").notNegative(),
                root.at("tasks").list(1).map { task ->
                    val name = task.at("name").text(least = 1)
                    if (name !in names) task.at("name").fail("is not in the package")
                    GoldenTask(name, task.at("prompts").list(1).map(::readPrompt))
                },
            )
        }

        private fun readPrompt(prompt: JsonReader): GoldenPrompt {
            fun ids(key: String, most: Int) =
                prompt.at(key).list(1, most).map { it.integer(0, MAX_ID).toInt() }
            val tokens = ids("tokens", MAX_ANSWER)
            val margins = prompt.at("margins").list(0).map { it.notNegative() }
            if (margins.size != tokens.size) prompt.fail("not a margin for each token")
            return GoldenPrompt(ids("ids", JsonReader.MAX_ITEMS).toIntArray(), tokens, margins)
        }

        private fun JsonReader.notNegative(): Double =
            number().also { if (it < 0) fail("must be 0 or more") }
    }
}
