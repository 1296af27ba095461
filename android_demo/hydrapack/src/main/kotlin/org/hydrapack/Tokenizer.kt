package org.hydrapack

import java.io.File

/**
 * A Hugging Face tokenizer.json of the BPE kind, byte-level (GPT-2, Llama 3, Qwen) or in the manner
 * of SentencePiece (Llama 2, Gemma); what else a file asks for is refused by name.
 */
class Tokenizer private constructor(
    private val vocabulary: Map<String, Int>,
    private val tokens: Array<String?>,
    private val special: Set<Int>,
    /** Found in the text as it is given, and in the text once normalized. */
    private val givenTokens: AddedTokens,
    private val normalizedTokens: AddedTokens,
    private val normalizer: Normalizer,
    private val preTokenizer: PreTokenizer,
    private val model: Bpe,
    private val decoder: Decoder,
    /** What stands before any text, where no template says otherwise: BOS, or nothing. */
    val startIds: IntArray,
) {
    /** The id of a token by its exact text, or null. */
    fun id(token: String): Int? = vocabulary[token]

    /** Ids of [text]; with [specialTokens] false a special token in it is text like any other. */
    fun encode(text: String, specialTokens: Boolean = true): IntArray {
        val ids = ArrayList<Int>()
        givenTokens.split(text, specialTokens, ids) { piece ->
            normalizedTokens.split(normalizer.normalize(piece), specialTokens, ids) { plain ->
                for (word in preTokenizer.split(plain)) model.encode(word, ids)
            }
        }
        return ids.toIntArray()
    }

    /** The text of [ids] without the special tokens. */
    fun decode(ids: List<Int>): String {
        val shown = ids.filter { it !in special }.mapNotNull { tokens.getOrNull(it) }
        return decoder.decode(shown).joinToString("")
    }

    companion object {
        /** The tokenizer in [file]; with [sha256] it must be the file of that digest. */
        fun read(file: File, sha256: String? = null): Tokenizer {
            val hint = "; give the tokenizer.json of the base model"
            val bytes = Files.readJsonBytes(file, hint)
            if (sha256 != null && Files.sha256(bytes) != sha256) {
                throw HydrapackException.Mismatch(
                    "$file: is not the tokenizer that the model was exported with (SHA-256); take the one " +
                        "that export-base wrote beside it",
                )
            }
            return parse(bytes, file.path)
        }

        /** The tokenizer in [bytes]; [where] names the file in errors. */
        fun parse(bytes: ByteArray, where: String): Tokenizer {
            val root = JsonReader(Json.parseObject(bytes, where), "$where:")
            for (key in listOf("truncation", "padding")) {
                if (root.has(key) && !root.at(key).isNull) root.at(key).fail("must be null here")
            }
            val json = root.at("model")
            val type = json.at("type").text()
            if (type != "BPE") json.at("type").fail("'$type' is not known here: BPE is")
            val own = readVocabulary(json.at("vocab"))
            val added = root.at("added_tokens").list(0).map { readAdded(it, own) }
            val normalizer = Normalizers.read(root.at("normalizer"))
            val vocabulary = HashMap<String, Int>(own)
            added.forEach { vocabulary[it.content] = it.id }
            val tokens = arrayOfNulls<String>(1 + (vocabulary.values.maxOrNull() ?: -1))
            vocabulary.forEach { (token, id) -> tokens[id] = token }
            return Tokenizer(
                vocabulary,
                tokens,
                added.filter { it.special }.mapTo(HashSet()) { it.id },
                AddedTokens(added.filter { !it.normalized }),
                AddedTokens(
                    added.filter { it.normalized }
                        .map { it.copy(content = normalizer.normalize(it.content)) },
                ),
                normalizer,
                PreTokenizers.read(root.at("pre_tokenizer")),
                readModel(json, own),
                Decoders.read(root.at("decoder")),
                readStart(root.at("post_processor")).toIntArray(),
            )
        }

        /** What a post-processor puts before a text; what it puts behind ends no prompt. */
        private fun readStart(json: JsonReader): List<Int> {
            if (json.isNull) return emptyList()
            return when (val type = json.at("type").text()) {
                "ByteLevel" -> emptyList()
                "TemplateProcessing" -> json.at("single").list(0)
                    .takeWhile { it.has("SpecialToken") }
                    .flatMap { piece ->
                        val name = piece.at("SpecialToken").at("id").text()
                        json.at("special_tokens").at(name).at("ids").list(0).map(::readId)
                    }
                // The later ones put theirs around what is there.
                "Sequence" -> json.at("processors").list(0)
                    .fold(emptyList()) { start, part -> readStart(part) + start }
                "BertProcessing", "RobertaProcessing" -> listOf(readId(json.at("cls").list(2, 2)[1]))
                else -> json.fail("'$type' is not known here: TemplateProcessing and ByteLevel are")
            }
        }

        private fun readVocabulary(json: JsonReader): Map<String, Int> {
            val ids = HashMap<String, Int>()
            for ((token, id) in json.members()) {
                ids[token as String] = readId(JsonReader(id, "a token of the vocabulary"))
            }
            return ids
        }

        private fun readId(json: JsonReader): Int = json.integer(0, MAX_ID).toInt()

        private fun readAdded(json: JsonReader, own: Map<String, Int>): AddedToken {
            for (key in listOf("single_word", "lstrip", "rstrip")) {
                if (json.at(key).boolean()) json.at(key).fail("true is not known here")
            }
            val content = json.at("content").text(least = 1)
            val id = readId(json.at("id"))
            if ((own[content] ?: id) != id) {
                json.at("id").fail("the vocabulary has '$content' at ${own[content]}")
            }
            return AddedToken(
                content, id, json.at("special").boolean(), json.at("normalized").boolean(),
            )
        }

        private fun readModel(json: JsonReader, own: Map<String, Int>): Bpe {
            fun flag(key: String) = json.has(key) && json.at(key).boolean()
            for (key in listOf("continuing_subword_prefix", "end_of_word_suffix")) {
                if (json.has(key) && !json.at(key).isNull && json.at(key).text().isNotEmpty()) {
                    json.at(key).fail("is not known here")
                }
            }
            if (json.has("dropout") && !json.at("dropout").isNull && json.at("dropout").number() != 0.0) {
                json.at("dropout").fail("is not known here: ids would be random")
            }
            val unknown = if (json.has("unk_token") && !json.at("unk_token").isNull) {
                val token = json.at("unk_token").text()
                own[token] ?: json.at("unk_token").fail("'$token' is not in the vocabulary")
            } else {
                null
            }
            return Bpe(
                own, readMerges(json.at("merges"), own), unknown,
                flag("fuse_unk"), flag("byte_fallback"), flag("ignore_merges"),
            )
        }

        private fun readMerges(json: JsonReader, own: Map<String, Int>): Merges {
            val merges = json.list(0, MAX_ID.toInt())
            val pairs = LongArray(merges.size)
            val made = IntArray(merges.size)
            for ((rank, merge) in merges.withIndex()) {
                val (left, right) = merge.pair()
                fun id(token: String) = own[token] ?: merge.fail("'$token' is not in the vocabulary")
                pairs[rank] = Merges.pair(id(left), id(right))
                made[rank] = id(left + right)
            }
            return Merges(pairs, made)
        }

        /** Of a list of two, or of the older form "left right". */
        private fun JsonReader.pair(): Pair<String, String> {
            val parts = if (isText) text().split(' ') else list(2, 2).map { it.text() }
            if (parts.size != 2) fail("is no pair of tokens")
            return Pair(parts[0], parts[1])
        }

        private const val MAX_ID = 1L shl 24
    }
}

internal data class AddedToken(
    val content: String,
    val id: Int,
    val special: Boolean,
    val normalized: Boolean,
)

/** Tokens that are looked for before anything else; the leftmost first, of those the longest. */
internal class AddedTokens(tokens: List<AddedToken>) {
    private val byFirst: Map<Char, List<AddedToken>> =
        tokens.groupBy { it.content[0] }.mapValues { (_, same) -> same.sortedByDescending { it.content.length } }

    /** Adds the ids of tokens found to [ids], and gives [plain] what lies between. */
    inline fun split(
        text: String,
        specialTokens: Boolean,
        ids: MutableList<Int>,
        plain: (String) -> Unit,
    ) {
        var start = 0
        var at = 0
        while (at < text.length) {
            val token = match(text, at)
            if (token == null) {
                at++
                continue
            }
            // What is passed over counts as found: no shorter token within it is looked for.
            at += token.content.length
            if (token.special && !specialTokens) continue
            if (at - token.content.length > start) plain(text.substring(start, at - token.content.length))
            ids.add(token.id)
            start = at
        }
        if (start < text.length) plain(text.substring(start))
    }

    fun match(text: String, at: Int): AddedToken? =
        byFirst[text[at]]?.firstOrNull { text.startsWith(it.content, at) }
}
