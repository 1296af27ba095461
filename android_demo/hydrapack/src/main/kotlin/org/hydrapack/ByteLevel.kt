package org.hydrapack

/** GPT-2's alphabet: a printable character for each of the 256 bytes. */
internal object ByteLevel {
    private val characters = CharArray(256)
    private val bytes = IntArray(512) { -1 }

    init {
        // Bytes that print stand for themselves, the others follow from 256 on.
        var next = 256
        for (byte in 0..255) {
            val prints = byte in 33..126 || byte in 161..172 || byte in 174..255
            characters[byte] = (if (prints) byte else next++).toChar()
            bytes[characters[byte].code] = byte
        }
    }

    fun encode(text: String): String {
        val encoded = text.toByteArray(Charsets.UTF_8)
        return String(CharArray(encoded.size) { characters[encoded[it].toInt() and 255] })
    }

    /** The bytes of a token; those of its own UTF-8 where it is not of this alphabet. */
    fun decode(token: String): ByteArray {
        val decoded = ByteArray(token.length)
        for (i in token.indices) {
            val byte = if (token[i].code < bytes.size) bytes[token[i].code] else -1
            if (byte < 0) return token.toByteArray(Charsets.UTF_8)
            decoded[i] = byte.toByte()
        }
        return decoded
    }
}
