package org.hydrapack

import com.facebook.soloader.nativeloader.NativeLoader
import com.facebook.soloader.nativeloader.NativeLoaderDelegate
import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Assert.assertThrows
import org.junit.Assume.assumeTrue

/** What tests/test_android.py has written for these tests. */
internal object Fixtures {
    fun folder(name: String): File {
        val root = System.getProperty("hydrapack.fixtures").orEmpty()
        assumeTrue("no fixtures: run pytest tests/test_android.py", root.isNotEmpty())
        val folder = File(root, name)
        assumeTrue("the fixtures have no $name", folder.exists())
        return folder
    }

    fun json(file: File): Map<*, *> = Json.parseObject(file.readBytes(), file.name)

    fun lines(file: File): List<Map<*, *>> =
        file.readLines().map { Json.parseObject(it.toByteArray(), file.name) }

    /** Points ExecuTorch's classes to the desktop's library. */
    fun loadNative() {
        if (NativeLoader.isInitialized()) return
        val library = System.getProperty("hydrapack.native")
        NativeLoader.init(object : NativeLoaderDelegate {
            override fun loadLibrary(name: String, flags: Int): Boolean {
                System.load(library)
                return true
            }

            override fun getLibraryPath(name: String): String = library

            override fun getSoSourcesVersion(): Int = 0
        })
    }

    /** The kind of the error that [call] raises; its message must hold [part]. */
    fun kindOf(part: String, call: () -> Unit): String {
        val error = assertThrows(HydrapackException::class.java) { call() }
        val message = error.message.orEmpty()
        assertTrue("'$message' does not say '$part'", part in message && '\n' !in message)
        return error.kind
    }

    fun assertKind(kind: String, part: String, call: () -> Unit) = assertEquals(kind, kindOf(part, call))
}

internal fun Any?.ints(): List<Int> = (this as List<*>).map { (it as Long).toInt() }

internal fun Any?.texts(): List<String> = (this as List<*>).map { it as String }
