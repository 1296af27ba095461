package org.hydrapack

import java.io.File

/** What is looked at before a package is run. */
data class OpenOptions(
    /** Compare SHA-256 digests; sizes are compared anyway. A damaged file can crash ExecuTorch. */
    val checkDigests: Boolean = true,
    /** An Ed25519 key, 64 hex digits, that must have signed the package; null asks for none. */
    val publicKey: String? = null,
    /** Threads of ExecuTorch, for the whole process; 0 is its own choice. */
    val threads: Int = 0,
    /** The one beside the model where null. */
    val tokenizer: File? = null,
    /** Replay the package's golden outputs before anything else. */
    val selfTest: Boolean = false,
)

/** Files that belong together; without a package the bare base model. */
internal class Opened(
    val manifest: Manifest?,
    val programs: Programs,
    val tokenizer: Tokenizer,
    val baseModel: String,
)

/** Every check that a model, a package and a tokenizer belong together, in the contract's order. */
internal class Opening(
    private val model: File,
    private val folder: File?,
    private val options: OpenOptions,
) {
    private val digests = options.checkDigests

    fun open(): Opened {
        options.publicKey?.let(Signature::checkKey)
        if (folder == null && options.publicKey != null) {
            throw HydrapackException.Invalid("publicKey: is of a package, and none is given")
        }
        val manifest = folder?.let(::readPackage)
        checkModelFile()
        val program = Program.open(model, "forward", options.threads)
        return closingOnFailure(program) {
            if (folder == null || manifest == null) {
                checkForward(program)
                opened(program, null, null)
            } else {
                openWith(program, File(folder, Manifest.ADAPTERS), manifest)
            }
        }
    }

    private fun readPackage(folder: File): Manifest {
        val file = File(folder, Manifest.MANIFEST)
        val bytes = Files.readJsonBytes(file, "; is it a package?")
        val manifest = Manifest.parse(bytes, file.path, digests)
        options.publicKey?.let { Signature.check(folder, bytes, it) }
        manifest.adapters.check(folder, digests)
        return manifest
    }

    private fun openWith(program: Program, adapters: File, manifest: Manifest): Opened {
        val heads = Program.open(adapters, "head", options.threads)
        return closingOnFailure(heads) {
            checkForward(program)
            checkLayout(program, heads, manifest, adapters)
            checkBase(program, manifest)
            opened(program, heads, manifest)
        }
    }

    private fun opened(program: Program, heads: Program?, manifest: Manifest?): Opened {
        val tokenizer = options.tokenizer ?: File(model.absoluteFile.parentFile, "tokenizer.json")
        val stated = if (digests) program.text("get_tokenizer_sha256") else null
        val read = Tokenizer.read(tokenizer, stated)
        val layout = Layout.parse(
            program.text("get_adapter_shapes"), program.text("get_adapter_layout"),
            "$model: get_adapter_shapes",
        )
        val base = manifest?.baseModel ?: program.text("get_base_model")
        return Opened(manifest, Programs(program, heads, layout), read, base)
    }

    private fun <T> closingOnFailure(program: Program, use: () -> T): T {
        var done = false
        try {
            return use().also { done = true }
        } finally {
            if (!done) program.close()
        }
    }

    /** model.pte.json may be missing where digests are not checked. */
    private fun checkModelFile() {
        Files.size(model)
        val file = ModelDescription.fileBeside(model)
        if (!digests && !file.exists()) return
        val stated = ModelDescription.read(file)
        Files.check(model, stated.bytes, stated.sha256, digests, file.name)
    }

    /** What a program takes Java is not told: one of another version says so by this constant. */
    private fun checkForward(program: Program) {
        val method = "get_forward_version"
        if (program.has(method) && program.integer(method) == FORWARD_VERSION) return
        throw HydrapackException.Invalid(
            "$model: its forward takes other inputs than this version of hydrapack gives: export it " +
                "anew with hydrapack export-base",
        )
    }

    private fun checkLayout(
        program: Program,
        heads: Program,
        manifest: Manifest,
        adapters: File,
    ) {
        val rank = program.integer("get_adapter_rank")
        if (rank != manifest.rank.toLong()) {
            throw HydrapackException.Mismatch(
                "$model takes adapters of rank $rank, the package has rank ${manifest.rank}: export " +
                    "the base with --rank ${manifest.rank}",
            )
        }
        if (heads.integer("get_adapter_rank") != manifest.rank.toLong()) {
            throw HydrapackException.Mismatch("$adapters: has another rank than its manifest")
        }
        if (program.text("get_adapter_layout") != manifest.layoutDigest) {
            throw HydrapackException.Mismatch(
                "$model has another adapter layout than the package (base model " +
                    "${manifest.baseModel}): export that base with the package's --target-modules",
            )
        }
        if (heads.text("get_adapter_layout") != manifest.layoutDigest) {
            throw HydrapackException.Mismatch("$adapters: has another layout than its manifest")
        }
    }

    /** A package bound to one base is refused on another, even of the same shape. */
    private fun checkBase(program: Program, manifest: Manifest) {
        val stated = mapOf(
            "get_weights_sha256" to manifest.weightsSha256,
            "get_tokenizer_sha256" to manifest.tokenizerSha256,
        )
        for ((method, digest) in stated) {
            val own = if (digest == null) null else program.text(method)
            if (own != digest) {
                throw HydrapackException.Mismatch(
                    "$model: $method is $own, the package was made for $digest: take the model " +
                        "that the package was packed with (${manifest.baseModel})",
                )
            }
        }
    }

    private companion object {
        /** Of the inputs that [Programs] gives. */
        const val FORWARD_VERSION = 1L
    }
}
