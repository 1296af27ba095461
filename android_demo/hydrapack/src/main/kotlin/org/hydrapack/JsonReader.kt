package org.hydrapack

/** A value and the path of keys to it, which every complaint names. */
internal class JsonReader(private val value: Any?, private val key: String) {
    val isNull: Boolean get() = value == null

    val isText: Boolean get() = value is String

    fun fail(what: String): Nothing = throw HydrapackException.Invalid("$key: $what")

    fun has(name: String): Boolean = name in members()

    fun at(name: String): JsonReader {
        val members = members()
        // The file's own name is followed by a space, a key by a dot.
        val path = if (key.endsWith(":")) "$key $name" else "$key.$name"
        if (name !in members) throw HydrapackException.Invalid("$path: is missing")
        return JsonReader(members[name], path)
    }

    fun members(): Map<*, *> = value as? Map<*, *> ?: fail("is no object")

    fun list(least: Int, most: Int = MAX_ITEMS): List<JsonReader> {
        val items = value as? List<*>
        if (items == null || items.size < least || items.size > most) {
            fail("must be a list of $least to $most")
        }
        return items.mapIndexed { i, item -> JsonReader(item, "$key.$i") }
    }

    fun integer(least: Long, most: Long): Long {
        // 1.0, 1e3 and true are no integers.
        val number = value as? Long
        if (number == null || number < least || number > most) {
            fail("must be an integer from $least to $most")
        }
        return number
    }

    fun number(): Double = (value as? Number)?.toDouble() ?: fail("is no number")

    fun boolean(): Boolean = value as? Boolean ?: fail("is neither true nor false")

    fun text(least: Int = 0, most: Int = MAX_TEXT): String {
        val text = value as? String ?: fail("is no text")
        if (text.isEmpty() && least > 0) fail("is empty")
        // No character takes more than three bytes of UTF-8 a unit: most need not be counted.
        if (text.length > most / 3 && utf8Size(text) > most) fail("is longer than $most bytes")
        return text
    }

    fun digest(): String = text().also { if (!isSha256(it)) fail("is no SHA-256 in hex") }

    fun digestOrNull(): String? = if (isNull) null else digest()

    companion object {
        const val MAX_ITEMS = 65536
        const val MAX_TEXT = 1 shl 20

        fun isSha256(text: String): Boolean = isHex(text, 64)

        fun isHex(text: String, digits: Int): Boolean =
            text.length == digits && text.all { it in '0'..'9' || it in 'a'..'f' }

        private fun utf8Size(text: String): Int = text.toByteArray(Charsets.UTF_8).size
    }
}
