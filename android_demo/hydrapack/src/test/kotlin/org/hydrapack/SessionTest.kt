package org.hydrapack

import java.io.File
import java.util.concurrent.CountDownLatch
import java.util.concurrent.atomic.AtomicReference
import org.junit.After
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test

/** The session on real programs: a tiny model of random weights, three tasks on two heads. */
class SessionTest {
    private val folder = Fixtures.folder("tiny")
    private lateinit var session: Session

    @Before
    fun open() {
        Fixtures.loadNative()
        session = Fixtures.open(folder)
    }

    @After
    fun close() = session.close()

    @Test
    fun allIsAsInPython() = Fixtures.assertAsInPython(session, folder)

    @Test
    fun aSwapIsExact() = Fixtures.assertSwapsAreExact(session, "hello")

    @Test
    fun anAnswerStops() {
        session.use("one")
        val options = GenerateOptions(maxNewTokens = 20, temperature = 2.0, seed = 3)
        val pieces = ArrayList<String>()
        val whole = session.generate("hi", options) { pieces.add(it) }
        assertEquals(whole.text, pieces.joinToString(""))
        assertTrue(whole.text, whole.ids.size > 5 && pieces.size > 2)
        val cut = session.generate("hi", options) { false }
        assertEquals(Finish.STOPPED, cut.finish)
        assertTrue(cut.ids.size < whole.ids.size && whole.text.startsWith(cut.text))
        val stopped = session.generate("hi", options) {
            session.stop()
            true
        }
        assertEquals(cut.ids, stopped.ids)
        assertEquals(Finish.STOPPED, stopped.finish)
        // A stop that comes when nothing runs stops nothing later.
        session.stop()
        assertEquals(whole.ids, session.generate("hi", options).ids)
    }

    @Test
    fun aStopStringEndsAnAnswer() {
        session.use("one")
        val options = GenerateOptions(maxNewTokens = 30, temperature = 2.0, seed = 3)
        val whole = session.generate("hi", options).text
        val stop = whole.substring(whole.length / 2, whole.length / 2 + 2)
        val cut = session.generate("hi", options.copy(stop = listOf(stop)))
        assertEquals(Finish.STOP, cut.finish)
        assertEquals(whole.substringBefore(stop), cut.text)
    }

    @Test
    fun oneThreadAtATime() {
        session.use("one")
        val kinds = ArrayList<String>()
        session.generate("hi", GenerateOptions(maxNewTokens = 5, temperature = 2.0)) {
            kinds.add(Fixtures.kindOf("in use") { session.use(null) })
            val other = AtomicReference("")
            Thread { other.set(Fixtures.kindOf("in use") { session.reset() }) }.apply { start() }.join()
            kinds.add(other.get())
            true
        }
        assertTrue(kinds.size >= 2 && kinds.all { it == "Busy" })
        assertEquals("one", session.task?.name)
    }

    @Test
    fun anotherThreadStopsAnAnswer() {
        session.use("one")
        val begun = CountDownLatch(1)
        val stopped = CountDownLatch(1)
        Thread {
            begun.await()
            session.stop()
            stopped.countDown()
        }.start()
        val answer = session.generate("hi", GenerateOptions(maxNewTokens = 80, temperature = 2.0)) {
            begun.countDown()
            stopped.await()
            true
        }
        assertEquals(Finish.STOPPED, answer.finish)
    }

    @Test
    fun theContextIsAnEnd() {
        session.use("one")
        val context = session.maxContext
        Fixtures.assertKind("ContextFull", "do not fit: 0 of $context are taken") {
            session.generate("x".repeat(context))
        }
        // Ends are not to come before: the model's own end token is unlikely at this heat.
        val full = (0L..20).map { seed ->
            session.generate(
                "x".repeat(context - 40),
                GenerateOptions(maxNewTokens = 1 shl 20, temperature = 100.0, seed = seed),
            )
        }.first { it.finish == Finish.CONTEXT }
        // The template adds two tokens; the last token made needs no place.
        assertEquals(40 - 2 + 1, full.ids.size)
        session.reset()
        repeat(context) { session.forward(intArrayOf(7)) }
        Fixtures.assertKind("ContextFull", "1 tokens do not fit: $context of $context") {
            session.forward(intArrayOf(7))
        }
        assertEquals(context, session.position)
        // One more token than the program takes in a call.
        session.reset()
        assertEquals(300, session.forward(IntArray(context) { 7 }).size)
    }

    @Test
    fun whatIsOutOfRangeIsRefused() {
        session.use("one")
        val bad = mapOf(
            "max_new_tokens" to GenerateOptions(maxNewTokens = 0),
            "temperature" to GenerateOptions(temperature = 101.0),
            "temperature: " to GenerateOptions(temperature = Double.NaN),
            "top_k" to GenerateOptions(topK = -1),
            "top_p" to GenerateOptions(topP = 0.0),
            "stop" to GenerateOptions(stop = listOf("")),
            "prompt_template" to GenerateOptions(promptTemplate = "no hole"),
        )
        for ((part, options) in bad) {
            Fixtures.assertKind("Invalid", part) { session.generate("hi", options) }
        }
        Fixtures.assertKind("Invalid", "surrogate") { session.generate("\ud800") }
        Fixtures.assertKind("Invalid", "vocabulary of 300") { session.forward(intArrayOf(300)) }
        session.use(null)
        Fixtures.assertKind("Invalid", "prompt is empty") { session.generate("") }
    }

    /** A base that takes adapters and one that takes none, whose tokenizer has BOS. */
    @Test
    fun theBareBaseModelNeedsNoPackage() {
        Session.open(File(folder, "model.pte")).use { bare ->
            session.use(null)
            assertEquals(session.generate("hello").ids, bare.generate("hello").ids)
            assertEquals(emptyList<Task>(), bare.tasks)
            assertEquals("tiny", bare.baseModel)
            Fixtures.assertKind("NotFound", "'one': the session has no package") { bare.use("one") }
            assertNull(bare.task)
        }
        Fixtures.assertKind("Invalid", "publicKey: is of a package") {
            Session.open(File(folder, "model.pte"), options = OpenOptions(publicKey = "0".repeat(64)))
        }
        val own = Fixtures.folder("bare")
        Session.open(File(own, "model.pte")).use { bare ->
            Fixtures.assertAsInPython(bare, own)
            assertEquals(1, bare.encode("hello")[0])
            val plain = GenerateOptions(promptTemplate = "{input}")
            assertFalse(bare.generate("hello", plain).ids == bare.generate("hello").ids)
            // BOS alone is a beginning.
            assertEquals(listOf(1), bare.encode("").toList())
        }
    }

    @Test
    fun anUnknownTaskLeavesTheBareModel() {
        session.use("one")
        Fixtures.assertKind("NotFound", "unknown task 'nine'; the package has: one, two, three") {
            session.use("nine")
        }
        assertNull(session.task)
        assertTrue(session.head().all { it == 0f })
        Fixtures.copy(folder) { copy ->
            Fixtures.reseal(copy) { it.replace("\"fallback\": \"error\"", "\"fallback\": \"two\"") }
            Fixtures.open(copy).use {
                it.use("nine")
                assertEquals("two", it.task?.name)
                val head = it.head()
                it.use("two")
                assertArrayEquals(head, it.head(), 0f)
            }
        }
        Fixtures.copy(folder) { copy ->
            Fixtures.reseal(copy) { it.replace("\"fallback\": \"error\"", "\"fallback\": \"base\"") }
            Fixtures.open(copy).use {
                it.use("one")
                it.use("nine")
                assertNull(it.task)
                assertTrue(it.head().all { value -> value == 0f })
            }
        }
    }

    @Test
    fun filesThatDoNotFitAreRefused() {
        fun refused(kind: String, part: String, digests: Boolean = true, damage: (File) -> Unit) {
            Fixtures.copy(folder) { copy ->
                damage(copy)
                Fixtures.assertKind(kind, part) {
                    Fixtures.open(copy, OpenOptions(checkDigests = digests)).close()
                }
            }
        }
        fun flipped(copy: File, name: String) {
            val file = File(copy, name)
            val bytes = file.readBytes()
            bytes[bytes.size - 1] = (bytes.last().toInt() xor 1).toByte()
            file.writeBytes(bytes)
        }
        for (name in listOf("model.pte", "package/adapters.pte", "tokenizer.json")) {
            refused("Mismatch", File(name).name) { flipped(it, name) }
            refused("NotFound", File(name).name) { File(it, name).delete() }
        }
        for (name in listOf("model.pte", "package/adapters.pte")) {
            for (digests in listOf(true, false)) {
                refused("Mismatch", "bytes, not the", digests) { File(it, name).appendText("x") }
                refused("Mismatch", "bytes, not the", digests) { copy ->
                    val file = File(copy, name)
                    file.writeBytes(file.readBytes().copyOf(file.length().toInt() / 2))
                }
            }
            refused("Io", "is no file") { File(it, name).apply { delete() }.mkdir() }
        }
        refused("NotFound", "export-base writes it") { File(it, "model.pte.json").delete() }
        refused("Invalid", "model.pte.json") { File(it, "model.pte.json").writeText("{") }
        refused("NotFound", "is it a package?") { File(it, "package/manifest.json").delete() }
        refused("Mismatch", "package_digest") { File(it, "package/manifest.json").appendText(" ") }
        refused("Invalid", "not an ExecuTorch program", digests = false) {
            val model = File(it, "model.pte")
            model.writeBytes(ByteArray(model.length().toInt()))
        }
        fun resealed(kind: String, part: String, old: Regex, new: String, digests: Boolean = true) =
            refused(kind, part, digests) { copy ->
                Fixtures.reseal(copy) { text ->
                    assertTrue(old.pattern, old in text)
                    old.replace(text, new)
                }
            }
        resealed("Mismatch", "takes adapters of rank 4", Regex("\n  \"rank\": 4"), "\n  \"rank\": 8")
        val digest = "a".repeat(64)
        resealed("Mismatch", "another adapter layout",
            Regex("\"layout_digest\": \"[0-9a-f]{64}\""), "\"layout_digest\": \"$digest\"")
        // A package of another base, of the same shape; with digests off, too.
        for (key in listOf("weights_sha256", "tokenizer_sha256")) {
            val stated = Regex("\"$key\": (null|\"[0-9a-f]{64}\")")
            for (digests in listOf(true, false)) {
                resealed("Mismatch", "get_$key", stated, "\"$key\": \"$digest\"", digests)
            }
        }
        // Programs exported before: by the version that they state, or by what they lack.
        for ((constant, part) in mapOf(
            "get_forward_version" to "export it anew with hydrapack export-base",
            "get_adapter_shapes" to "has no method 'get_adapter_shapes'; export it with hydrapack",
        )) {
            refused("Invalid", part, digests = false) {
                val model = File(it, "model.pte")
                val text = model.readText(Charsets.ISO_8859_1)
                val older = text.replace(constant, constant.replace("get", "got"))
                assertTrue(older != text)
                model.writeText(older, Charsets.ISO_8859_1)
            }
        }
        refused("Invalid", "get_adapter_shapes: is not that of get_adapter_layout", digests = false) {
            val model = File(it, "model.pte")
            val text = model.readText(Charsets.ISO_8859_1)
            val other = text.replace("[\"q\", 64, 64]", "[\"q\", 64, 65]")
            assertTrue(other != text)
            model.writeText(other, Charsets.ISO_8859_1)
        }
        refused("Invalid", "no method 'forward'", digests = false) {
            File(it, "package/adapters.pte").copyTo(File(it, "model.pte"), overwrite = true)
            File(it, "model.pte.json").delete()
        }
    }

    @Test
    fun aSignatureIsCheckedWhereAKeyIsGiven() {
        val key = File(folder, "public_key").readText()
        Fixtures.copy(folder) { copy ->
            fun open(key: String) = Fixtures.open(copy, OpenOptions(publicKey = key)).close()
            open(key)
            Fixtures.assertKind("Invalid", "is not 64 of the digits") { open("x") }
            Fixtures.assertKind("Mismatch", "signed by another key") { open("0".repeat(64)) }
            Fixtures.reseal(copy) { it.replace("\"fallback\": \"error\"", "\"fallback\": \"base\"") }
            Fixtures.assertKind("Mismatch", "is no signature of manifest.json") { open(key) }
            File(copy, "package/manifest.sig").delete()
            Fixtures.assertKind("NotFound", "the package is not signed") { open(key) }
        }
    }

    @Test
    fun aClosedSessionSaysSo() {
        session.close()
        session.close()
        Fixtures.assertKind("Invalid", "closed") { session.use(null) }
    }

    @Test
    fun statsAreOfTheLastCalls() {
        session.use("two")
        val answer = session.generate("hello", GenerateOptions(maxNewTokens = 4, temperature = 2.0, stop = emptyList()))
        val stats = session.stats
        assertTrue("$stats", stats.loadMs > 0 && stats.swapMs > 0 && stats.prefillMs > 0)
        assertEquals(session.encode("hello").size, stats.prefillTokens)
        val last = if (answer.finish == Finish.STOP) 0 else 1
        assertEquals(answer.ids.size - last, stats.decodeTokens)
        assertEquals(stats.prefillTokens + stats.decodeTokens, session.position)
        assertFalse(stats.decodeTokens > 0 && stats.decodeRate <= 0)
    }
}
