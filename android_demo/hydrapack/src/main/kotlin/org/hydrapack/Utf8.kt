package org.hydrapack

/**
 * UTF-8 with one U+FFFD for each longest start of a character that is cut short, as Unicode
 * recommends and Rust does. Java's own decoder puts another number of them.
 */
internal object Utf8 {
    private const val REPLACEMENT = 0xFFFD

    fun decode(bytes: ByteArray): String {
        val text = StringBuilder(bytes.size)
        var at = 0
        while (at < bytes.size) {
            val lead = bytes[at++].toInt() and 255
            if (lead < 0x80) {
                text.append(lead.toChar())
                continue
            }
            var missing = when (lead) {
                in 0xC2..0xDF -> 1
                in 0xE0..0xEF -> 2
                in 0xF0..0xF4 -> 3
                else -> 0
            }
            var code = if (missing > 0) lead and (0x3F shr missing) else REPLACEMENT
            // The second byte's range keeps out what is overlong, a surrogate or above U+10FFFF.
            var range = when (lead) {
                0xE0 -> 0xA0..0xBF
                0xED -> 0x80..0x9F
                0xF0 -> 0x90..0xBF
                0xF4 -> 0x80..0x8F
                else -> 0x80..0xBF
            }
            while (missing > 0 && at < bytes.size && (bytes[at].toInt() and 255) in range) {
                code = (code shl 6) or (bytes[at++].toInt() and 0x3F)
                range = 0x80..0xBF
                missing--
            }
            text.appendCodePoint(if (missing > 0) REPLACEMENT else code)
        }
        return text.toString()
    }
}
