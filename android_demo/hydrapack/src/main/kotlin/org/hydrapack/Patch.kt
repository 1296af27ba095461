package org.hydrapack

import java.io.ByteArrayOutputStream
import java.io.File
import java.io.IOException
import java.nio.file.Files as Paths
import java.nio.file.StandardCopyOption.ATOMIC_MOVE

/**
 * An update of a package, as `hydrapack diff` writes it: small, and for one package only
 * (docs/patch-format.md).
 */
object Patch {
    private const val MAGIC = "hydrapack-patch-1\n"
    private const val MAX_BYTES = 1L shl 30
    private const val MAX_FILES = 64
    private const val DIGEST = 32
    private const val KEY = 32
    private const val SIGNATURE = 64

    private class Listed(val name: String, val bytes: Int, val sha256: String)

    /**
     * Writes the package that [patch] makes of the one in [packageFolder] to [target], whole or not at
     * all. Nothing may be there yet, since Java cannot exchange two folders: [Packages.update] puts it
     * in the place of the old one. One at a time in a folder.
     *
     * With [publicKey], 64 hex digits, the patch must be signed by that Ed25519 key.
     */
    fun apply(packageFolder: File, patch: File, target: File, publicKey: String? = null) {
        val files = try {
            patched(packageFolder, patch, publicKey)
        } catch (error: OutOfMemoryError) {
            throw HydrapackException.Runtime("$patch: there is too little memory to apply it", error)
        }
        if (target.exists()) {
            throw HydrapackException.Invalid("$target: is there already; give a name that is not")
        }
        val parent = target.absoluteFile.parentFile
        val partial = File(parent, ".${target.name}.hydrapack-update")
        try {
            // What a run that was killed left.
            partial.deleteRecursively()
            Paths.createDirectory(partial.toPath())
            for ((name, content) in files) {
                val file = File(partial, name)
                file.writeBytes(content)
                Files.sync(file)
            }
            Files.sync(partial)
            Paths.move(partial.toPath(), target.toPath(), ATOMIC_MOVE)
            Files.sync(parent)
        } catch (error: IOException) {
            partial.deleteRecursively()
            throw HydrapackException.Io("$target: cannot be written: ${error.message}", error)
        }
    }

    /** The new package's files by name. */
    private fun patched(folder: File, patch: File, publicKey: String?): Map<String, ByteArray> {
        val data = Files.readBytes(patch, MAX_BYTES)
        val reader = Reader(data, MAGIC.length + 1, checked(data, patch, publicKey), patch)
        val before = readList(reader)
        val after = readList(reader)
        val names = after.map { it.name }
        if (Manifest.MANIFEST !in names || Manifest.ADAPTERS !in names) {
            reader.fail("it makes no package, manifest.json or adapters.pte is missing")
        }
        val old = ByteArrayOutputStream()
        for (file in before) old.write(asListed(folder, file, patch))
        val made = decoded(old.toByteArray(), reader, after.sumOf { it.bytes })
        if (!reader.atEnd) reader.fail("it goes on after its end")
        var at = 0
        return after.associate { file ->
            val content = made.copyOfRange(at, at + file.bytes)
            at += file.bytes
            if (Files.sha256(content) != file.sha256) {
                reader.fail("the ${file.name} that it gives is another than it says")
            }
            file.name to content
        }
    }

    /** Where the delta ends, once the first line, the patch's SHA-256 and the signature fit. */
    private fun checked(data: ByteArray, patch: File, publicKey: String?): Int {
        if (String(data, 0, minOf(data.size, MAGIC.length), Charsets.ISO_8859_1) != MAGIC) {
            throw HydrapackException.Invalid("$patch: is no patch that this version reads")
        }
        val signed = data.size > MAGIC.length && data[MAGIC.length] == 1.toByte()
        val frame = DIGEST + if (signed) KEY + SIGNATURE else 0
        val end = data.size - frame
        fun hex(start: Int, size: Int) = Files.hex(data.copyOfRange(start, start + size))
        val whole = Files.newSha256().apply { update(data, 0, maxOf(0, data.size - DIGEST)) }
        if (end <= MAGIC.length || Files.hex(whole.digest()) != hex(data.size - DIGEST, DIGEST)) {
            throw HydrapackException.Invalid(
                "$patch: is damaged: its SHA-256 is another; fetch it again",
            )
        }
        if (publicKey == null) return end
        Signature.checkKey(publicKey)
        if (!signed) throw HydrapackException.Mismatch("$patch: is not signed")
        val key = hex(end, KEY)
        if (key != publicKey) {
            throw HydrapackException.Mismatch("$patch: signed by another key, ${key.take(16)}…")
        }
        if (!Signature.verify(key, hex(end + KEY, SIGNATURE), data, end)) {
            throw HydrapackException.Mismatch("$patch: its signature is of other bytes")
        }
        return end
    }

    private fun readList(reader: Reader): List<Listed> {
        val files = ArrayList<Listed>()
        var bytes = 0L
        repeat(reader.number(MAX_FILES.toLong()) { "there are too many files" }) {
            val length = reader.number(MAX_BYTES) { "a file's name is none" }
            val name = String(reader.piece(length), Charsets.ISO_8859_1)
            if (!Manifest.isPlain(name)) reader.fail("a file's name is none")
            if (files.any { it.name == name }) reader.fail("a file's name stands twice")
            val size = reader.number(MAX_BYTES) { "its files have more than 1,073,741,824 bytes" }
            bytes += size
            if (bytes > MAX_BYTES) reader.fail("its files have more than 1,073,741,824 bytes")
            files.add(Listed(name, size, Files.hex(reader.piece(DIGEST))))
        }
        return files
    }

    private fun asListed(folder: File, listed: Listed, patch: File): ByteArray {
        val file = File(folder, listed.name)
        // The size first: nothing of an absurd file is read.
        val fits = Files.size(file) == listed.bytes.toLong()
        val content = if (fits) Files.readBytes(file, MAX_BYTES) else null
        if (content == null || Files.sha256(content) != listed.sha256) {
            throw HydrapackException.Mismatch("$file: is not the file that $patch was made from")
        }
        return content
    }

    /** Copies of old bytes and of new ones, and bytes as they are, until there are [size] new ones. */
    private fun decoded(old: ByteArray, reader: Reader, size: Int): ByteArray {
        val made = ByteArray(size)
        var end = 0
        var goingOn = 0L
        while (end < size) {
            val literal = reader.number(size.toLong() - end) { "it gives more bytes than it says" }
            reader.piece(literal).copyInto(made, end)
            end += literal
            if (end == size) break
            val count = reader.number(size.toLong() - end) { "it gives more bytes than it says" }
            if (count == 0) reader.fail("it copies nothing")
            val coded = reader.number()
            val distance = if (coded % 2 == 1L) -(coded / 2) - 1 else coded / 2
            val source = goingOn + literal + distance
            if (source < 0 || source >= old.size.toLong() + end) {
                reader.fail("it copies from where nothing is")
            }
            // Byte by byte: a copy may run into its own output.
            for (at in source until source + count) {
                made[end++] = if (at < old.size) old[at.toInt()] else made[(at - old.size).toInt()]
            }
            goingOn = source + count
        }
        return made
    }

    /** Numbers and pieces of [data], one after the other, from [at] to [end]. */
    private class Reader(
        private val data: ByteArray,
        private var at: Int,
        private val end: Int,
        private val patch: File,
    ) {
        val atEnd: Boolean get() = at == end

        fun fail(what: String): Nothing =
            throw HydrapackException.Invalid("$patch: is damaged: $what")

        /** Seven bits a byte, the low ones first; below 2^63. */
        fun number(): Long {
            var value = 0L
            for (shift in 0 until 63 step 7) {
                val byte = piece(1)[0].toInt()
                value = value or ((byte and 127).toLong() shl shift)
                if (byte >= 0) return value
            }
            fail("a number is too large")
        }

        /** A number up to [most]; what is wrong with a larger one. */
        inline fun number(most: Long, wrong: () -> String): Int {
            val value = number()
            if (value > most) fail(wrong())
            return value.toInt()
        }

        fun piece(size: Int): ByteArray {
            if (size > end - at) fail("it ends too early")
            at += size
            return data.copyOfRange(at - size, at)
        }
    }
}
