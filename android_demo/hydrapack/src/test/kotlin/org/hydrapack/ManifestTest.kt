package org.hydrapack

import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Test

class ManifestTest {
    private val folder = Fixtures.folder("manifests")

    private fun good() = File(folder, "good").readBytes()

    private fun verdict(bytes: ByteArray): String = try {
        Manifest.parse(bytes, "m.json")
        "Ok"
    } catch (error: HydrapackException) {
        val message = error.message.orEmpty()
        assertTrue(message, "m.json" in message && '\n' !in message)
        error.kind
    }

    @Test
    fun everyVerdictIsPythons() {
        val verdicts = Fixtures.json(File(folder, "verdicts.json"))
        val differ = verdicts.filter { (name, kind) -> verdict(File(folder, "$name").readBytes()) != kind }
        assertEquals(emptyMap<Any, Any>(), differ)
        val counts = verdicts.values.groupingBy { it }.eachCount()
        assertEquals(setOf("Ok", "Invalid", "Mismatch"), counts.keys)
        assertTrue("$counts", verdicts.size > 2200 && counts.values.all { it > 20 })
    }

    @Test
    fun whatIsReadIsWhatStandsThere() {
        val manifest = Manifest.parse(good(), "m.json")
        assertEquals(listOf("one", "two"), manifest.tasks.map { it.name })
        assertEquals("tiny/llama", manifest.baseModel)
        assertEquals(4, manifest.rank)
        assertEquals(4096L, manifest.adapters.bytes)
        assertNull(manifest.tokenizerSha256)
        val task = manifest.tasks[1]
        assertEquals(Generation(64, 0.7, 40, 0.9), task.generation)
        assertEquals(listOf("<|end|>", "\n\n"), task.stop)
        assertEquals(listOf(1L), task.route.toList())
        assertEquals("en", task.language)
    }

    @Test
    fun anErrorNamesFileAndKey() {
        val bad = String(good()).replace("\"temperature\": 0.7", "\"temperature\": 700")
        Fixtures.assertKind("Invalid", "m.json: tasks.0.generation.temperature: must be from 0 to 100") {
            Manifest.parse(bad.toByteArray(), "m.json")
        }
    }

    @Test
    fun aNameThatIsNoTaskGetsTheFallback() {
        val error = Manifest.parse(File(folder, "good").readBytes(), "m")
        Fixtures.assertKind("NotFound", "unknown task 'x'; the package has: one, two") { error.find("x") }
        assertEquals("one", error.find("one")?.name)
        assertNull(Manifest.parse(File(folder, "fallback-base").readBytes(), "m").find("x"))
        val task = Manifest.parse(File(folder, "fallback-a-task").readBytes(), "m").find("x")
        assertEquals("two", task?.name)
    }
}
