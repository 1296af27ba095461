package org.hydrapack

import java.io.File

/** How an answer is generated where the caller does not say. */
data class Generation(
    val maxNewTokens: Int = 128,
    val temperature: Double = 0.0,
    val topK: Int = 0,
    val topP: Double = 1.0,
)

/** A task: how it is prompted, and its head in each module. */
class Task internal constructor(
    val name: String,
    val promptTemplate: String,
    val stop: List<String>,
    val generation: Generation,
    /** A BCP 47 tag, or null where unknown. */
    val language: String?,
    internal val route: LongArray,
)

/** A file of a package. */
class PackageFile internal constructor(val name: String, val bytes: Long, val sha256: String) {
    /** Refuses the file in [folder] where it has another size or, with [digest], another SHA-256. */
    fun check(folder: File, digest: Boolean = true): Unit =
        Files.check(File(folder, name), bytes, sha256, digest, Manifest.MANIFEST)
}

/** What a device reads of manifest.json: what it uses, and no key more (docs/manifest.md). */
class Manifest private constructor(
    val baseModel: String,
    val weightsSha256: String?,
    val tokenizerSha256: String?,
    val layoutDigest: String,
    val rank: Int,
    val tasks: List<Task>,
    val fallback: String,
    /** All but the manifest itself and its signature. */
    val files: List<PackageFile>,
) {
    private val byName = tasks.associateBy { it.name }

    /** What is said of adapters.pte. */
    val adapters: PackageFile get() = files.first { it.name == ADAPTERS }

    /** The task called [name], or what the fallback has for it; null is the bare base model. */
    fun find(name: String): Task? {
        byName[name]?.let { return it }
        return when (fallback) {
            "error" -> throw HydrapackException.NotFound(
                "unknown task '$name'; the package has: ${tasks.joinToString { it.name }}",
            )
            "base" -> null
            else -> byName.getValue(fallback)
        }
    }

    companion object {
        /** The manifest of the package in [folder]. */
        fun read(folder: File): Manifest {
            val file = File(folder, MANIFEST)
            return parse(Files.readJsonBytes(file, "; is it a package?"), file.path)
        }

        const val ADAPTERS = "adapters.pte"
        const val MANIFEST = "manifest.json"

        private const val MAX_HEADS = 4096L
        internal const val MAX_RANK = 65536L
        private const val MAX_BYTES = (1L shl 40) - 1
        private const val MAX_ID = 1000
        private const val MAX_PIECES = 8
        private const val MAX_NAME = 200
        private val DIGEST_KEY = "\n  \"package_digest\": \"".toByteArray()

        /** The manifest in [bytes]; [where] names the file in errors. */
        fun parse(bytes: ByteArray, where: String, checkDigest: Boolean = true): Manifest {
            val root = JsonReader(Json.parseObject(bytes, where), "$where:")
            // First, so that a newer manifest is not refused for its other keys.
            checkVersion(root)
            val stated = root.at("package_digest").digest()
            val layout = root.at("layout_digest").digest()
            val rank = root.at("rank").integer(1, MAX_RANK).toInt()
            val most = root.at("heads").integer(1, MAX_HEADS)
            val base = root.at("base_model")
            val heads = root.at("modules").list(1).map { it.at("heads").integer(1, most) }
            val tasks = root.at("tasks").list(1).map { readTask(it, heads) }
            val names = HashSet<String>()
            for (task in tasks) {
                if (!names.add(task.name)) root.at("tasks").fail("the name '${task.name}' stands twice")
            }
            val fallback = root.at("fallback").text()
            if (fallback != "error" && fallback != "base" && fallback !in names) {
                root.at("fallback").fail("is neither error, base nor a task")
            }
            val files = readFiles(root.at("files"))
            checkHeadBanks(root, heads, files.first { it.name == ADAPTERS }.bytes)
            if (root.has("metadata")) root.at("metadata").members()
            val manifest = Manifest(
                base.at("id").text(most = MAX_ID),
                base.at("weights_sha256").digestOrNull(),
                base.at("tokenizer_sha256").digestOrNull(),
                layout, rank, tasks, fallback, files,
            )
            if (checkDigest) checkDigest(bytes, stated, where)
            return manifest
        }

        private fun checkVersion(root: JsonReader) {
            val version = root.at("schema_version")
            if (version.integer(Long.MIN_VALUE, Long.MAX_VALUE) != 1L) {
                version.fail("is not 1, the version that this app reads; update the app")
            }
        }

        private fun readTask(task: JsonReader, heads: List<Long>): Task {
            val prompt = task.at("prompt_template")
            Prompts.check(prompt.text()) { prompt.fail(it) }
            val route = task.at("route")
            val entries = route.list(1)
            if (entries.size != heads.size) {
                route.fail("has ${entries.size} entries, there are ${heads.size} modules")
            }
            val language = task.at("language")
            return Task(
                task.at("name").text(least = 1, most = MAX_NAME),
                prompt.text(),
                task.at("stop").list(0).map { it.text(least = 1) },
                readGeneration(task.at("generation")),
                if (language.isNull) null else language.text(),
                LongArray(heads.size) { entries[it].integer(0, heads[it] - 1) },
            )
        }

        private fun readGeneration(generation: JsonReader): Generation {
            val values = Generation(
                generation.at("max_new_tokens").integer(1, Options.MAX_TOKENS).toInt(),
                generation.at("temperature").number(),
                generation.at("top_k").integer(0, Options.MAX_TOKENS).toInt(),
                generation.at("top_p").number(),
            )
            Options.check(values) { key, what -> generation.at(key).fail(what) }
            return values
        }

        private fun readFiles(json: JsonReader): List<PackageFile> {
            val seen = HashSet<String>()
            val files = json.list(1).map { file ->
                val name = file.at("name").text()
                if (!isPlain(name) || name == MANIFEST || !seen.add(name)) {
                    file.at("name").fail("must be a plain file name, each once")
                }
                PackageFile(name, file.at("bytes").integer(0, MAX_BYTES), file.at("sha256").digest())
            }
            if (ADAPTERS !in seen) json.fail("do not name $ADAPTERS")
            return files
        }

        /** Where heads lie in adapters.pte must be right, though here the whole file is checked. */
        private fun checkHeadBanks(root: JsonReader, heads: List<Long>, size: Long) {
            val banks = if (root.has("head_banks")) root.at("head_banks") else root
            val known = banks !== root && !banks.isNull
            val offsets = if (known) banks.at("offsets").list(1) else emptyList()
            val starts = offsets.map { it.integer(0, MAX_BYTES) }
            if (known) banks.at("shared_sha256").digest()
            val ends = starts.toLongArray()
            for ((module, count) in root.at("modules").list(1).zip(heads)) {
                if (!module.has("pieces")) continue
                for (piece in module.at("pieces").list(0, MAX_PIECES)) {
                    val (bank, bytes) = piece.list(2, 2).map { it.integer(0, Int.MAX_VALUE.toLong()) }
                    if (bank >= ends.size) piece.fail("its bank is not there")
                    ends[bank.toInt()] += count * bytes
                }
            }
            for ((end, next) in ends.toList().zip(starts.drop(1) + size)) {
                if (end > next) banks.fail("do not lie one after the other in the file")
            }
            for (task in root.at("tasks").list(1)) {
                val stated = if (task.has("head_sha256")) task.at("head_sha256").digestOrNull() else null
                if (known && stated == null) task.fail("head_sha256 is missing")
            }
        }

        /** Whether a file of a package may have this name. */
        internal fun isPlain(name: String): Boolean =
            name.length in 1..MAX_NAME && isLetter(name[0]) &&
                name.all { isLetter(it) || it in "._-" }

        private fun isLetter(c: Char) = c in 'a'..'z' || c in 'A'..'Z' || c in '0'..'9'

        /** The digest is of the bytes as they are, less the first 64 digits that state it. */
        private fun checkDigest(bytes: ByteArray, stated: String, where: String) {
            val start = digestStart(bytes)
            if (start < 0) {
                throw HydrapackException.Invalid(
                    "$where: is not as hydrapack writes it: no line of package_digest",
                )
            }
            val digest = Files.newSha256()
            digest.update(bytes, 0, start)
            digest.update(bytes, start + 64, bytes.size - start - 64)
            if (Files.hex(digest.digest()) != stated) {
                throw HydrapackException.Mismatch(
                    "$where: package_digest does not fit: the file was changed; copy it again",
                )
            }
        }

        /** A line of its own at the top level: no JSON string holds a bare newline. */
        private fun digestStart(bytes: ByteArray): Int {
            for (at in 0..bytes.size - DIGEST_KEY.size - 64) {
                if (!DIGEST_KEY.indices.all { bytes[at + it] == DIGEST_KEY[it] }) continue
                val start = at + DIGEST_KEY.size
                val digits = String(bytes, start, 64, Charsets.ISO_8859_1)
                if (JsonReader.isSha256(digits)) return start
            }
            return -1
        }
    }
}
