"""Exceptions: for bad input at every public entry point, and for a training that diverged."""

import importlib.util

EXTRAS = {  # module that the core does without → the extra that brings it
    "datasets": "hub", "fastapi": "studio", "jsonschema": "studio", "jupyter_book": "book", "matplotlib": "book",
    "playwright": "dev", "pptx": "slides", "pyarrow": "train", "python_multipart": "studio", "ray": "cluster",
    "rouge_score": "train", "sacrebleu": "hub", "torch": "train", "trl": "train", "uvicorn": "studio",
}  # fmt: skip


class InputError(ValueError):
    """Bad input, said in one sentence that names the value and the fix.

    The command line prints the sentence and exits with status 2.
    """


class Unknown(InputError):  # noqa: N818 — these three are answers, with HTTP's words for them
    """An id that does not exist, or no longer exists: HTTP 404."""


class Conflict(InputError):  # noqa: N818
    """A request that conflicts with the present state: HTTP 409."""


class TooLarge(InputError):  # noqa: N818
    """Input beyond a cap: HTTP 413."""


class Diverged(InputError):  # noqa: N818 — the field's word for it
    """A loss or gradient is not finite. This is a result, recorded as the run's failure."""


def need(module: str, what: str) -> None:
    """Raise InputError, naming the extra to install, if a module is missing.

    what: what needs the module, as the start of the sentence, like "The studio".
    """
    if importlib.util.find_spec(module) is None:
        raise InputError(f'{what} needs {module}: install it with `pip install "peftbook[{EXTRAS[module]}]"`.')
