package org.hydrapack

import org.junit.Test

/** SmolLM2-135M with the five example adapters, as other programs than SmolLm2Test's. */
class SmolLm2ProgramsTest {
    private fun opened(name: String, use: (Session) -> Unit) {
        val folder = Fixtures.folder(name)
        Fixtures.loadNative()
        Fixtures.open(folder).use(use)
    }

    /** The prompt in one call, greedy, drawn and with lookup. */
    @Test
    fun inFloat32EveryAnswerIsPythons() = opened("smollm2-fp32") { session ->
        Fixtures.assertAsInPython(session, Fixtures.folder("smollm2-fp32"), steps = false)
        Fixtures.assertSwapsAreExact(session, "how are you")
    }

    /** The demo's, of a GGUF file's own blocks. */
    @Test
    fun ofAGgufFileEveryTokenIsPythons() = opened("smollm2-gguf") { session ->
        Fixtures.assertAsInPython(session, Fixtures.folder("smollm2-gguf"), answers = false)
    }
}
