"""Compiling later: bitsandbytes asks torch to compile four functions while it is imported, which loads the compiler.

That is a third of the seconds in which a run loads its libraries, and runs on a CPU call none of the four. With
`compile_later` in place they are compiled when they are called, by the same call of `torch.compile`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["compile_later"]

MODULE = "bitsandbytes.backends.default.ops"


class Finder(MetaPathFinder):
    """Finds that module as Python does; what it asks to be compiled, is compiled when it is called."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None for any other module."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == MODULE else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def put_off(module: ModuleType) -> None:
                with compiled_when_called():
                    execute(module)

            spec.loader.exec_module = put_off  # type: ignore[method-assign]
        return spec


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


def compile_later() -> None:
    """From now on, should bitsandbytes be imported."""
    if not any(isinstance(one, Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, Finder())
