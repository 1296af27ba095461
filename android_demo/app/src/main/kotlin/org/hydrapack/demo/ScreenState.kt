package org.hydrapack.demo

/** What is going on. */
enum class Work {
    /** Nothing; programs are loaded where there are tasks. */
    NONE,
    IMPORTING,
    LOADING,
    RUNNING,
    MEASURING,
}

/** All that the screen shows; the engine makes a new one for each change. */
data class ScreenState(
    val status: String = "",
    val work: Work = Work.NONE,
    /** Of 1000; only while importing. */
    val progress: Int = 0,
    /** Of the loaded package; null while none is loaded. */
    val tasks: List<String>? = null,
    /** Memory is short: another press loads all the same. */
    val mayForce: Boolean = false,
    val output: String = "",
    val stats: String = "",
) {
    val idle: Boolean get() = work == Work.NONE
    val canRun: Boolean get() = idle && tasks != null
}
