package org.hydrapack

import java.io.File
import org.hydrapack.desktop.DesktopLibrary
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Assert.assertThrows
import org.junit.Assume.assumeTrue

/** What tests/test_android.py has written for these tests. */
internal object Fixtures {
    fun folder(name: String): File {
        val root = System.getProperty("hydrapack.fixtures").orEmpty()
        assumeTrue("no fixtures: run pytest tests/test_android.py", root.isNotEmpty())
        val folder = File(root, name)
        assumeTrue("the fixtures have no $name", folder.exists())
        return folder
    }

    fun json(file: File): Map<*, *> = Json.parseObject(file.readBytes(), file.name)

    fun lines(file: File): List<Map<*, *>> =
        file.readLines().map { Json.parseObject(it.toByteArray(), file.name) }

    /** Points ExecuTorch's classes to the desktop's library. */
    fun loadNative() = DesktopLibrary.load(System.getProperty("hydrapack.native"))

    /** The kind of the error that [call] raises; its message must hold [part]. */
    fun kindOf(part: String, call: () -> Unit): String {
        val error = assertThrows(HydrapackException::class.java) { call() }
        val message = error.message.orEmpty()
        assertTrue("'$message' does not say '$part'", part in message && '\n' !in message)
        return error.kind
    }

    fun open(folder: File, options: OpenOptions = OpenOptions()): Session =
        Session.open(File(folder, "model.pte"), File(folder, "package"), options)

    /** Gives a copy of a model and its package to damage. */
    fun copy(folder: File, use: (File) -> Unit) {
        val copy = createTempDir(folder.parentFile)
        try {
            folder.copyRecursively(copy)
            use(copy)
        } finally {
            copy.deleteRecursively()
        }
    }

    /** Changes the manifest of [folder]'s package; its digest fits again. */
    fun reseal(folder: File, change: (String) -> String) {
        val file = File(folder, "package/manifest.json")
        val before = file.readText()
        val key = "\n  \"package_digest\": \""
        val text = change(before)
        check(text != before)
        val start = text.indexOf(key) + key.length
        val bare = text.removeRange(start, start + 64)
        file.writeText(bare.substring(0, start) + Files.sha256(bare.toByteArray()) + bare.substring(start))
    }

    /**
     * For each task and input Python's ids: with [steps] of greedy tokens with a token a call, with
     * [answers] of whole answers, whose prompt is one call, and their texts.
     */
    fun assertAsInPython(session: Session, folder: File, steps: Boolean = true, answers: Boolean = true) {
        val expected = json(File(folder, "session.json"))
        val count = (expected["count"] as Long).toInt()
        val rows = (expected["rows"] as List<*>).map { it as Map<*, *> }
        // The base is not left out.
        assertEquals(session.tasks.map { it.name }.toSet() + null, rows.map { it["task"] }.toSet())
        var tokens = 0
        val outputs = HashSet<List<Int>>()
        var saved = 0
        for (row in rows) {
            val task = row["task"] as String?
            val text = row["text"] as String
            session.use(task)
            val prompt = session.encode(text)
            assertEquals(row["prompt"].ints(), prompt.toList())
            if (steps) {
                val greedy = greedy(session, prompt, count)
                assertEquals("$task: $text", row["greedy"].ints(), greedy)
                tokens += greedy.size
                outputs.add(greedy)
            }
            if (!answers) continue
            val answer = session.generate(text, GenerateOptions(count, temperature = 0.0))
            assertEquals("$task: $text", row["ids"].ints(), answer.ids)
            tokens += answer.ids.size
            outputs.add(answer.ids)
            assertEquals(row["answer"], answer.text)
            assertEquals(row["finish"], answer.finish.name.lowercase())
            val options = GenerateOptions(count, temperature = 0.8, seed = 7, topK = 50, topP = 0.95)
            val drawn = session.generate(text, options)
            assertEquals(row["drawn"].ints(), drawn.ids)
            assertEquals(row["drawn_text"], drawn.text)
            val longer = GenerateOptions(2 * count, temperature = 0.0)
            val plain = session.generate(text, longer)
            val guessed = session.generate(text, longer.copy(lookup = true))
            assertEquals(plain.ids, guessed.ids)
            assertEquals(row["looked_up"], guessed.text)
            assertEquals((row["lookup_calls"] as Long).toInt(), session.stats.decodeCalls)
            saved += session.stats.decodeTokens - session.stats.decodeCalls
        }
        println("${folder.name}: ${rows.size} prompts, $tokens tokens as in Python")
        assertTrue("$tokens", tokens >= 5 * rows.size && outputs.size > 2)
        assertTrue("$saved calls saved", !answers || saved > 0)
    }

    /** Every head, and the logits after [text] under it, are the same to the bit whenever it is used. */
    fun assertSwapsAreExact(session: Session, text: String) {
        val names = session.tasks.map { it.name }
        val heads = names.associateWith { name -> session.also { it.use(name) }.head() }
        // Two tasks may share their heads, all may not.
        assertTrue(heads.values.map { it.toList() }.toSet().size > 1)
        session.use(null)
        val prompt = session.encode(text)
        val bare = session.forward(prompt)
        val logits = names.associateWith { name -> session.also { it.use(name) }.forward(prompt) }
        for (name in names + names.reversed()) {
            session.use(name)
            assertArrayEquals(heads.getValue(name), session.head(), 0f)
            assertArrayEquals(logits.getValue(name), session.forward(prompt), 0f)
            session.use(null)
            assertTrue(session.head().all { it == 0f })
            assertArrayEquals(bare, session.forward(prompt), 0f)
            assertFalse(bare.contentEquals(logits.getValue(name)))
        }
    }

    /** The first of the largest logits, end tokens taken as any other; a prompt token a call. */
    fun greedy(session: Session, prompt: IntArray, count: Int): List<Int> {
        session.reset()
        val made = ArrayList<Int>()
        var logits = FloatArray(0)
        for (id in prompt) logits = session.forward(intArrayOf(id))
        while (true) {
            made.add(logits.indices.maxByOrNull { logits[it] } ?: 0)
            if (made.size == count) return made
            logits = session.forward(intArrayOf(made.last()))
        }
    }

    private fun createTempDir(parent: File): File =
        java.nio.file.Files.createTempDirectory(parent.toPath(), "copy").toFile()

    fun assertKind(kind: String, part: String, call: () -> Unit) = assertEquals(kind, kindOf(part, call))
}

internal fun Any?.ints(): List<Int> = (this as List<*>).map { (it as Long).toInt() }

internal fun Any?.texts(): List<String> = (this as List<*>).map { it as String }
