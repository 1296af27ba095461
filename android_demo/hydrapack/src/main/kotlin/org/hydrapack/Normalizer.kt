package org.hydrapack

import java.text.Normalizer as Unicode

/** Changes a text before it is cut into words. */
internal fun interface Normalizer {
    fun normalize(text: String): String
}

/** The normalizers of a tokenizer.json that are known here; others are refused by name. */
internal object Normalizers {
    fun read(json: JsonReader): Normalizer {
        if (json.isNull) return Normalizer { it }
        return when (val type = json.at("type").text()) {
            "Sequence" -> {
                val parts = json.at("normalizers").list(0).map(::read)
                Normalizer { text -> parts.fold(text) { changed, part -> part.normalize(changed) } }
            }
            "NFC" -> Normalizer { Unicode.normalize(it, Unicode.Form.NFC) }
            "Prepend" -> {
                val prefix = json.at("prepend").text()
                Normalizer { if (it.isEmpty()) it else prefix + it }
            }
            "Replace" -> {
                val (from, to) = replacement(json)
                Normalizer { it.replace(from, to) }
            }
            else -> json.fail("'$type' is not known here: NFC, Prepend, Replace and Sequence are")
        }
    }

    /** The two texts of a Replace, of a normalizer or a decoder. */
    fun replacement(json: JsonReader): Pair<String, String> {
        val pattern = json.at("pattern")
        if (!pattern.has("String")) pattern.fail("only a String is known here")
        return Pair(pattern.at("String").text(least = 1), json.at("content").text())
    }
}
