"""The one error users see: a sentence, and exit code 2."""


class InputError(Exception):
    """Unusable input. The message says what is wrong, in which file and key, and how to mend it."""
