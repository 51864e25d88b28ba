"""Inside a kernel: note which package modules a chapter imports and which files it reads or looks for.

Started by `kernel_startup.py`; writes a JSON file after every cell, named by `PEFTBOOK_TRACE`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

OURS = frozenset(
    {"peftbook.core", "peftbook.core.quiet", "peftbook.views.site", "peftbook.views.site.tracing"}
)  # in every kernel, chapter or not
LOOKUP = "peftbook.lookup"  # as `core.tracking` has it, which is not imported, so that only its users rest on it
SKIPPED = ("/.git/", "/.venv/", "/_build/", "/__pycache__/")


class Trace:
    """What one kernel has touched below `roots`."""

    def __init__(self, target: Path, roots: tuple[str, ...]):
        self.target = target
        self.roots = roots
        self.files: set[str] = set()
        self.lookups: set[str] = set()
        self.active = True

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Python calls this for every file opened: it must be quick and must not raise."""
        if event == LOOKUP:
            self.lookups.update(args)
        if event != "open" or not self.active or not isinstance(args[0], str):
            return
        writing = isinstance(args[1], str) and any(letter in args[1] for letter in "wax+")
        if not writing and args[0].startswith(self.roots) and not any(part in args[0] for part in SKIPPED):
            self.files.add(args[0])

    def modules(self) -> list[str]:
        """Files of the package's modules that are loaded now."""
        loaded = [
            module
            for name, module in sys.modules.copy().items()
            if name.split(".")[0] == "peftbook" and name not in OURS
        ]
        return sorted({file for module in loaded if (file := getattr(module, "__file__", None))})

    def write(self, *_: Any) -> None:
        """Write what is known so far."""
        self.active = False
        read = {name for name in self.files if not name.endswith((".py", ".pyc"))}
        found = {name for name in self.lookups if Path(name).exists()}
        told = {"files": [*self.modules(), *sorted(read | found)], "missing": sorted(self.lookups - found)}
        self.target.write_text(json.dumps(told))
        self.active = True


def start() -> None:
    """Begin, if this kernel was started by the book's build."""
    target = os.environ.pop("PEFTBOOK_TRACE", "")
    if not target:
        return
    roots = tuple(os.environ.pop("PEFTBOOK_TRACE_ROOTS", "").split(os.pathsep))
    trace = Trace(Path(target), roots)
    sys.addaudithook(trace.audit)

    from IPython import get_ipython

    get_ipython().events.register("post_run_cell", trace.write)
