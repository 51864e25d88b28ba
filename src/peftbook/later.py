"""Later: the large libraries are imported in less time, since part of what they do is put off.

While they are imported no cycles are looked for: the collector would walk through a million objects that stay, again
and again, and once more when the process ends. It never walks through them, then or later.

bitsandbytes asks torch to compile four functions while it is imported, which loads the compiler. That is a third of the
seconds in which a run loads its libraries, and runs on a CPU call none of the four. They are compiled when they are
called, by the same call of `torch.compile`.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["put_off", "uncollected"]


class Finder(MetaPathFinder):
    """Finds some modules as Python does, and has them executed inside what puts off part of it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for any other module."""
        if (around := AROUND.get(fullname)) is None:
            return None
        others = (finder.find_spec for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (find(fullname, path, target) for find in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_inside(module: ModuleType) -> None:
                with around():
                    execute(module)

            spec.loader.exec_module = execute_inside  # type: ignore[method-assign]
        return spec


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside, no cycles are looked for; what is there at its end the collector will never walk through."""
    if not gc.isenabled():  # inside another
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def compiled_when_called() -> Iterator[None]:
    """Inside, `torch.compile` returns at once."""
    import torch

    compile_now = torch.compile

    def later(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        @functools.cache
        def compiled() -> Callable[..., Any]:
            return compile_now(function, **options)

        @functools.wraps(function)
        def call(*args: Any, **named: Any) -> Any:
            return compiled()(*args, **named)

        return call

    torch.compile = later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now


AROUND: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "bitsandbytes.backends.default.ops": compiled_when_called,
    "peft": uncollected,
    "ray": uncollected,
    "torch": uncollected,
    "torch.distributed.fsdp": uncollected,
    "transformers": uncollected,
    "transformers.modeling_utils": uncollected,
}


def put_off() -> None:
    """From now on, should one of these modules be imported."""
    if not any(isinstance(one, Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, Finder())
