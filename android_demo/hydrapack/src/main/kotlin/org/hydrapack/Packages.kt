package org.hydrapack

import java.io.File
import java.io.IOException
import java.nio.file.Files as Paths
import java.nio.file.Path
import java.nio.file.StandardCopyOption.ATOMIC_MOVE
import java.util.UUID

/** A session, and whether it is on the previous package since the current one did not open. */
class LastGood internal constructor(val session: Session, val fellBack: Boolean)

/**
 * Which package is in use: `current` in [folder], with `previous` to fall back to, symbolic links to
 * folders beside them. Nothing that a link names is ever changed: whatever ends the process, `current`
 * names a whole package (docs/runtime-contract.md).
 *
 * The folder is in the app's own storage (filesDir), which has links. One thread at a time.
 */
class Packages(private val folder: File) {
    private val root = folder.toPath()

    /** The package in use. */
    val current = File(folder, CURRENT)

    /** The one that was in use before; [activate] of it is the way back, and copies nothing. */
    val previous = File(folder, PREVIOUS)

    /**
     * Makes the package in [packageFolder] the current one, and the one that was so the previous one.
     * It is copied and compared with its manifest. Gives the folder that is current now; those that no
     * link names are gone.
     */
    fun activate(packageFolder: File): File {
        val manifest = Manifest.read(packageFolder)
        return writing {
            Paths.createDirectories(root)
            var target = packageFolder.toPath().toRealPath()
            val before = real(current)
            val links = ArrayList<Pair<File, Path>>()
            if (before != null) links.add(previous to before)
            if (target.parent == root.toRealPath()) {
                // Already there: current first, or a kill in between might leave it without a name.
                if (before == target) return target.toFile()
                links.add(0, current to target)
            } else {
                target = Paths.createTempDirectory(root, FOLDER)
                copy(packageFolder, target.toFile(), manifest)
                links.add(current to target)
            }
            for ((name, named) in links) link(name, named)
            // A loss of power finds no link to what was not written.
            Files.sync(folder)
            sweep()
            target.toFile()
        }
    }

    /**
     * Makes the package that [patch] makes of the current one the current one; as [Patch.apply] and
     * [activate].
     */
    fun update(patch: File, publicKey: String? = null): File {
        writing(::sweep)
        val target = File(folder, FOLDER + UUID.randomUUID())
        Patch.apply(current, patch, target, publicKey)
        return activate(target)
    }

    /**
     * A session on the current package, self-tested; where it does not open, on the previous one. The
     * links stay as they are. Where neither opens the error is the current one's.
     */
    fun openLastGood(model: File, options: OpenOptions = OpenOptions()): LastGood {
        val tested = options.copy(selfTest = true)
        try {
            return LastGood(Session.open(model, current, tested), false)
        } catch (error: HydrapackException) {
            val session = try {
                Session.open(model, previous, tested)
            } catch (_: HydrapackException) {
                throw error
            }
            return LastGood(session, true)
        }
    }

    private inline fun <T> writing(write: () -> T): T = try {
        write()
    } catch (error: IOException) {
        throw HydrapackException.Io("$folder: cannot be written: ${error.message}", error)
    }

    private fun real(link: File): Path? = if (link.exists()) link.toPath().toRealPath() else null

    private fun copy(from: File, to: File, manifest: Manifest) {
        val others = listOf(Manifest.MANIFEST, Signature.FILE).filter { File(from, it).exists() }
        for (name in manifest.files.map { it.name } + others) {
            Paths.copy(File(from, name).toPath(), File(to, name).toPath())
            Files.sync(File(to, name))
        }
        manifest.files.forEach { it.check(to) }
        Files.sync(to)
    }

    private fun link(name: File, named: Path) {
        val partial = root.resolve(".link")
        Paths.deleteIfExists(partial)
        Paths.createSymbolicLink(partial, named.fileName)
        Paths.move(partial, name.toPath(), ATOMIC_MOVE)
    }

    /** Removes packages that no link names, and what a killed run left of one. */
    private fun sweep() {
        val named = setOf(real(current), real(previous))
        for (file in folder.listFiles().orEmpty()) {
            val ours = file.name.removePrefix(".").startsWith(FOLDER)
            if (ours && real(file) !in named) file.deleteRecursively()
        }
    }

    private companion object {
        const val CURRENT = "current"
        const val PREVIOUS = "previous"
        const val FOLDER = "package-"
    }
}
