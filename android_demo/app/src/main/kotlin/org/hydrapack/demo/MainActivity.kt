package org.hydrapack.demo

import android.app.Activity
import android.content.ClipData
import android.content.ClipboardManager
import android.content.Intent
import android.os.Bundle
import android.view.View
import android.view.WindowManager
import android.widget.AdapterView
import android.widget.ArrayAdapter
import android.widget.Button
import android.widget.EditText
import android.widget.ProgressBar
import android.widget.Spinner
import android.widget.TextView
import android.widget.Toast

/** The one screen: shows the engine's state, and hands presses on to it. */
class MainActivity : Activity() {
    private val app get() = application as DemoApplication
    private val engine get() = app.engine

    private val status by lazy { view<TextView>(R.id.status) }
    private val progress by lazy { view<ProgressBar>(R.id.progress) }
    private val importFiles by lazy { view<Button>(R.id.import_files) }
    private val load by lazy { view<Button>(R.id.load) }
    private val threads by lazy { view<Spinner>(R.id.threads) }
    private val task by lazy { view<Spinner>(R.id.task) }
    private val example by lazy { view<Button>(R.id.example) }
    private val input by lazy { view<EditText>(R.id.input) }
    private val run by lazy { view<Button>(R.id.run) }
    private val copy by lazy { view<Button>(R.id.copy) }
    private val share by lazy { view<Button>(R.id.share) }
    private val output by lazy { view<TextView>(R.id.output) }
    private val stats by lazy { view<TextView>(R.id.stats) }
    private val benchmark by lazy { view<Button>(R.id.benchmark) }

    private var shownTasks: List<String>? = null

    override fun onCreate(saved: Bundle?) {
        super.onCreate(saved)
        setContentView(R.layout.main)
        showThreads()
        showTasks(null)
        listen()
        if (engine.state == ScreenState()) {
            saved?.getString(OUTPUT)?.let(engine::restore)
            engine.begin()
        }
    }

    override fun onStart() {
        super.onStart()
        engine.listener = ::show
    }

    override fun onStop() {
        engine.listener = null
        super.onStop()
    }

    override fun onSaveInstanceState(out: Bundle) {
        super.onSaveInstanceState(out)
        // The engine lives through a turn of the screen, but not through the end of the process.
        out.putString(OUTPUT, engine.state.output)
    }

    @Deprecated("The platform's own way; the other is androidx's.")
    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val tree = data?.data
        if (request == PICK_FOLDER && result == RESULT_OK && tree != null) engine.importFolder(tree)
    }

    private fun listen() {
        importFiles.setOnClickListener { pickFolder() }
        load.setOnClickListener { engine.load(app.settings.threads, engine.state.mayForce) }
        run.setOnClickListener { if (engine.state.work == Work.RUNNING) engine.stop() else answer() }
        example.setOnClickListener { input.setText(exampleOf(chosenTask())) }
        benchmark.setOnClickListener { engine.measure() }
        copy.setOnClickListener { copyOutput() }
        share.setOnClickListener { shareOutput() }
        threads.onChosen { app.settings.threads = it }
        task.onChosen { if (shownTasks != null) app.settings.task = chosenTask() }
    }

    private fun show(state: ScreenState) {
        if (state.tasks != shownTasks) showTasks(state.tasks)
        status.text = state.status
        progress.visibility = if (state.work in BUSY) View.VISIBLE else View.GONE
        progress.isIndeterminate = state.work != Work.IMPORTING
        progress.progress = state.progress
        importFiles.isEnabled = state.idle
        load.isEnabled = state.idle
        load.setText(if (state.mayForce) R.string.button_load_anyway else R.string.button_load)
        threads.isEnabled = state.idle
        task.isEnabled = state.canRun
        example.isEnabled = state.canRun
        benchmark.isEnabled = state.canRun
        val running = state.work == Work.RUNNING
        run.isEnabled = running || state.canRun
        run.setText(if (running) R.string.button_stop else R.string.button_run)
        if (output.text.toString() != state.output) output.text = state.output
        copy.isEnabled = state.output.isNotEmpty()
        share.isEnabled = state.output.isNotEmpty()
        stats.text = state.stats
        val flag = WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON
        if (running) window.addFlags(flag) else window.clearFlags(flag)
    }

    private fun showThreads() {
        val cores = Runtime.getRuntime().availableProcessors()
        val names = listOf(getString(R.string.threads_automatic)) + (1..cores).map { "$it" }
        threads.adapter = adapter(names)
        threads.setSelection(app.settings.threads.coerceIn(0, cores))
    }

    private fun showTasks(tasks: List<String>?) {
        shownTasks = null
        task.adapter = adapter(tasks.orEmpty() + getString(R.string.base_model))
        val remembered = tasks?.indexOf(app.settings.task) ?: -1
        task.setSelection(maxOf(0, remembered))
        shownTasks = tasks
        if (tasks != null && input.text.isEmpty()) input.setText(exampleOf(chosenTask()))
    }

    private fun adapter(names: List<String>) =
        ArrayAdapter(this, android.R.layout.simple_spinner_item, names).apply {
            setDropDownViewResource(android.R.layout.simple_spinner_dropdown_item)
        }

    /** Null is the bare base model, the last of the list. */
    private fun chosenTask(): String? = shownTasks?.getOrNull(task.selectedItemPosition)

    private fun exampleOf(task: String?): CharSequence = getText(
        when (task) {
            "grammar" -> R.string.example_grammar
            "qa" -> R.string.example_qa
            "reply" -> R.string.example_reply
            "summary" -> R.string.example_summary
            "tone" -> R.string.example_tone
            else -> R.string.example_default
        },
    )

    private fun answer() = engine.run(chosenTask(), input.text.toString())

    private fun pickFolder() {
        @Suppress("DEPRECATION")
        startActivityForResult(Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICK_FOLDER)
    }

    private fun copyOutput() {
        val clip = ClipData.newPlainText(getString(R.string.app_name), output.text)
        getSystemService(ClipboardManager::class.java)?.setPrimaryClip(clip)
        Toast.makeText(this, R.string.copied, Toast.LENGTH_SHORT).show()
    }

    private fun shareOutput() {
        val send = Intent(Intent.ACTION_SEND).setType("text/plain")
            .putExtra(Intent.EXTRA_TEXT, output.text.toString())
        startActivity(Intent.createChooser(send, null))
    }

    private fun <T : View> view(id: Int): T = requireNotNull(findViewById<T>(id))

    private fun Spinner.onChosen(chosen: (Int) -> Unit) {
        onItemSelectedListener = object : AdapterView.OnItemSelectedListener {
            override fun onItemSelected(parent: AdapterView<*>?, view: View?, at: Int, id: Long) =
                chosen(at)

            override fun onNothingSelected(parent: AdapterView<*>?) = Unit
        }
    }

    private companion object {
        const val PICK_FOLDER = 1
        const val OUTPUT = "output"
        val BUSY = setOf(Work.IMPORTING, Work.LOADING, Work.MEASURING)
    }
}
