package org.hydrapack

/**
 * What a user can be shown: a sentence that says what is wrong, in which file and key, and how to
 * mend it. The kinds are those of docs/runtime-contract.md.
 */
sealed class HydrapackException(message: String, cause: Throwable? = null) :
    Exception(message, cause) {

    /** The name that all three runtimes give this error. */
    abstract val kind: String

    /** A file or a task that is not there. */
    class NotFound(message: String) : HydrapackException(message) {
        override val kind = "NotFound"
    }

    /** A malformed file, an argument out of range, an unknown option. */
    class Invalid(message: String, cause: Throwable? = null) : HydrapackException(message, cause) {
        override val kind = "Invalid"
    }

    /** Files that do not belong together; a size, digest or signature that does not fit. */
    class Mismatch(message: String) : HydrapackException(message) {
        override val kind = "Mismatch"
    }

    /** No room for more tokens. */
    class ContextFull(message: String) : HydrapackException(message) {
        override val kind = "ContextFull"
    }

    /** In use by another thread, or by a running answer's own callback. */
    class Busy(message: String) : HydrapackException(message) {
        override val kind = "Busy"
    }

    /** It is there but cannot be read. */
    class Io(message: String, cause: Throwable? = null) : HydrapackException(message, cause) {
        override val kind = "Io"
    }

    /** ExecuTorch failed while running. */
    class Runtime(message: String, cause: Throwable? = null) : HydrapackException(message, cause) {
        override val kind = "Runtime"
    }
}
