package org.hydrapack

import java.io.File

/** What model.pte.json, which export-base writes beside a model, says of it. */
class ModelDescription private constructor(val bytes: Long, val sha256: String) {
    companion object {
        private const val MAX_BYTES = (1L shl 40) - 1

        fun fileBeside(model: File): File = File(model.path + ".json")

        fun read(file: File): ModelDescription {
            val bytes = Files.readJsonBytes(file, "; export-base writes it beside the model")
            val json = JsonReader(Json.parseObject(bytes, file.path), "$file:")
            val size = json.at("bytes").integer(0, MAX_BYTES)
            return ModelDescription(size, json.at("sha256").digest())
        }
    }
}
