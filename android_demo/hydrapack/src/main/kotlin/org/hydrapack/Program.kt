package org.hydrapack

import java.io.Closeable
import java.io.File
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module

/** One .pte file on ExecuTorch; its bare errors become clear ones. */
internal class Program private constructor(private val file: File, private val module: Module) :
    Closeable {

    private val methods = module.getMethods().toSet()

    /** Whether there is such a method. */
    fun has(method: String): Boolean = method in methods

    /** The value of a constant method. */
    fun integer(method: String): Long {
        val value = constants(method)[0]
        return if (value.isInt) value.toInt() else fail("$method is no integer")
    }

    /** The values of a constant method. */
    fun integers(method: String): List<Long> = constants(method).filter { it.isInt }.map { it.toInt() }

    /** The value of a constant method. */
    fun text(method: String): String {
        val value = constants(method)[0]
        return if (value.isString) value.toStr() else fail("$method is no text")
    }

    /** Makes a method ready, which takes the time and memory that its first run would. */
    fun load(method: String) {
        try {
            module.loadMethod(method)
        } catch (error: RuntimeException) {
            throw HydrapackException.Invalid("$file: damaged: '$method' cannot be loaded", error)
        }
    }

    fun run(method: String, vararg inputs: EValue): Array<EValue> {
        val outputs = try {
            module.execute(method, *inputs)
        } catch (error: RuntimeException) {
            throw HydrapackException.Runtime("$file: $method failed: ${error.message}", error)
        }
        if (outputs.isEmpty()) throw HydrapackException.Runtime("$file: $method gives nothing")
        return outputs
    }

    override fun close() = module.destroy()

    private fun constants(method: String): Array<EValue> {
        if (!has(method)) fail("has no method '$method'; export it with hydrapack")
        return run(method)
    }

    private fun fail(what: String): Nothing = throw HydrapackException.Invalid("$file: $what")

    companion object {
        private const val MAGIC_END = 8

        /** The program in [file], which must have [method]. */
        fun open(file: File, method: String, threads: Int): Program {
            Files.size(file)
            val start = Files.start(file, MAGIC_END)
            // ExecuTorch for Java checks little of a file: what is plainly none never gets there.
            if (!String(start, Charsets.ISO_8859_1).startsWith("ET", 4)) throw damaged(file, null)
            val program = try {
                Program(file, Module.load(file.path, Module.LOAD_MODE_MMAP, threads))
            } catch (error: RuntimeException) {
                throw damaged(file, error)
            }
            if (program.has(method)) return program
            program.close()
            throw HydrapackException.Invalid(
                "$file: has no method '$method'; is it a .pte of hydrapack?",
            )
        }

        private fun damaged(file: File, cause: Throwable?) = HydrapackException.Invalid(
            "$file: not an ExecuTorch program, or a damaged one; copy it again",
            cause,
        )
    }
}
