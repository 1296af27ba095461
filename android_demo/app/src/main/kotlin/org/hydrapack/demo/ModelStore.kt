package org.hydrapack.demo

import android.content.Context
import android.net.Uri
import android.provider.DocumentsContract
import java.io.File
import java.io.IOException
import java.io.InputStream
import org.hydrapack.Files
import org.hydrapack.HydrapackException
import org.hydrapack.Manifest
import org.hydrapack.ModelDescription

/** A model and a package to run together. */
class Found(val model: File, val packageFolder: File)

/** Where the app's model and package lie, and how they get there. */
class ModelStore(private val context: Context) {
    private val imported = File(context.filesDir, "imported")
    private val shipped = File(context.filesDir, "shipped")

    /** Of each update of the app its own: what an older one shipped is not mistaken for it. */
    private val current = File(
        shipped,
        context.packageManager.getPackageInfo(context.packageName, 0).lastUpdateTime.toString(),
    )

    /** Where `adb push` can put files without any permission; null without such storage. */
    val pushFolder: File? get() = context.getExternalFilesDir(null)

    /** What was imported comes before what was pushed, and that before what the app ships. */
    fun find(): Found? {
        val roots = listOfNotNull(imported, pushFolder, current)
        val folders = roots.flatMap { root -> listOf(root) + root.listFiles().orEmpty().sorted() }
        val model = folders.map { File(it, MODEL) }.firstOrNull(File::isFile) ?: return null
        val manifest = folders.map { File(it, Manifest.MANIFEST) }.firstOrNull(File::isFile)
        return manifest?.parentFile?.let { Found(model, it) }
    }

    /** Copies the files of the app's own assets out, once each update of the app. */
    fun copyAssets(progress: (String, Long, Long) -> Unit) {
        val assets = context.assets
        val folder = File(current, ASSETS)
        shipped.listFiles().orEmpty().filter { it != current }.forEach { it.deleteRecursively() }
        for (name in assets.list(ASSETS).orEmpty().filter { !File(folder, it).exists() }) {
            assets.open("$ASSETS/$name").use { copy(it, File(folder, name), -1, progress) }
        }
    }

    /**
     * Copies a model, a package or both out of a picked folder and its folders. Nothing of what was
     * there is lost before all is copied and the digests fit.
     */
    fun importFolder(tree: Uri, progress: (String, Long, Long) -> Unit) {
        val files = ArrayList<Document>()
        list(tree, DocumentsContract.getTreeDocumentId(tree), files, DEPTH)
        val parts = listOf(MODEL_FILES, PACKAGE_FILES).map { names ->
            names.mapNotNull { name -> files.firstOrNull { it.name == name } }
        }
        if (parts.all { it.size < 2 }) {
            throw HydrapackException.NotFound(
                "no model (model.pte, model.pte.json, tokenizer.json) and no package (manifest.json, " +
                    "adapters.pte) in that folder: pick the folder that holds them",
            )
        }
        val staging = File(context.cacheDir, "import").apply { deleteRecursively() }
        try {
            parts.zip(listOf(staging, File(staging, PACKAGE))).forEach { (part, folder) ->
                part.forEach { copy(it, folder, progress) }
            }
            check(staging)
            staging.walk().filter { it.isFile }.forEach {
                val target = File(imported, it.relativeTo(staging).path)
                target.parentFile?.mkdirs()
                if (!it.renameTo(target)) throw IOException("$target: cannot be written")
            }
        } finally {
            staging.deleteRecursively()
        }
    }

    /** The digests that the files state; sizes that differ say so sooner. */
    private fun check(staging: File) {
        val model = File(staging, MODEL)
        if (model.exists()) {
            val file = ModelDescription.fileBeside(model)
            val stated = ModelDescription.read(file)
            Files.check(model, stated.bytes, stated.sha256, true, file.name)
        }
        val folder = File(staging, PACKAGE)
        if (folder.exists()) {
            Manifest.read(folder).adapters.check(folder)
        }
    }

    private class Document(val name: String, val uri: Uri, val bytes: Long)

    private fun list(tree: Uri, folder: String, found: MutableList<Document>, depth: Int) {
        val children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, folder)
        val columns = arrayOf(
            DocumentsContract.Document.COLUMN_DOCUMENT_ID,
            DocumentsContract.Document.COLUMN_DISPLAY_NAME,
            DocumentsContract.Document.COLUMN_MIME_TYPE,
            DocumentsContract.Document.COLUMN_SIZE,
        )
        val cursor = context.contentResolver.query(children, columns, null, null, null)
            ?: throw IOException("the folder cannot be read: pick it again")
        val folders = ArrayList<String>()
        cursor.use {
            while (it.moveToNext()) {
                if (it.getString(2) == DocumentsContract.Document.MIME_TYPE_DIR) {
                    folders.add(it.getString(0))
                } else {
                    val uri = DocumentsContract.buildDocumentUriUsingTree(tree, it.getString(0))
                    found.add(Document(it.getString(1), uri, if (it.isNull(3)) -1 else it.getLong(3)))
                }
            }
        }
        if (depth > 0) folders.forEach { list(tree, it, found, depth - 1) }
    }

    private fun copy(document: Document, folder: File, progress: (String, Long, Long) -> Unit) {
        val stream = context.contentResolver.openInputStream(document.uri)
            ?: throw IOException("${document.name}: cannot be read")
        stream.use { copy(it, File(folder, document.name), document.bytes, progress) }
    }

    private fun copy(from: InputStream, to: File, bytes: Long, progress: (String, Long, Long) -> Unit) {
        to.parentFile?.mkdirs()
        val partial = File(to.path + ".partial")
        var done = 0L
        partial.outputStream().use { output ->
            val piece = ByteArray(1 shl 18)
            while (true) {
                val count = from.read(piece)
                if (count < 0) break
                output.write(piece, 0, count)
                done += count
                progress(to.name, done, bytes)
            }
        }
        if (!partial.renameTo(to)) throw IOException("$to: cannot be written")
    }

    private companion object {
        const val MODEL = "model.pte"
        const val PACKAGE = "package"
        const val ASSETS = "demo"

        /** A package lies in a folder of the one that is picked, or in that one's folder. */
        const val DEPTH = 2
        val MODEL_FILES = listOf(MODEL, "model.pte.json", "tokenizer.json")
        val PACKAGE_FILES = listOf(Manifest.MANIFEST, Manifest.ADAPTERS, "manifest.sig")
    }
}
