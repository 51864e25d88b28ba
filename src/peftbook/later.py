"""Later: the large libraries are imported in less time, since part of what they do is put off.

While they are imported no cycles are looked for: the collector would walk through a million objects that stay, again
and again, and once more when the process ends. It never walks through them, then or later.

bitsandbytes asks torch to compile four functions while it is imported, which loads the compiler. That is a third of the
seconds in which a run loads its libraries, and runs on a CPU call none of the four. They are compiled when they are
called, by the same call of `torch.compile`.

transformers' losses ask scipy for one function of all that optimises there, which those of language models never call.
"""

from __future__ import annotations

import functools
import gc
import importlib
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


@contextmanager
def assigned_when_called() -> Iterator[None]:
    """Inside, `scipy.optimize` is there without being loaded: its `linear_sum_assignment` loads it when it is called,
    and whatever else is asked of it does at once.
    """
    name = "scipy.optimize"
    if name in sys.modules:
        yield
        return
    stand_in = ModuleType(name)

    def loaded() -> ModuleType:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return importlib.import_module(name)

    def linear_sum_assignment(*args: Any, **named: Any) -> Any:
        return loaded().linear_sum_assignment(*args, **named)

    def other(attribute: str) -> Any:
        if attribute.startswith("__"):  # what the import statement looks for
            raise AttributeError(attribute)
        return getattr(loaded(), attribute)

    vars(stand_in).update(linear_sum_assignment=linear_sum_assignment, __getattr__=other)
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


AROUND: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "bitsandbytes.backends.default.ops": compiled_when_called,
    "peft": uncollected,
    "ray": uncollected,
    "torch": uncollected,
    "torch.distributed.fsdp": uncollected,
    "transformers": uncollected,
    "transformers.loss.loss_utils": assigned_when_called,
    "transformers.modeling_utils": uncollected,
}


def put_off() -> None:
    """From now on, should one of these modules be imported."""
    if not any(isinstance(one, Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, Finder())
