package org.hydrapack

/**
 * Where each matrix lies in the package's vectors a and b (docs/architecture.md). For Java ExecuTorch
 * does not say what shapes a program takes: a constant of it does, held to the layout's digest.
 */
internal class Layout private constructor(val a: List<Shape>, val b: List<Shape>) {
    class Shape(val rows: Int, val columns: Int) {
        val size: Int get() = rows * columns
    }

    companion object {
        /** Targets that read the same input share a matrix of a. In packing order. */
        private val GROUPS =
            listOf(
                listOf("qkv", "q", "k", "v"), listOf("o"), listOf("gate_up", "gate", "up"), listOf("down"),
            )
        private const val MAX_SIZE = 1L shl 24
        private const val MAX_LAYERS = 1L shl 16

        /** The layout in [text], whose SHA-256 is [digest]; no matrix where both are empty. */
        fun parse(text: String, digest: String, where: String): Layout {
            if (text.isEmpty() && digest.isEmpty()) return Layout(emptyList(), emptyList())
            if (Files.sha256(text.toByteArray()) != digest) {
                throw HydrapackException.Invalid("$where: is not that of get_adapter_layout")
            }
            val json = JsonReader(Json.parseObject(text.toByteArray(), where), "$where:")
            val layers = json.at("layers").integer(1, MAX_LAYERS).toInt()
            val rank = json.at("rank").integer(1, Manifest.MAX_RANK).toInt()
            // Of each target (d_out, d_in), in packing order.
            val shapes = json.at("shapes").list(1).associate { shape ->
                val (target, rows, columns) = shape.list(3, 3)
                target.text() to Shape(
                    rows.integer(1, MAX_SIZE).toInt(), columns.integer(1, MAX_SIZE).toInt(),
                )
            }
            val groups = GROUPS.map { group -> group.mapNotNull { shapes[it] } }.filter { it.isNotEmpty() }
            val a = groups.map { Shape(it[0].columns, it.size * rank) }
            val b = shapes.values.map { Shape(rank, it.rows) }
            return Layout(List(layers) { a }.flatten(), List(layers) { b }.flatten())
        }
    }
}
