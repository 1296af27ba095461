package org.hydrapack

import java.nio.ByteBuffer
import java.nio.charset.CharacterCodingException
import java.nio.charset.CodingErrorAction

/**
 * JSON as RFC 8259 has it and no wider: strict UTF-8 with no byte order mark, no number beyond a
 * double, no key twice, no lone surrogate, no nesting deeper than 64.
 *
 * Values are Map, List, String, Boolean, Long (an integer of 64 bits), Double (any other number)
 * and null.
 */
object Json {
    private const val MAX_DEPTH = 64

    /** The object in [bytes]; [where] names the file in errors. */
    fun parseObject(bytes: ByteArray, where: String): Map<*, *> {
        if (bytes.size > Files.MAX_JSON_BYTES) throw invalid(where, "is larger than 64 MiB")
        val text = try {
            Charsets.UTF_8.newDecoder()
                .onMalformedInput(CodingErrorAction.REPORT)
                .onUnmappableCharacter(CodingErrorAction.REPORT)
                .decode(ByteBuffer.wrap(bytes))
                .toString()
        } catch (_: CharacterCodingException) {
            throw invalid(where, "is not UTF-8")
        }
        if (text.startsWith('\uFEFF')) {
            throw invalid(where, "begins with a byte order mark: save it without")
        }
        return Parser(text, where).whole() as? Map<*, *>
            ?: throw invalid(where, "the file is no JSON object")
    }

    private fun invalid(where: String, what: String) = HydrapackException.Invalid("$where: $what")

    private class Parser(private val text: String, private val where: String) {
        private var at = 0
        private var depth = 0

        fun whole(): Any? {
            val value = value()
            skipSpace()
            if (at < text.length) fail("there is text after the object")
            return value
        }

        private fun fail(what: String): Nothing =
            throw invalid(where, "is not JSON: $what (at character $at)")

        private fun skipSpace() {
            while (at < text.length && text[at] in " \t\n\r") at++
        }

        private fun peek(): Char = if (at < text.length) text[at] else fail("it ends early")

        private fun expect(wanted: Char) {
            if (peek() != wanted) fail("'$wanted' is missing")
            at++
        }

        private fun value(): Any? {
            skipSpace()
            return when (peek()) {
                '{' -> nested(::members)
                '[' -> nested(::items)
                '"' -> string()
                't' -> word("true", true)
                'f' -> word("false", false)
                'n' -> word("null", null)
                else -> number()
            }
        }

        private fun word(word: String, value: Any?): Any? {
            if (!text.startsWith(word, at)) fail("an unknown word")
            at += word.length
            return value
        }

        private fun <T> nested(read: () -> T): T {
            if (++depth > MAX_DEPTH) fail("nested deeper than $MAX_DEPTH")
            at++
            return read().also { depth-- }
        }

        private fun members(): Map<String, Any?> {
            val found = LinkedHashMap<String, Any?>()
            skipSpace()
            if (peek() == '}') {
                at++
                return found
            }
            while (true) {
                skipSpace()
                val key = string()
                if (key in found) fail("the key \"$key\" stands twice")
                skipSpace()
                expect(':')
                found[key] = value()
                skipSpace()
                if (peek() == '}') break
                expect(',')
            }
            at++
            return found
        }

        private fun items(): List<Any?> {
            val found = ArrayList<Any?>()
            skipSpace()
            if (peek() == ']') {
                at++
                return found
            }
            while (true) {
                found.add(value())
                skipSpace()
                if (peek() == ']') break
                expect(',')
            }
            at++
            return found
        }

        private fun string(): String {
            expect('"')
            val start = at
            // Most texts have no escape: they are one piece of the whole.
            while (peek() != '"' && text[at] != '\\') character()
            if (text[at] == '"') return text.substring(start, at++)
            val made = StringBuilder(text.substring(start, at))
            while (peek() != '"') made.append(if (text[at] == '\\') escape() else character())
            at++
            for (i in made.indices) {
                val pairs = when {
                    made[i].isHighSurrogate() -> i + 1 < made.length && made[i + 1].isLowSurrogate()
                    made[i].isLowSurrogate() -> i > 0 && made[i - 1].isHighSurrogate()
                    else -> true
                }
                if (!pairs) fail("a lone surrogate")
            }
            return made.toString()
        }

        private fun character(): Char {
            if (text[at] < ' ') fail("a control character in a text")
            return text[at++]
        }

        private fun escape(): Char {
            at++
            val letter = peek()
            at++
            return when (letter) {
                '"', '\\', '/' -> letter
                'b' -> '\b'
                'f' -> '\u000c'
                'n' -> '\n'
                'r' -> '\r'
                't' -> '\t'
                'u' -> {
                    var code = 0
                    repeat(4) {
                        val digit = peek()
                        val value = if (digit < '\u0080') Character.digit(digit, 16) else -1
                        if (value < 0) fail("\\u needs four digits")
                        code = 16 * code + value
                        at++
                    }
                    code.toChar()
                }
                else -> fail("an unknown escape")
            }
        }

        private fun digits() {
            if (at >= text.length || text[at] !in '0'..'9') fail("an unknown value")
            while (at < text.length && text[at] in '0'..'9') at++
        }

        private fun number(): Any {
            val start = at
            if (peek() == '-') at++
            if (at < text.length && text[at] == '0') at++ else digits()
            val whole = at >= text.length || text[at] !in ".eE"
            if (at < text.length && text[at] == '.') {
                at++
                digits()
            }
            if (at < text.length && text[at] in "eE") {
                at++
                if (at < text.length && text[at] in "+-") at++
                digits()
            }
            val written = text.substring(start, at)
            if (whole) written.toLongOrNull()?.let { return it }
            val value = written.toDouble()
            if (value.isInfinite()) fail("the number ${written.take(20)} is too large")
            return value
        }
    }
}
