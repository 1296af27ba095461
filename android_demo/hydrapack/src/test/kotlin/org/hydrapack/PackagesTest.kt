package org.hydrapack

import java.io.File
import java.util.concurrent.TimeUnit
import kotlin.random.Random
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** Golden outputs, switching packages, and updates: `package` passes, `other` does not, `next` follows. */
class PackagesTest {
    @get:Rule val scratch = TemporaryFolder()

    private val folder = Fixtures.folder("life")
    private val model = File(folder, "model.pte")
    private val key = File(folder, "public_key").readText()
    private lateinit var packages: Packages

    @Before
    fun load() {
        Fixtures.loadNative()
        packages = Packages(File(scratch.root, "packages"))
    }

    private fun file(name: String) = File(folder, name)

    private fun assertWhole(expected: File, found: File) {
        val names = expected.list().orEmpty().sorted()
        assertEquals(names, found.list().orEmpty().sorted())
        for (name in names) {
            assertArrayEquals(name, File(expected, name).readBytes(), File(found, name).readBytes())
        }
    }

    @Test
    fun aSelfTestIsPythons() {
        val expected = Fixtures.json(file("self_test.json"))
        for ((name, said) in expected) {
            val python = said as Map<*, *>
            Session.open(model, file("$name")).use { session ->
                session.use("one")
                val test = session.selfTest()
                assertEquals(python["text"], "$test")
                assertEquals(python["passed"], test.passed)
                assertEquals((python["tasks"] as Map<*, *>).keys, test.tasks.toSet())
                assertEquals(python["tokens"], test.tokens.toLong())
                assertEquals(python["near_ties"], test.nearTies.toLong())
                val differences = (python["differences"] as List<*>).map {
                    val one = it as Map<*, *>
                    fun number(key: String) = (one[key] as Long).toInt()
                    GoldenDifference(
                        one["task"] as String, number("prompt"), number("token"), number("expected"),
                        number("found"), one["margin"] as Double,
                    )
                }
                assertEquals(differences, test.differences)
                assertNull(session.task)
            }
        }
        assertEquals(setOf("package", "other", "next"), expected.keys)
        val tested = OpenOptions(selfTest = true)
        Session.open(model, file("package"), tested).close()
        Fixtures.assertKind("Mismatch", "fails its self-test on this device") {
            Session.open(model, file("other"), tested)
        }
        Fixtures.assertKind("NotFound", "has no golden outputs") {
            Session.open(model, File(Fixtures.folder("tiny"), "package"), tested)
        }
        Fixtures.assertKind("NotFound", "golden outputs are of a package") {
            Session.open(model, options = tested)
        }
    }

    @Test
    fun whatIsNoGoldenFileIsRefused() {
        val copy = File(scratch.root, "package")
        file("package").copyRecursively(copy)
        val golden = File(copy, "golden.json")
        val text = golden.readText()
        fun refused(kind: String, part: String, old: Regex, new: String, digests: Boolean = false) {
            val changed = old.replaceFirst(text, new)
            assertTrue(old.pattern, changed != text)
            golden.writeText(changed.trimEnd().padEnd(text.length))
            Fixtures.assertKind(kind, part) {
                Session.open(model, copy, OpenOptions(checkDigests = digests, selfTest = true)).close()
            }
        }
        refused("Mismatch", "golden.json", Regex("\"near_tie\": 0"), "\"near_tie\": 1", digests = true)
        refused("Invalid", "schema_version", Regex("\"schema_version\": 1"), "\"schema_version\": 2")
        refused("Invalid", "near_tie", Regex("\"near_tie\": 0.25"), "\"near_tie\": -0.2")
        refused("Invalid", "near_tie: is missing", Regex("\"near_tie\""), "\"near_tye\"")
        refused("Invalid", "is not in the package", Regex("\"name\": \"one\""), "\"name\": \"nin\"")
        refused("Invalid", "not a margin for each token", Regex("\"tokens\": \\[\\s*\\d+,"), "\"tokens\": [")
        refused("Invalid", "vocabulary of 300", Regex("\"ids\": \\[\\s*\\d"), "\"ids\": [9999")
    }

    @Test
    fun itSwitchesAndFallsBack() {
        fun fellBack() = packages.openLastGood(model).let { good ->
            val names = good.session.use { session -> session.tasks.map { it.name } }
            assertEquals(listOf("one", "two", "three"), names)
            good.fellBack
        }
        Fixtures.assertKind("NotFound", "is it a package?") { fellBack() }
        val first = packages.activate(file("package"))
        assertWhole(file("package"), packages.current)
        assertFalse(packages.previous.exists())
        packages.activate(file("other"))
        assertWhole(file("package"), packages.previous)
        assertTrue(fellBack())
        // The way back copies nothing; the links change places.
        assertEquals(first, packages.activate(packages.previous))
        assertEquals(first, packages.activate(packages.current))
        assertWhole(file("other"), packages.previous)
        assertFalse(fellBack())
        // What no link names goes.
        packages.activate(file("next"))
        assertEquals(4, packages.current.parentFile.list().orEmpty().size)
        // What is not whole changes nothing.
        val damaged = File(scratch.root, "damaged")
        file("other").copyRecursively(damaged)
        File(damaged, "adapters.pte").apply { writeBytes(readBytes().apply { this[size - 1]++ }) }
        Fixtures.assertKind("Mismatch", "adapters.pte") { packages.activate(damaged) }
        Fixtures.assertKind("NotFound", "manifest.json") { packages.activate(File(folder, "none")) }
        assertWhole(file("next"), packages.current)
        // Neither opens: the current one's error.
        packages.activate(file("other"))
        packages.activate(file("other"))
        Fixtures.assertKind("Mismatch", "fails its self-test") { fellBack() }
    }

    @Test
    fun anUpdateIsPythons() {
        packages.activate(file("package"))
        File(packages.current.parentFile, ".package-x.hydrapack-update").mkdir()
        packages.update(file("up.patch"), key)
        assertWhole(file("next"), packages.current)
        assertWhole(file("package"), packages.previous)
        packages.openLastGood(model).session.close()
        packages.update(file("down.patch"))
        assertWhole(file("package"), packages.current)
        assertEquals(4, packages.current.parentFile.list().orEmpty().size)
        val made = File(scratch.root, "made")
        // What a run that was killed left there is no hindrance.
        File(scratch.root, ".made.hydrapack-update").apply { mkdir() }.resolve("x").writeText("x")
        Patch.apply(file("package"), file("up.patch"), made, key)
        assertWhole(file("next"), made)
        assertEquals(setOf("made", "packages"), scratch.root.list().orEmpty().toSet())
        Fixtures.assertKind("Invalid", "is there already") {
            Patch.apply(file("package"), file("up.patch"), made)
        }
    }

    @Test
    fun onlyThePatchOfThisPackageIsApplied() {
        val made = File(scratch.root, "made")
        fun refused(
            kind: String,
            part: String,
            patch: File,
            from: String = "package",
            key: String? = null,
        ) {
            Fixtures.assertKind(kind, part) { Patch.apply(file(from), patch, made, key) }
            assertEquals(0, scratch.root.list().orEmpty().count { "made" in it })
        }
        refused("Mismatch", "is not the file that", file("up.patch"), from = "other")
        refused("NotFound", "no such file", file("up.patch"), from = "none")
        refused("NotFound", "no such file", file("none.patch"))
        refused("Invalid", "is no patch", model)
        refused("Mismatch", "is not signed", file("down.patch"), from = "next", key = key)
        refused("Mismatch", "signed by another key", file("up.patch"), key = "0".repeat(64))
        refused("Invalid", "is not 64 of the digits", file("up.patch"), key = "x")
        val damaged = File(scratch.root, "damaged")
        fun resealed(body: ByteArray) = damaged.writeBytes(body + Files.newSha256().digest(body))
        val signed = file("up.patch").readBytes().let { it.copyOf(it.size - 32) }
        resealed(signed.apply { this[size - 60]++ })
        refused("Mismatch", "its signature is of other bytes", damaged, key = key)
        val whole = file("down.patch").readBytes()
        val random = Random(0)
        val kinds = HashMap<String, Int>()
        repeat(200) {
            val bytes = whole.copyOf(if (it % 10 == 0) random.nextInt(whole.size) else whole.size)
            // The first bytes say most: half of the flips are there.
            val at = random.nextInt(minOf(bytes.size, if (it % 2 == 0) 400 else bytes.size))
            bytes[at] = (bytes[at].toInt() xor (1 shl random.nextInt(8))).toByte()
            damaged.writeBytes(bytes)
            refused("Invalid", "$damaged: is ", damaged, from = "next")
            // Again with a digest that fits: what it says is what is wrong.
            if (bytes.size < 100 || at >= bytes.size - 32) return@repeat
            resealed(bytes.copyOf(bytes.size - 32))
            val kind = try {
                Patch.apply(file("next"), damaged, made)
                // Another name of a file, say: whatever it is, the patch now says so.
                made.deleteRecursively()
                "Ok"
            } catch (error: HydrapackException) {
                error.kind
            }
            kinds.merge(kind, 1, Int::plus)
            assertFalse(made.exists())
        }
        assertTrue("$kinds", kinds.keys.containsAll(setOf("Invalid", "Mismatch", "NotFound")))
        assertTrue("$kinds", (kinds["Ok"] ?: 0) < 10)
    }

    @Test
    fun killedAtAnyInstantThereIsAWholePackage() {
        packages.activate(file("package"))
        val java = File(System.getProperty("java.home"), "bin/java").path
        val path = System.getProperty("java.class.path")
        val command = listOf(
            java, "-cp", path, "org.hydrapack.SwitchingKt", "${packages.current.parentFile}", "$folder",
        )
        val random = Random(1)
        val manifests = listOf("package", "next").map { file("$it/manifest.json").readText() }
        val seen = HashSet<String>()
        var left = 0
        var span = 300.0
        var before = ""
        repeat(12) {
            val child = ProcessBuilder(command).redirectError(ProcessBuilder.Redirect.INHERIT).start()
            assertEquals("begun", child.inputStream.bufferedReader().readLine())
            Thread.sleep(random.nextLong(span.toLong()))
            child.destroyForcibly().waitFor(10, TimeUnit.SECONDS)
            for (link in listOf(packages.current, packages.previous)) {
                if (link == packages.previous && !link.exists()) continue
                val manifest = Manifest.read(link)
                manifest.files.forEach { it.check(link) }
                assertTrue(File(link, "manifest.json").readText().also(seen::add) in manifests)
            }
            if (packages.current.parentFile.list().orEmpty().size > 4) left++
            // So that some come far, however slow the machine is now.
            val now = packages.current.toPath().toRealPath().toString()
            span *= if (now == before) 1.2 else 0.9
            before = now
        }
        assertEquals(2, seen.size)
        assertTrue("$left were killed amid an update", left > 0)
        packages.activate(packages.previous)
        packages.activate(file("other"))
        assertEquals(4, packages.current.parentFile.list().orEmpty().size)
    }
}
