package org.hydrapack.demo

import android.app.Activity
import android.app.ActivityManager
import android.graphics.Bitmap
import android.graphics.Canvas
import android.os.Looper
import android.view.View
import android.widget.Button
import android.widget.EditText
import android.widget.Spinner
import android.widget.TextView
import java.io.File
import java.time.Duration
import org.junit.Assert.assertTrue
import org.robolectric.Robolectric
import org.robolectric.RuntimeEnvironment
import org.robolectric.Shadows.shadowOf
import org.robolectric.android.controller.ActivityController

/** The app as a person sees it: reads and presses what is on the screen. */
internal class Screen(val controller: ActivityController<MainActivity>) {
    val activity: MainActivity get() = controller.get()

    fun text(id: Int): String = view<TextView>(id).text.toString()

    fun enabled(id: Int): Boolean = view<View>(id).isEnabled

    fun press(id: Int) {
        assertTrue("the button cannot be pressed", enabled(id))
        view<Button>(id).performClick()
    }

    fun type(text: String) = view<EditText>(R.id.input).setText(text)

    fun choose(spinner: Int, at: Int) {
        view<Spinner>(spinner).setSelection(at)
        shadowOf(Looper.getMainLooper()).idle()
    }

    fun choices(spinner: Int): List<String> {
        val adapter = view<Spinner>(spinner).adapter
        return List(adapter.count) { adapter.getItem(it).toString() }
    }

    /** Lets time pass on the main thread until the screen is as asked. */
    fun await(what: String, condition: () -> Boolean) {
        val end = System.nanoTime() + 120_000_000_000
        while (!condition()) {
            assertTrue("$what does not come; status: ${text(R.id.status)}", System.nanoTime() < end)
            shadowOf(Looper.getMainLooper()).idleFor(Duration.ofMillis(50))
            Thread.sleep(2)
        }
    }

    /** Nothing is going on, and all of it is drawn. */
    fun awaitIdle() {
        val engine = (activity.application as DemoApplication).engine
        await("rest") { engine.state.idle && text(R.id.status) == engine.state.status }
        shadowOf(Looper.getMainLooper()).idleFor(Duration.ofMillis(200))
    }

    /** Draws the screen into target/screenshots; an empty one is an error. */
    fun photograph(name: String) {
        val root = activity.window.decorView
        val bitmap = Bitmap.createBitmap(root.width, root.height, Bitmap.Config.ARGB_8888)
        root.draw(Canvas(bitmap))
        val colors = HashSet<Int>()
        for (y in 0 until bitmap.height step 3) {
            for (x in 0 until bitmap.width step 3) colors.add(bitmap.getPixel(x, y))
        }
        assertTrue("$name has ${colors.size} colours", colors.size > 20)
        val file = File("target/screenshots/$name.png")
        file.parentFile.mkdirs()
        file.outputStream().use { bitmap.compress(Bitmap.CompressFormat.PNG, 100, it) }
    }

    fun <T : View> view(id: Int): T = requireNotNull(activity.findViewById(id))

    companion object {
        fun open(): Screen = Screen(Robolectric.buildActivity(MainActivity::class.java).setup())
            .also { it.awaitIdle() }

        fun setFreeMemory(bytes: Long) {
            val info = ActivityManager.MemoryInfo().apply { availMem = bytes }
            val manager = app.getSystemService(ActivityManager::class.java)
            shadowOf(manager).setMemoryInfo(info)
        }

        val app: DemoApplication get() = RuntimeEnvironment.getApplication() as DemoApplication
    }
}

internal val Activity.keepsScreenOn: Boolean
    get() = window.attributes.flags and android.view.WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON != 0
