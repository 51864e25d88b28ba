"""What every public entry point raises for bad input, and what a training raises that got nowhere."""

import importlib.util

__all__ = ["Conflict", "Diverged", "InputError", "TooLarge", "Unknown", "need"]

EXTRAS = {  # module that the core does without → the extra that brings it
    "datasets": "hub", "fastapi": "studio", "jinja2": "studio", "jsonschema": "studio", "jupyter_book": "book",
    "matplotlib": "book", "playwright": "dev", "pptx": "slides", "python_multipart": "studio", "ray": "cluster",
    "sacrebleu": "hub", "trl": "dev", "uvicorn": "studio",
}  # fmt: skip


class InputError(ValueError):
    """Bad input, said in one sentence that names the value and the fix.

    The command line prints the sentence and exits with status 2.
    """


class Unknown(InputError):  # noqa: N818 — these three are answers, with HTTP's words for them
    """An id that nothing has, or nothing any more: 404 for who asks by HTTP."""


class Conflict(InputError):  # noqa: N818
    """What was asked for does not go with what is there now: 409."""


class TooLarge(InputError):  # noqa: N818
    """More than a cap: 413."""


class Diverged(InputError):  # noqa: N818 — the field's word for it
    """A loss or a gradient that is no finite number: a result, which is recorded as the run's failure."""


def need(module: str, what: str) -> None:
    """Raise InputError, which names the extra to install, where a module is missing that something is done with.

    what: a sentence's start, like "The studio".
    """
    if importlib.util.find_spec(module) is None:
        raise InputError(f"{what} needs {module}: install it with `pip install 'peftbook[{EXTRAS[module]}]'`.")
