package org.hydrapack

import java.util.regex.Pattern
import java.util.regex.PatternSyntaxException

/** Cuts a text into the words that are merged each on its own. */
internal fun interface PreTokenizer {
    fun split(text: String): List<String>
}

/** The pre-tokenizers of a tokenizer.json that are known here; others are refused by name. */
internal object PreTokenizers {
    private const val GPT2 =
        "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

    fun read(json: JsonReader): PreTokenizer {
        if (json.isNull) return PreTokenizer { listOf(it) }
        return when (val type = json.at("type").text()) {
            "Sequence" -> sequence(json.at("pretokenizers").list(0).map(::read))
            "ByteLevel" -> byteLevel(json)
            "Digits" -> digits(json.at("individual_digits").boolean())
            "Split" -> split(json)
            else -> json.fail("'$type' is not known here: ByteLevel, Digits, Split and Sequence are")
        }
    }

    private fun sequence(parts: List<PreTokenizer>) = PreTokenizer { text ->
        parts.fold(listOf(text)) { pieces, part -> pieces.flatMap(part::split) }
    }

    private fun byteLevel(json: JsonReader): PreTokenizer {
        val prefix = json.at("add_prefix_space").boolean()
        // Files from before the key was there mean true.
        val words = !json.has("use_regex") || json.at("use_regex").boolean()
        val pattern = if (words) compile(GPT2, json) else null
        return PreTokenizer { text ->
            val spaced = if (prefix && !text.startsWith(' ')) " $text" else text
            val pieces = if (pattern == null) listOf(spaced) else isolated(pattern, spaced)
            pieces.map(ByteLevel::encode)
        }
    }

    private fun digits(individual: Boolean) = PreTokenizer { text ->
        val pieces = ArrayList<String>()
        var start = 0
        var at = 0
        var wasNumber = false
        while (at < text.length) {
            val code = text.codePointAt(at)
            val isNumber = isNumber(code)
            if (at > start && (isNumber != wasNumber || (isNumber && individual))) {
                pieces.add(text.substring(start, at))
                start = at
            }
            wasNumber = isNumber
            at += Character.charCount(code)
        }
        if (at > start) pieces.add(text.substring(start))
        pieces
    }

    private fun isNumber(code: Int): Boolean = when (Character.getType(code).toByte()) {
        Character.DECIMAL_DIGIT_NUMBER, Character.LETTER_NUMBER, Character.OTHER_NUMBER -> true
        else -> false
    }

    private fun split(json: JsonReader): PreTokenizer {
        if (json.at("invert").boolean()) json.at("invert").fail("true is not known here")
        val given = json.at("pattern")
        val pattern = if (given.has("String")) {
            Pattern.compile(Pattern.quote(given.at("String").text(least = 1)))
        } else {
            compile(given.at("Regex").text(least = 1), given)
        }
        val behavior = json.at("behavior")
        return when (val name = behavior.text()) {
            "Isolated" -> PreTokenizer { isolated(pattern, it) }
            "MergedWithPrevious" -> PreTokenizer { mergedWithPrevious(pattern, it) }
            else -> behavior.fail("'$name' is not known here: Isolated and MergedWithPrevious are")
        }
    }

    /** The matches and what lies between them. */
    private fun isolated(pattern: Pattern, text: String): List<String> {
        val pieces = ArrayList<String>()
        val matcher = pattern.matcher(text)
        var start = 0
        while (matcher.find()) {
            if (matcher.start() > start) pieces.add(text.substring(start, matcher.start()))
            if (matcher.end() > matcher.start()) pieces.add(matcher.group())
            start = matcher.end()
        }
        if (start < text.length) pieces.add(text.substring(start))
        return pieces
    }

    private fun mergedWithPrevious(pattern: Pattern, text: String): List<String> {
        val pieces = ArrayList<String>()
        val matcher = pattern.matcher(text)
        var start = 0
        while (matcher.find()) {
            if (matcher.end() > start) pieces.add(text.substring(start, matcher.end()))
            start = matcher.end()
        }
        if (start < text.length) pieces.add(text.substring(start))
        return pieces
    }

    private fun compile(pattern: String, json: JsonReader): Pattern = try {
        // By the flag, not within the pattern: Android's engine does not know the letter u.
        Pattern.compile(translate(pattern, json), Pattern.UNICODE_CASE)
    } catch (error: PatternSyntaxException) {
        json.fail("the pattern cannot be used here: ${error.description}")
    }

    /**
     * From the syntax that tokenizers has to Java's. White space is written out: to a JDK \s is
     * ASCII's, to Android it is Unicode's, and there is no flag that both know.
     */
    private fun translate(pattern: String, json: JsonReader): String {
        val space = "\\t\\n\\x0B\\f\\r\\x85\\p{Z}"
        val made = StringBuilder()
        var inClass = false
        var at = 0
        while (at < pattern.length) {
            val c = pattern[at++]
            if (c != '\\') {
                if (c == '[' && inClass) json.fail("a class within a class is not known here")
                if (c == '[') inClass = true
                if (c == ']') inClass = false
                made.append(c)
                continue
            }
            if (at == pattern.length) json.fail("the pattern ends with a backslash")
            val letter = pattern[at++]
            when {
                letter == 's' -> made.append(if (inClass) space else "[$space]")
                letter == 'S' && !inClass -> made.append("[^$space]")
                letter in "pPrnt" || !letter.isLetterOrDigit() -> made.append(c).append(letter)
                else -> json.fail("\\$letter in a pattern is not known here")
            }
        }
        return made.toString()
    }
}
