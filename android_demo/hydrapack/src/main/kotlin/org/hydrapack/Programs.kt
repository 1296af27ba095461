package org.hydrapack

import java.io.Closeable
import java.nio.Buffer
import java.nio.FloatBuffer
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Tensor

/**
 * The base program and the adapters' program, if there is one, together: all that knows which inputs a head is bound
 * to. `forward` takes tokens, positions, rows, whether a head is on, and each matrix of a and of b.
 */
internal class Programs(
    private val model: Program,
    private val adapters: Program?,
    private val layout: Layout,
) : Closeable {

    /** Size of the vocabulary. */
    val vocabulary = limit("get_vocab_size")

    /** Positions that the cache holds. */
    val maxContext = limit("get_max_context_len")

    /** Tokens that a call takes. */
    val maxTokens = limit("get_max_seq_len")

    /** Tokens of a call after which it gives logits. */
    val maxRows = limit("get_max_rows")

    /** Tokens that end an answer. */
    val endIds = model.integers("get_eos_ids").mapTo(HashSet()) { it.toInt() }

    /** 1 where a head counts. An integer, since ExecuTorch's Java API makes no truth value. */
    private val on = Tensor.allocateLongBuffer(1)
    private val b = Tensor.allocateFloatBuffer(layout.b.sumOf { it.size })

    /** Made as they are needed: only guesses need more than one. */
    private val rows = ArrayList<FloatArray>()

    /** What follows tokens, positions and rows. Kept, since nothing of it is copied a call. */
    private val adapter: Array<EValue>

    init {
        model.load("forward")
        // It stays where the adapters' program has it: nothing else of that program runs over it.
        // Without one it is zeros that nothing reads.
        val shared = adapters?.let(::load) ?: Tensor.allocateFloatBuffer(layout.a.sumOf { it.size })
        val matrices = pieces(shared, layout.a) + pieces(b, layout.b)
        val switch = listOf(EValue.from(Tensor.fromBlob(on, longArrayOf())))
        adapter = if (matrices.isEmpty()) emptyArray() else (switch + matrices).toTypedArray()
    }

    private fun load(adapters: Program): FloatBuffer {
        adapters.load("head")
        adapters.load("shared")
        return vector(adapters, "shared", layout.a)
    }

    /** Binds no head: the bare base model. */
    fun useBase() {
        on.put(0, 0)
    }

    /** Computes a head and binds it; where that fails no head is bound. */
    fun useHead(route: LongArray) {
        useBase()
        val program = checkNotNull(adapters) { "a head is of a package" }
        val input = Tensor.allocateLongBuffer(route.size)
        for (i in route.indices) input.put(i, route[i])
        val shape = longArrayOf(route.size.toLong())
        val head = vector(program, "head", layout.b, EValue.from(Tensor.fromBlob(input, shape)))
        // All modules lie side by side in it; the model takes each in one piece.
        val width = b.capacity() / layout.b[0].rows
        var column = 0
        var target = 0
        for (matrix in layout.b) {
            for (row in 0 until matrix.rows) {
                copy(head, row * width + column, target, matrix.columns)
                target += matrix.columns
            }
            column += matrix.columns
        }
        on.put(0, 1)
    }

    /**
     * Runs [count] of [ids], at most [maxTokens], from [start] on at [position]; the logits after each
     * of the last [wanted] of them, at most [maxRows], valid until the next call.
     */
    fun forward(
        ids: IntArray,
        start: Int,
        count: Int,
        position: Int,
        wanted: Int = 1,
    ): List<FloatArray> {
        val tokens = Tensor.allocateLongBuffer(count)
        val positions = Tensor.allocateLongBuffer(count)
        for (i in 0 until count) {
            tokens.put(i, ids[start + i].toLong())
            positions.put(i, (position + i).toLong())
        }
        val last = Tensor.allocateLongBuffer(wanted)
        for (i in 0 until wanted) last.put(i, (count - wanted + i).toLong())
        val outputs = model.run(
            "forward",
            EValue.from(Tensor.fromBlob(tokens, longArrayOf(1, count.toLong()))),
            EValue.from(Tensor.fromBlob(positions, longArrayOf(count.toLong()))),
            EValue.from(Tensor.fromBlob(last, longArrayOf(wanted.toLong()))),
            *adapter,
        )
        val values = outputs[0].takeIf { it.isTensor }?.toTensor()?.getRawDataBuffer() as? FloatBuffer
        if (values == null || values.capacity() != wanted * vocabulary) {
            throw HydrapackException.Runtime("forward gives logits of another size")
        }
        values.select(0, values.capacity())
        while (rows.size < wanted) rows.add(FloatArray(vocabulary))
        for (row in 0 until wanted) values.get(rows[row])
        return rows.subList(0, wanted)
    }

    /** The values of the head that is bound, zeros where none is. For tests. */
    fun head(): FloatArray = FloatArray(b.capacity()) { if (on.get(0) != 0L) b.get(it) else 0f }

    override fun close() {
        // The model last used what lies in the adapters' memory: it goes first.
        model.close()
        adapters?.close()
    }

    private fun limit(method: String): Int {
        val value = model.integer(method)
        if (value in 1..MAX_LIMIT) return value.toInt()
        throw HydrapackException.Invalid("model.pte: $method is out of range")
    }

    /** A vector of the package, which has the matrices of [shapes]. */
    private fun vector(
        adapters: Program,
        method: String,
        shapes: List<Layout.Shape>,
        vararg inputs: EValue,
    ): FloatBuffer {
        val output = adapters.run(method, *inputs)[0]
        val values = output.takeIf { it.isTensor }?.toTensor()?.getRawDataBuffer() as? FloatBuffer
        if (values == null || values.capacity() != shapes.sumOf { it.size }) {
            throw HydrapackException.Mismatch(
                "${Manifest.ADAPTERS}: $method has another size than its manifest says; pack it again",
            )
        }
        return values
    }

    /** A view of each matrix, one after the other. */
    private fun pieces(vector: FloatBuffer, shapes: List<Layout.Shape>): List<EValue> {
        var start = 0
        return shapes.map { shape ->
            val piece = vector.duplicate()
            piece.select(start, start + shape.size)
            start += shape.size
            val sizes = longArrayOf(shape.rows.toLong(), shape.columns.toLong())
            EValue.from(Tensor.fromBlob(piece.slice(), sizes))
        }
    }

    private fun copy(from: FloatBuffer, start: Int, target: Int, count: Int) {
        from.select(start, start + count)
        b.select(target, target + count)
        b.put(from)
    }

    /** By Buffer's own methods: a FloatBuffer's give another type back, and Android 8 lacks them. */
    private fun Buffer.select(start: Int, end: Int) {
        clear()
        limit(end)
        position(start)
    }

    private companion object {
        const val MAX_LIMIT = 1L shl 28
    }
}
