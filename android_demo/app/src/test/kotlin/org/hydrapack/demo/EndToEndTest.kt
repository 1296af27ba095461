package org.hydrapack.demo

import android.app.Activity
import android.content.Intent
import android.provider.DocumentsContract
import java.io.File
import org.hydrapack.Json
import org.hydrapack.desktop.DesktopLibrary
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Assume.assumeTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode

/** The app with the real engine, from picking files to the answer. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35], qualifiers = "w411dp-h891dp-xhdpi")
@GraphicsMode(GraphicsMode.Mode.NATIVE)
class EndToEndTest {
    private val fixtures = File(System.getProperty("hydrapack.fixtures").orEmpty())

    @Before
    fun prepare() {
        assumeTrue("no fixtures: run pytest tests/test_android.py", File(fixtures, "tiny").exists())
        Screen.setFreeMemory(4_000_000_000)
        Robolectric.setupContentProvider(FakeDocuments::class.java, "documents")
        DesktopLibrary.load(System.getProperty("hydrapack.native"))
    }

    private fun Screen.pick(folder: File) {
        press(R.id.import_files)
        val asked = shadowOf(activity).nextStartedActivityForResult
        assertEquals(Intent.ACTION_OPEN_DOCUMENT_TREE, asked.intent.action)
        val tree = DocumentsContract.buildTreeDocumentUri("documents", folder.path)
        shadowOf(activity).receiveResult(asked.intent, Activity.RESULT_OK, Intent().setData(tree))
        awaitIdle()
    }

    private fun rows(name: String): List<Map<*, *>> {
        val json = Json.parseObject(File(fixtures, "$name/session.json").readBytes(), name)
        return (json["rows"] as List<*>).map { it as Map<*, *> }
    }

    private fun Screen.answerOf(row: Map<*, *>): String {
        val task = row["task"] as String?
        choose(R.id.task, choices(R.id.task).indexOf(task ?: "base model"))
        type(row["text"] as String)
        press(R.id.run)
        awaitIdle()
        return text(R.id.output)
    }

    @Test
    fun filesArePickedLoadedAndAnswerAsInPython() {
        val screen = Screen.open()
        screen.pick(File(fixtures, "tiny"))
        assertEquals("Copied and checked: press Load", screen.text(R.id.status))
        screen.press(R.id.load)
        screen.awaitIdle()
        assertEquals("tiny/llama · package · 3 tasks · context 128", screen.text(R.id.status))
        var seen = 0
        for (row in rows("tiny")) {
            // Python's has 24 tokens, this as many as the task says.
            val answer = screen.answerOf(row)
            val expected = row["answer"] as String
            if (row["finish"] == "stop") assertEquals(expected, answer)
            assertTrue("'$answer' does not begin as '$expected'", answer.startsWith(expected.trimEnd('\uFFFD')))
            seen += expected.length
        }
        assertTrue("$seen", seen > 50)
        assertTrue(screen.text(R.id.stats), "ended by" in screen.text(R.id.stats))
        screen.press(R.id.benchmark)
        screen.awaitIdle()
        assertTrue(screen.text(R.id.stats), screen.text(R.id.stats).startsWith("100 swaps: shortest"))
    }

    @Test
    fun aDamagedFolderSaysWhyAndLeavesWhatWasThere() {
        val screen = Screen.open()
        screen.pick(File(fixtures, "manifests"))
        assertTrue(screen.text(R.id.status), "NotFound: no model (model.pte" in screen.text(R.id.status))
        screen.pick(File(fixtures, "tiny"))
        val copy = File.createTempFile("damaged", "").apply { delete() }
        File(fixtures, "tiny/package").copyRecursively(copy)
        File(copy, "adapters.pte").appendText("x")
        screen.pick(copy)
        assertTrue(screen.text(R.id.status), "Mismatch: " in screen.text(R.id.status))
        assertTrue("copy it again" in screen.text(R.id.status))
        copy.deleteRecursively()
        assertFalse(screen.enabled(R.id.run))
        screen.press(R.id.load)
        screen.awaitIdle()
        assertTrue(screen.text(R.id.status), screen.enabled(R.id.run))
    }

    @Test
    fun aModelThatDoesNotFitSaysWhy() {
        val pushed = requireNotNull(Screen.app.store.pushFolder)
        File(fixtures, "tiny").copyRecursively(pushed)
        File(pushed, "tokenizer.json").appendText(" ")
        val screen = Screen.open()
        assertTrue(screen.text(R.id.status), "press Load" in screen.text(R.id.status))
        screen.press(R.id.load)
        screen.awaitIdle()
        assertTrue(screen.text(R.id.status), "Mismatch: " in screen.text(R.id.status))
        assertTrue("is not the tokenizer that the model was exported with" in screen.text(R.id.status))
        assertFalse(screen.enabled(R.id.run))
        screen.photograph("refused")
    }

    @Test
    fun theRealModelWritesAnAnswer() {
        val folder = File(fixtures, "smollm2-gguf")
        assumeTrue("the fixtures have no ${folder.name}", folder.exists())
        val pushed = requireNotNull(Screen.app.store.pushFolder)
        folder.copyRecursively(pushed)
        val screen = Screen.open()
        screen.press(R.id.load)
        screen.awaitIdle()
        screen.choose(R.id.task, screen.choices(R.id.task).indexOf("summary"))
        screen.press(R.id.example)
        screen.press(R.id.run)
        screen.awaitIdle()
        val answer = screen.text(R.id.output)
        assertTrue(answer, answer.split(' ').size > 3)
        println("summary: $answer | ${screen.text(R.id.stats)}")
        screen.photograph("answer")
    }
}
