"""Later: the large libraries are imported in less time, since part of what they do is put off.

While they are imported no cycles are looked for: the collector would walk through a million objects that stay, again
and again, and once more when the process ends. It never walks through them, then or later.

bitsandbytes asks torch to compile four functions while it is imported, which loads the compiler. That is a third of the
seconds in which a run loads its libraries, and runs on a CPU call none of the four. They are compiled when they are
called, by the same call of `torch.compile`.

The packages of BERTScore and ROUGE import what draws, reads tables and stems, half a second of every run that writes
texts, which calls none of it; transformers' losses all that optimises in scipy, for one function that those of language
models never call. It is imported when it is called.

transformers reads the files of all its models twice with each import, to learn what they export; here once.
"""

from __future__ import annotations

import builtins
import functools
import gc
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
        around, absent = AROUND.get(fullname, nullcontext), WITHOUT.get(fullname, ())
        if around is nullcontext and not absent:
            return None
        others = (finder.find_spec for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (find(fullname, path, target) for find in others)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_inside(module: ModuleType) -> None:
                if absent:
                    vars(module)["__builtins__"] = {**vars(builtins), "__import__": importing_later(absent)}
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
def models_read_once() -> Iterator[None]:
    """Afterwards each file of transformers' models is read once, not twice, for the list of what it exports.

    transformers remembers 128 folders, of which it has more, so that it has forgotten each when it asks again; and it
    cuts every file into lines to find the one with which its list begins. A version that does neither stays as it is.
    """
    yield
    module: Any = sys.modules["transformers.utils.import_utils"]
    of_text: Any = getattr(module, "fetch__all__", None)
    of_folder: Any = getattr(module, "create_import_structure_from_path", None)
    if of_text is None or not hasattr(of_folder, "cache_info"):
        return

    def of_its_end(text: str) -> list[str]:
        return of_text(text[text.rfind("\n__all__") + 1 :])

    module.fetch__all__ = functools.wraps(of_text)(of_its_end)
    module.create_import_structure_from_path = functools.cache(of_folder.__wrapped__)


class Later:
    """What a module has imported and not used, by its dotted name: it is imported when it is called."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Later:
        return Later(f"{self._name}.{name}")

    def __call__(self, *args: Any, **named: Any) -> Any:
        return pkgutil.resolve_name(self._name)(*args, **named)


def importing_later(absent: Sequence[str]) -> Callable[..., Any]:
    """The `__import__` of a module for which some packages are a `Later` each."""

    def load(name: str, above: Mapping, inside: Mapping | None, names: Sequence[str], level: int) -> Any:
        package = name.partition(".")[0]
        if level or package not in absent:
            return builtins.__import__(name, above, inside, names, level)
        return Later(name if names else package)

    return load


AROUND: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "bitsandbytes.backends.default.ops": compiled_when_called,
    "peft": uncollected,
    "ray": uncollected,
    "torch": uncollected,
    "torch.distributed.fsdp": uncollected,
    "transformers": uncollected,
    "transformers.modeling_utils": uncollected,
    "transformers.utils.import_utils": models_read_once,
}
PICTURES = ("matplotlib", "mpl_toolkits", "pandas")
DETECTION = ("deformable_detr", "for_object_detection", "grounding_dino", "lw_detr", "rf_detr", "rt_detr")
WITHOUT: dict[str, tuple[str, ...]] = {  # module → packages that it has when it calls them
    "bert_score.score": PICTURES,
    "bert_score.scorer": PICTURES,
    "rouge_score.rouge_scorer": ("nltk",),
    "rouge_score.tokenizers": ("nltk",),
    **{f"transformers.loss.loss_{name}": ("scipy",) for name in DETECTION},
}


def put_off() -> None:
    """From now on, should one of these modules be imported."""
    if not any(isinstance(one, Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, Finder())
