package org.hydrapack

import java.io.File
import java.io.IOException
import java.nio.channels.FileChannel
import java.nio.file.StandardOpenOption.READ
import java.security.MessageDigest

/** Reading and comparing files; every failure is of the kind that the contract has for it. */
object Files {
    /** No file of JSON is larger. */
    const val MAX_JSON_BYTES = 64 shl 20

    private const val PIECE = 1 shl 18

    /** SHA-256 of bytes, in hex. */
    fun sha256(vararg parts: ByteArray): String {
        val digest = newSha256()
        parts.forEach(digest::update)
        return hex(digest.digest())
    }

    /** SHA-256 of a file, in hex; [progress] gets the bytes read so far. */
    fun sha256(file: File, progress: (Long) -> Unit = {}): String {
        val digest = newSha256()
        val piece = ByteArray(PIECE)
        var done = 0L
        reading(file) {
            file.inputStream().use { stream ->
                while (true) {
                    val count = stream.read(piece)
                    if (count < 0) break
                    digest.update(piece, 0, count)
                    done += count
                    progress(done)
                }
            }
        }
        return hex(digest.digest())
    }

    /** The size of a file; [hint] ends the error of one that is not there. */
    fun size(file: File, hint: String = ""): Long {
        if (!file.exists()) throw HydrapackException.NotFound("$file: no such file$hint")
        if (!file.isFile) throw HydrapackException.Io("$file: is no file")
        return file.length()
    }

    /** The bytes of a file of JSON. */
    fun readJsonBytes(file: File, hint: String = ""): ByteArray =
        readBytes(file, MAX_JSON_BYTES.toLong(), hint)

    /** The bytes of a file that has at most [most]. */
    fun readBytes(file: File, most: Long, hint: String = ""): ByteArray {
        // The size first: nothing of an absurd file is read.
        if (size(file, hint) > most) {
            throw HydrapackException.Invalid(
                "$file: is larger than ${most shr 20} MiB; no such file is that large",
            )
        }
        return reading(file) { file.readBytes() }
    }

    /** Brings a file, or the names in a folder, to the disk. Throws IOException. */
    internal fun sync(file: File): Unit =
        FileChannel.open(file.toPath(), READ).use { it.force(true) }

    /** The first [count] bytes of a file, zeros where it has fewer. */
    fun start(file: File, count: Int): ByteArray {
        val start = ByteArray(count)
        reading(file) { file.inputStream().use { it.read(start) } }
        return start
    }

    /** Refuses a file of another size than [bytes] or, with [digest], of another SHA-256. */
    fun check(file: File, bytes: Long, sha256: String, digest: Boolean, source: String) {
        val size = size(file)
        if (size != bytes) {
            throw HydrapackException.Mismatch(
                "$file: has $size bytes, not the $bytes that $source states; copy it again",
            )
        }
        if (digest && sha256(file) != sha256) {
            throw HydrapackException.Mismatch(
                "$file: is not the file that $source describes (SHA-256); copy it again",
            )
        }
    }

    /** What is to be hashed piece by piece while it is copied. */
    fun newSha256(): MessageDigest = MessageDigest.getInstance("SHA-256")

    fun hex(bytes: ByteArray): String {
        val digits = "0123456789abcdef"
        val text = StringBuilder(2 * bytes.size)
        for (byte in bytes) {
            text.append(digits[byte.toInt() shr 4 and 15]).append(digits[byte.toInt() and 15])
        }
        return text.toString()
    }

    private inline fun <T> reading(file: File, read: () -> T): T = try {
        read()
    } catch (error: IOException) {
        throw HydrapackException.Io("$file: cannot be read: ${error.message}", error)
    }
}
