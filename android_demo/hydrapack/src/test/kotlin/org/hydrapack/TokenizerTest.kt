package org.hydrapack

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

class TokenizerTest {
    private val folders = Fixtures.folder("tokenizers").listFiles().orEmpty().sortedBy { it.name }

    private fun tokenizer(folder: File) = Tokenizer.read(File(folder, "tokenizer.json"))

    @Test
    fun everyLineGetsPythonsIds() {
        assertTrue("${folders.size}", folders.size >= 7)
        val starts = HashSet<Int>()
        for (folder in folders) {
            val tokenizer = tokenizer(folder)
            var tokens = 0
            var differ = 0
            val start = Fixtures.json(File(folder, "start.json"))["ids"].ints()
            assertEquals(folder.name, start, tokenizer.startIds.toList())
            starts.add(start.size)
            val rows = Fixtures.lines(File(folder, "encode.jsonl"))
            for (row in rows) {
                val text = row["text"] as String
                val ids = row["ids"].ints()
                val plain = if ("plain" in row) row["plain"].ints() else ids
                tokens += ids.size
                if (tokenizer.encode(text).toList() != ids) differ++
                if (tokenizer.encode(text, specialTokens = false).toList() != plain) differ++
            }
            println("${folder.name}: ${rows.size} lines, $tokens tokens, $differ differ")
            assertEquals(folder.name, 0, differ)
            assertTrue(rows.size >= 4000 && tokens > 5 * rows.size)
            assertTrue(rows.count { "plain" in it } > 20)
        }
        assertEquals(setOf(0, 1), starts)
    }

    @Test
    fun idsGetPythonsTextWholeAndInPieces() {
        for (folder in folders) {
            val tokenizer = tokenizer(folder)
            var pieces = 0
            var stops = 0
            for (row in Fixtures.lines(File(folder, "decode.jsonl"))) {
                val ids = row["ids"].ints()
                assertEquals(row["text"], tokenizer.decode(ids))
                val stream = TextStream(tokenizer, row["stop"].texts())
                if ("pieces" !in row) {
                    assertThrows(HydrapackException.Runtime::class.java) { ids.forEach(stream::push) }
                    continue
                }
                val given = ArrayList<String>()
                for (id in ids) {
                    given.add(stream.push(id))
                    if (stream.stopped) break
                }
                assertEquals("${folder.name} $ids", row["pieces"].texts(), given)
                assertEquals(row["stopped"], stream.stopped)
                assertEquals(row["rest"], stream.rest())
                pieces += given.count { it.isNotEmpty() }
                if (stream.stopped) stops++
            }
            assertTrue("${folder.name}: $pieces pieces, $stops stops", pieces > 1000 && stops > 30)
        }
    }

    @Test
    fun whatIsNotKnownIsRefusedByName() {
        val text = File(folders.first { it.name == "digits" }, "tokenizer.json").readText()
        fun refused(old: String, new: String, part: String) {
            assertTrue(old, old in text)
            Fixtures.assertKind("Invalid", part) {
                Tokenizer.parse(text.replaceFirst(old, new).toByteArray(), "t.json")
            }
        }
        refused("\"type\": \"BPE\"", "\"type\": \"WordPiece\"", "t.json: model.type: 'WordPiece'")
        refused("\"type\": \"Digits\"", "\"type\": \"Metaspace\"", "pre_tokenizer.pretokenizers.0: 'Metaspace'")
        refused("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFKC\"}", "normalizer: 'NFKC'")
        refused("\"decoder\": {\"type\": \"ByteLevel\"", "\"decoder\": {\"type\": \"CTC\"", "decoder: 'CTC'")
        refused("\"truncation\": null", "\"truncation\": {}", "truncation: must be null")
        refused("\"lstrip\": false", "\"lstrip\": true", "added_tokens.0.lstrip: true")
        refused("\"type\": \"TemplateProcessing\"", "\"type\": \"Other\"", "post_processor.processors.1: 'Other'")
        refused("\"dropout\": null", "\"dropout\": 0.1", "model.dropout")
        refused("\"merges\": [[", "\"merges\": [[\"\", ", "model.merges.0: must be a list of 2 to 2")
        refused("\"id\": 0", "\"id\": 7", "added_tokens.0.id")
        refused("{", "", "t.json: is not JSON")
        Fixtures.assertKind("NotFound", "tokenizer.json") { Tokenizer.read(File("none/tokenizer.json")) }
    }

    @Test
    fun aLongTextWithoutWordsIsNoTrouble() {
        // One word of 200,000 characters: merging must not take its square.
        val tokenizer = tokenizer(folders.first { it.name == "gemma" })
        val started = System.nanoTime()
        val ids = tokenizer.encode("the model swaps heads ".repeat(9000))
        assertTrue(ids.size in 9000..200_000)
        println("gemma: ${(System.nanoTime() - started) / 1_000_000} ms for 198,000 characters")
    }
}
