package androidx.test.platform.app

import android.app.Instrumentation
import android.os.Bundle

/** What Robolectric calls of androidx.test, which Maven Central does not have; see also beside it. */
object InstrumentationRegistry {
    private var instance: Instrumentation? = null

    @JvmStatic
    @Suppress("UNUSED_PARAMETER")
    fun registerInstance(instrumentation: Instrumentation?, arguments: Bundle?) {
        instance = instrumentation
    }

    @JvmStatic
    fun getInstrumentation(): Instrumentation = checkNotNull(instance)
}
