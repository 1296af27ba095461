package org.hydrapack

import java.io.Closeable
import java.nio.Buffer
import java.nio.FloatBuffer
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Tensor

/**
 * The base program and the adapters' program together: all that knows which inputs a head is bound
 * to. Here `forward` takes tokens, positions and the two flat vectors a and b.
 */
internal class Programs(private val model: Program, private val adapters: Program, route: LongArray) :
    Closeable {

    /** Size of the vocabulary. */
    val vocabulary = model.integer("get_vocab_size").toInt()

    /** Positions that the cache holds. */
    val maxContext = model.integer("get_max_context_len").toInt()

    /** Tokens that end an answer. */
    val endIds = model.integers("get_eos_ids").mapTo(HashSet()) { it.toInt() }

    private val a: EValue
    private val noHead: EValue

    /** What is bound. It lies in the adapters' memory until `head` runs again. */
    private var b: EValue

    private val logits: FloatArray

    init {
        if (maxContext < 2 || vocabulary !in 1..MAX_VOCABULARY) {
            throw HydrapackException.Invalid("the model's context or vocabulary is out of range")
        }
        logits = FloatArray(vocabulary)
        model.load("forward")
        adapters.load("head")
        adapters.load("shared")
        a = adapters.run("shared")[0]
        // A zero b makes every update zero. Java is not told the size of an input: a head has it.
        val size = head(route).toTensor().numel().toInt()
        noHead = EValue.from(
            Tensor.fromBlob(Tensor.allocateFloatBuffer(size), longArrayOf(size.toLong())),
        )
        b = noHead
    }

    /** Binds no head: the bare base model. */
    fun useBase() {
        b = noHead
    }

    /** Computes a head and binds it; where that fails no head is bound. */
    fun useHead(route: LongArray) {
        // A head that fails may have half written the memory that is bound.
        useBase()
        b = head(route)
    }

    /**
     * Runs [count] of [ids] from [start] on at [position]; the logits of the next token, valid until
     * the next call.
     */
    fun forward(ids: IntArray, start: Int, count: Int, position: Int): FloatArray {
        val tokens = Tensor.allocateLongBuffer(count)
        val positions = Tensor.allocateLongBuffer(count)
        for (i in 0 until count) {
            tokens.put(i, ids[start + i].toLong())
            positions.put(i, (position + i).toLong())
        }
        val outputs = model.run(
            "forward",
            EValue.from(Tensor.fromBlob(tokens, longArrayOf(1, count.toLong()))),
            EValue.from(Tensor.fromBlob(positions, longArrayOf(count.toLong()))),
            a,
            b,
        )
        val values = outputs[0].takeIf { it.isTensor }?.toTensor()?.getRawDataBuffer() as? FloatBuffer
        if (values == null || values.capacity() != vocabulary) {
            throw HydrapackException.Runtime("forward gives logits of another size")
        }
        values.toStart()
        values.get(logits)
        return logits
    }

    /** The values of the head that is bound. For tests. */
    fun head(): FloatArray {
        val values = b.toTensor().getRawDataBuffer() as FloatBuffer
        values.toStart()
        return FloatArray(values.capacity()).also { values.get(it) }
    }

    override fun close() {
        // The model last used what lies in the adapters' memory: it goes first.
        model.close()
        adapters.close()
    }

    private fun head(route: LongArray): EValue {
        val shape = longArrayOf(route.size.toLong())
        val input = Tensor.allocateLongBuffer(route.size)
        for (i in route.indices) input.put(i, route[i])
        return adapters.run("head", EValue.from(Tensor.fromBlob(input, shape)))[0]
    }

    /** By Buffer's own method: a FloatBuffer's gives another type back, and Android 8 lacks it. */
    private fun Buffer.toStart() {
        rewind()
    }

    private companion object {
        const val MAX_VOCABULARY = 1 shl 28
    }
}
