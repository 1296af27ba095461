package org.hydrapack

import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.io.ByteArrayOutputStream

/** Makes text of tokens, step by step; what comes out is joined. */
internal fun interface Decoder {
    fun decode(tokens: List<String>): List<String>
}

/** The decoders of a tokenizer.json that are known here; others are refused by name. */
internal object Decoders {
    private const val REPLACEMENT = "\uFFFD"

    fun read(json: JsonReader): Decoder {
        if (json.isNull) json.fail("null is not known here: ByteLevel and Sequence are")
        return when (val type = json.at("type").text()) {
            "Sequence" -> {
                val parts = json.at("decoders").list(0).map(::read)
                Decoder { tokens -> parts.fold(tokens) { made, part -> part.decode(made) } }
            }
            "ByteLevel" -> Decoder(::byteLevel)
            "ByteFallback" -> Decoder(::byteFallback)
            "Fuse" -> Decoder { listOf(it.joinToString("")) }
            "Replace" -> {
                val (from, to) = Normalizers.replacement(json)
                Decoder { tokens -> tokens.map { it.replace(from, to) } }
            }
            "Strip" -> strip(json)
            else -> json.fail(
                "'$type' is not known here: ByteLevel, ByteFallback, Fuse, Replace, Strip and " +
                    "Sequence are",
            )
        }
    }

    private fun byteLevel(tokens: List<String>): List<String> {
        val bytes = ByteArrayOutputStream()
        for (token in tokens) ByteLevel.decode(token).let { bytes.write(it, 0, it.size) }
        return listOf(Utf8.decode(bytes.toByteArray()))
    }

    private fun byteFallback(tokens: List<String>): List<String> {
        val made = ArrayList<String>()
        val run = ByteArrayOutputStream()
        fun flush() {
            if (run.size() == 0) return
            val text = try {
                Charsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(run.toByteArray())).toString()
            } catch (_: CharacterCodingException) {
                null
            }
            if (text != null) made.add(text) else repeat(run.size()) { made.add(REPLACEMENT) }
            run.reset()
        }
        for (token in tokens) {
            val byte = byteOf(token)
            if (byte != null) {
                run.write(byte)
            } else {
                flush()
                made.add(token)
            }
        }
        flush()
        return made
    }

    private fun byteOf(token: String): Int? =
        if (token.length == 6 && token.startsWith("<0x") && token.endsWith('>')) {
            token.substring(3, 5).toIntOrNull(16)?.takeIf { it >= 0 }
        } else {
            null
        }

    private fun strip(json: JsonReader): Decoder {
        val content = json.at("content").text(least = 1)
        val most = 1L shl 20
        val start = json.at("start").integer(0, most).toInt()
        val stop = json.at("stop").integer(0, most).toInt()
        return Decoder { tokens ->
            tokens.map { token ->
                var text = token
                repeat(start) { text = text.removePrefix(content) }
                repeat(stop) { text = text.removeSuffix(content) }
                text
            }
        }
    }
}
