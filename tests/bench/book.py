"""How long the book builds: cold, warm, and after an edit of one chapter."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from peftbook.core.errors import InputError


def book_bench(
    root: Path,
    command: Sequence[str] | None = None,
    *,
    chapter: str = "book/lora.md",
    report: Callable[[str], None] = print,
) -> list[dict]:
    """Seconds of three builds of the book at `root`: cold (no `_build`), warm, after an edit of one chapter's prose.

    command: what builds the book, run in `root`; by default Jupyter Book without flags.
    `_build` is moved aside and put back, the chapter's bytes and times too, whatever happens in between.
    Raises InputError when a build fails, and when an earlier call was killed and left its files aside.
    """
    root = Path(root).resolve()
    page = root / chapter
    if not page.is_file():
        raise InputError(f"There is no chapter {str(page)!r} to touch: give the root of the book and one of its pages.")
    command = list(command or (str(Path(sys.executable).with_name("jupyter-book")), "build", str(root)))
    rows = []
    with build_aside(root), kept(page):
        for build in ("cold", "warm", "touched"):
            report(f"{build} build")
            if build == "touched":
                page.write_bytes(page.read_bytes() + b"\n\nA sentence that `make bench WHAT=book` adds and removes.\n")
            rows.append({"build": build, "seconds": timed(command, root), "command": command, "chapter": chapter})
    return rows


@contextlib.contextmanager
def build_aside(root: Path) -> Iterator[None]:
    """No `_build` inside the block; the old one is back after it."""
    build, aside = root / "_build", root / ".bench-aside"
    if aside.exists():
        raise InputError(f"{str(aside)!r} is left from a bench that was killed: move its content back, delete it.")
    aside.mkdir()
    try:
        if build.exists():
            build.rename(aside / "_build")
        yield
    finally:
        shutil.rmtree(build, ignore_errors=True)
        if (aside / "_build").exists():
            (aside / "_build").rename(build)
        aside.rmdir()


@contextlib.contextmanager
def kept(path: Path) -> Iterator[None]:
    """The file has the same bytes and times after the block as before it."""
    content, times = path.read_bytes(), path.stat()
    try:
        yield
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def timed(command: Sequence[str], folder: Path) -> float:
    """Wall seconds of a command. Raises InputError with its last line when it fails."""
    began = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"{command[0]!r} cannot be run ({error.strerror}): give another command.") from None
    seconds = time.perf_counter() - began
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise InputError(f"`{' '.join(command)}` failed with status {done.returncode}: {said}")
    return seconds
