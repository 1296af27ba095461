package org.hydrapack.demo

import android.app.Application

/** Owns what outlives the screen: an answer goes on while the screen turns or is left. */
open class DemoApplication : Application() {
    val store: ModelStore by lazy { ModelStore(this) }
    val settings: Settings by lazy { Settings(this) }
    val engine: Engine by lazy { Engine(this, store, opener()) }

    /** How programs are opened; tests have others. */
    protected open fun opener(): Opener = SessionOpener
}
