package org.hydrapack

import java.io.File
import java.security.GeneralSecurityException
import java.security.KeyFactory
import java.security.NoSuchAlgorithmException
import java.security.PublicKey
import java.security.spec.X509EncodedKeySpec
import java.security.Signature as Verifier

/** manifest.sig: an Ed25519 signature of manifest.json, and by its digests of the whole package. */
internal object Signature {
    const val FILE = "manifest.sig"

    /** What stands before the 32 bytes of a key in X.509 (RFC 8410). */
    private const val KEY_PREFIX = "302a300506032b6570032100"

    /** Refuses a [publicKey] that is not 64 hex digits. */
    fun checkKey(publicKey: String) {
        if (!JsonReader.isSha256(publicKey)) {
            throw HydrapackException.Invalid(
                "the public key '$publicKey' is not 64 of the digits 0-9 and a-f",
            )
        }
    }

    /** Refuses a package whose manifest, [signed], was not signed by [publicKey]. */
    fun check(folder: File, signed: ByteArray, publicKey: String) {
        val file = File(folder, FILE)
        val hint = ": the package is not signed; pack with --signing-key"
        val json = JsonReader(Json.parseObject(Files.readJsonBytes(file, hint), file.path), "$file:")
        val algorithm = json.at("algorithm")
        if (algorithm.text() != "ed25519") algorithm.fail("is not ed25519")
        val known = setOf("algorithm", "public_key", "signature")
        (json.members().keys - known).firstOrNull()?.let { json.fail("an unknown key: $it") }
        val key = json.at("public_key").digest()
        val signature = json.at("signature").text()
        if (!JsonReader.isHex(signature, 128)) json.at("signature").fail("is not 128 hex digits")
        if (key != publicKey) {
            throw HydrapackException.Mismatch("$file: signed by another key, ${key.take(16)}…")
        }
        if (!verify(key, signature, signed, signed.size)) {
            throw HydrapackException.Mismatch("$file: is no signature of manifest.json as it is")
        }
    }

    /** Whether [signature] is [key]'s of the first [size] bytes; both in hex. */
    fun verify(key: String, signature: String, signed: ByteArray, size: Int): Boolean {
        val verifier: Verifier
        val publicKey: PublicKey
        try {
            verifier = Verifier.getInstance("Ed25519")
            publicKey = KeyFactory.getInstance("Ed25519")
                .generatePublic(X509EncodedKeySpec(bytes(KEY_PREFIX + key)))
        } catch (_: NoSuchAlgorithmException) {
            throw HydrapackException.Invalid("signatures need Android 13 or newer")
        } catch (_: GeneralSecurityException) {
            return false
        }
        return try {
            verifier.initVerify(publicKey)
            verifier.update(signed, 0, size)
            verifier.verify(bytes(signature))
        } catch (_: GeneralSecurityException) {
            false
        }
    }

    private fun bytes(hex: String) =
        ByteArray(hex.length / 2) { hex.substring(2 * it, 2 * it + 2).toInt(16).toByte() }
}
