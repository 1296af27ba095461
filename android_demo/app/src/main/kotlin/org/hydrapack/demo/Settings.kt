package org.hydrapack.demo

import android.content.Context

/** What is remembered from one start to the next. */
class Settings(context: Context) {
    private val stored = context.getSharedPreferences("settings", Context.MODE_PRIVATE)

    /** Threads of ExecuTorch; 0 is its own choice. */
    var threads: Int
        get() = stored.getInt("threads", 0)
        set(value) = stored.edit().putInt("threads", value).apply()

    /** The task that was used last; null is the bare base model. */
    var task: String?
        get() = stored.getString("task", null)
        set(value) = stored.edit().putString("task", value).apply()
}
