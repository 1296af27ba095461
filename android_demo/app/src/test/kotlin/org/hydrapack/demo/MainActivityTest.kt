package org.hydrapack.demo

import android.content.ClipboardManager
import android.content.Intent
import android.os.Bundle
import android.view.View
import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNotSame
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Test
import org.junit.runner.RunWith
import org.robolectric.Robolectric
import org.robolectric.RobolectricTestRunner
import org.robolectric.Shadows.shadowOf
import org.robolectric.annotation.Config
import org.robolectric.annotation.GraphicsMode

/** The screen with a runner that gives pieces when told. */
@RunWith(RobolectricTestRunner::class)
@Config(sdk = [35], application = FakeApplication::class, qualifiers = "w411dp-h891dp-xhdpi")
@GraphicsMode(GraphicsMode.Mode.NATIVE)
class MainActivityTest {
    private val app get() = Screen.app as FakeApplication

    @Before
    fun setMemory() = Screen.setFreeMemory(4_000_000_000)

    private fun putFiles() {
        val folder = File(app.filesDir, "imported/package").apply { mkdirs() }
        File(folder, "manifest.json").writeText("{}")
        File(folder.parentFile, "model.pte").writeText("x")
    }

    private fun loaded(): Screen {
        putFiles()
        val screen = Screen.open()
        screen.press(R.id.load)
        screen.awaitIdle()
        return screen
    }

    private fun Screen.begin(text: String) {
        type(text)
        press(R.id.run)
        await("the first piece") { text(R.id.output) == "[$text]" }
    }

    @Test
    fun theFirstStartSaysWhatToDo() {
        val screen = Screen.open()
        assertTrue(screen.text(R.id.status), "Import a folder that holds model.pte" in screen.text(R.id.status))
        assertTrue("with adb to /" in screen.text(R.id.status))
        for (id in listOf(R.id.run, R.id.copy, R.id.share, R.id.benchmark, R.id.example)) {
            assertFalse(screen.enabled(id))
        }
        assertTrue(screen.enabled(R.id.import_files) && screen.enabled(R.id.load))
        screen.photograph("first-start")
    }

    @Test
    fun whatTheAppShipsIsCopiedOut() {
        val old = File(app.filesDir, "shipped/1/demo/note.txt")
        old.parentFile?.mkdirs()
        old.writeText("of an older app")
        Screen.open()
        val notes = File(app.filesDir, "shipped").walk().filter { it.isFile }.toList()
        assertEquals(listOf("shipped\n"), notes.map { it.readText() })
        assertEquals("demo", notes.single().parentFile?.name)
    }

    @Test
    fun aTaskIsPickedAndAnswers() {
        val screen = loaded()
        assertEquals("fake/base · package · 3 tasks · context 512", screen.text(R.id.status))
        assertEquals(listOf("grammar", "summary", "tone", "base model"), screen.choices(R.id.task))
        screen.choose(R.id.task, 1)
        screen.press(R.id.example)
        assertTrue(screen.text(R.id.input).startsWith("Anna:"))
        assertFalse(screen.activity.keepsScreenOn)
        screen.begin("some text")
        assertTrue(screen.activity.keepsScreenOn)
        assertEquals("Stop", screen.text(R.id.run))
        assertFalse(screen.enabled(R.id.load) || screen.enabled(R.id.import_files))
        app.runner.pieces.addAll(listOf("An ", "answer.", FakeRunner.END))
        screen.awaitIdle()
        assertEquals("[some text]An answer.", screen.text(R.id.output))
        assertEquals(listOf<String?>("summary"), app.runner.used)
        assertEquals(
            "load 812 ms · swap 1.25 ms · prompt 40 tokens at 400/s · answer 25.0 tokens/s · memory",
            screen.text(R.id.stats).substringBefore(" memory") + " memory",
        )
        assertTrue(screen.text(R.id.stats).endsWith("ended by stop"))
        assertFalse(screen.activity.keepsScreenOn)
        screen.choose(R.id.task, 3)
        screen.begin("bare")
        app.runner.pieces.add(FakeRunner.END)
        screen.awaitIdle()
        assertEquals(listOf("summary", null), app.runner.used)
    }

    @Test
    fun stopStops() {
        val screen = loaded()
        screen.begin("hi")
        app.runner.pieces.add("one")
        screen.await("a piece") { screen.text(R.id.output) == "[hi]one" }
        screen.press(R.id.run)
        screen.awaitIdle()
        assertEquals("[hi]one", screen.text(R.id.output))
        assertTrue(screen.text(R.id.stats).endsWith("ended by stopped"))
        assertEquals("Run", screen.text(R.id.run))
    }

    @Test
    fun anAnswerSurvivesATurnOfTheScreenAndLeavingTheApp() {
        val screen = loaded()
        screen.choose(R.id.task, 2)
        screen.begin("hi")
        val before = screen.activity
        screen.controller.recreate()
        assertNotSame(before, screen.activity)
        app.runner.pieces.add(" turned")
        screen.await("the piece after the turn") { screen.text(R.id.output) == "[hi] turned" }
        assertEquals("hi", screen.text(R.id.input))
        assertEquals("Stop", screen.text(R.id.run))
        assertTrue(screen.activity.keepsScreenOn)
        screen.controller.pause().stop()
        app.runner.pieces.addAll(listOf(" left", FakeRunner.END))
        screen.await("the end") { app.engine.state.idle }
        screen.controller.start().resume()
        screen.awaitIdle()
        assertEquals("[hi] turned left", screen.text(R.id.output))
        assertEquals(2, screen.view<android.widget.Spinner>(R.id.task).selectedItemPosition)
    }

    @Test
    fun anAnswerSurvivesTheEndOfTheProcess() {
        val saved = Bundle()
        saved.putString("output", "what was written")
        val controller = Robolectric.buildActivity(MainActivity::class.java).setup(saved)
        val screen = Screen(controller)
        screen.awaitIdle()
        assertEquals("what was written", screen.text(R.id.output))
        val again = Bundle()
        controller.saveInstanceState(again)
        assertEquals("what was written", again.getString("output"))
    }

    @Test
    fun theAnswerIsCopiedAndShared() {
        val screen = loaded()
        screen.begin("hi")
        app.runner.pieces.add(FakeRunner.END)
        screen.awaitIdle()
        screen.press(R.id.copy)
        val clip = app.getSystemService(ClipboardManager::class.java)?.primaryClip
        assertEquals("[hi]", clip?.getItemAt(0)?.text.toString())
        screen.press(R.id.share)
        val chooser = shadowOf(screen.activity).nextStartedActivity
        val sent = chooser.getParcelableExtra(Intent.EXTRA_INTENT, Intent::class.java)
        assertEquals("[hi]", sent?.getStringExtra(Intent.EXTRA_TEXT))
    }

    @Test
    fun shortMemoryIsSaidBeforeLoading() {
        putFiles()
        Screen.setFreeMemory(10_000_000)
        val screen = Screen.open()
        screen.press(R.id.load)
        screen.awaitIdle()
        assertTrue(screen.text(R.id.status), "needs about 64 MB and 10 MB are free" in screen.text(R.id.status))
        assertEquals("Load anyway", screen.text(R.id.load))
        assertFalse(screen.enabled(R.id.run))
        screen.press(R.id.load)
        screen.awaitIdle()
        assertTrue(screen.enabled(R.id.run))
        assertEquals("Load", screen.text(R.id.load))
    }

    @Test
    fun threadsAndTaskAreRemembered() {
        val screen = loaded()
        screen.choose(R.id.threads, 1)
        screen.choose(R.id.task, 1)
        screen.controller.pause().stop().destroy()
        val next = Screen.open()
        assertEquals(1, next.view<android.widget.Spinner>(R.id.threads).selectedItemPosition)
        next.press(R.id.load)
        next.awaitIdle()
        assertEquals(1, app.runner.threads)
        assertEquals(1, next.view<android.widget.Spinner>(R.id.task).selectedItemPosition)
    }

    @Test
    fun swapsAreMeasured() {
        val screen = loaded()
        screen.press(R.id.benchmark)
        screen.awaitIdle()
        assertEquals(100, app.runner.used.size)
        assertEquals(setOf<String?>("grammar", "summary", "tone"), app.runner.used.toSet())
        assertEquals(
            "100 swaps: shortest 1.25 ms, median 1.25 ms, longest 1.25 ms", screen.text(R.id.stats),
        )
        assertEquals(View.GONE, screen.view<View>(R.id.progress).visibility)
    }
}
