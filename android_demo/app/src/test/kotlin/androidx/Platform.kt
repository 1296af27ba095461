package androidx.test.internal.platform

/** Robolectric has an implementation, found by its name. */
interface ThreadChecker {
    fun checkMainThread()

    fun checkNotMainThread()
}
