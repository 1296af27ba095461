package org.hydrapack

import org.junit.Test

/** Other kinds of base programs than those of SessionTest and SmolLm2Test. */
class ProgramsTest {
    private fun opened(name: String, use: (Session) -> Unit) {
        val folder = Fixtures.folder(name)
        Fixtures.loadNative()
        Fixtures.open(folder).use(use)
    }

    /** SmolLM2-135M; the prompt in one call, greedy, drawn and with lookup. */
    @Test
    fun inFloat32EveryAnswerIsPythons() = opened("smollm2-fp32") { session ->
        Fixtures.assertAsInPython(session, Fixtures.folder("smollm2-fp32"), steps = false)
        Fixtures.assertSwapsAreExact(session, "how are you")
    }

    /** The tiny model in 4-bit integers. */
    @Test
    fun in8da4wEveryTokenIsPythons() = opened("tiny-8da4w") { session ->
        Fixtures.assertAsInPython(session, Fixtures.folder("tiny-8da4w"), answers = false)
        Fixtures.assertSwapsAreExact(session, "hello")
    }
}
