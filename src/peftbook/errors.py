"""The one exception that every public entry point raises for bad input."""

__all__ = ["InputError"]


class InputError(ValueError):
    """Bad input, said in one sentence that names the value and the fix.

    The command line prints the sentence and exits with status 2.
    """
