package org.hydrapack

/**
 * Where each matrix lies in the package's vectors a and b (docs/architecture.md). For Java ExecuTorch
 * does not say what shapes a program takes: they are the manifest's, held to the digest that program
 * and package share.
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

        /** The layout that [manifest] describes, of so many [modules]. */
        fun read(manifest: JsonReader, modules: Int, rank: Int, digest: String): Layout {
            val targets = manifest.at("target_modules").list(1).map { it.text() }
            val shapes = manifest.at("target_shapes").list(1).map { shape ->
                shape.list(2, 2).map { it.integer(1, MAX_SIZE).toInt() }
            }
            val layers = modules / targets.size
            // As Python's json writes it.
            val text = targets.zip(shapes).joinToString(", ", "[", "]") { (target, shape) ->
                "[\"$target\", ${shape[0]}, ${shape[1]}]"
            }
            val whole = "{\"layers\": $layers, \"packing\": 1, \"rank\": $rank, \"shapes\": $text}"
            if (Files.sha256(whole.toByteArray()) != digest) {
                manifest.at("target_shapes").fail("with target_modules, is not that of layout_digest")
            }
            val byTarget = targets.zip(shapes).toMap()
            val groups = GROUPS.map { group -> group.filter { it in byTarget } }.filter { it.isNotEmpty() }
            val a = groups.map { Shape(byTarget.getValue(it[0])[1], it.size * rank) }
            val b = targets.map { Shape(rank, byTarget.getValue(it)[0]) }
            return Layout(List(layers) { a }.flatten(), List(layers) { b }.flatten())
        }
    }
}
