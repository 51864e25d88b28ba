"""What every public entry point raises for bad input, and what a training raises that got nowhere."""

__all__ = ["Diverged", "InputError"]


class InputError(ValueError):
    """Bad input, said in one sentence that names the value and the fix.

    The command line prints the sentence and exits with status 2.
    """


class Diverged(InputError):  # noqa: N818 — the field's word for it
    """A loss or a gradient that is no finite number: a result, which is recorded as the run's failure."""
