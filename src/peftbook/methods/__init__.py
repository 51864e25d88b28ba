"""The registry of methods: a file of this package is a method, found because it is there. No torch is imported."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from peftbook.core.errors import InputError
from peftbook.methods.method import Look, Method, Preset

__all__ = [
    "Look", "Method", "Preset", "arm_looks", "get", "kinds", "look_of", "preset", "preset_method", "presets", "read",
    "usual",
]  # fmt: skip


@functools.cache
def modules() -> tuple[ModuleType, ...]:
    """The files of this package."""
    return tuple(importlib.import_module(f"{__name__}.{one.name}") for one in pkgutil.iter_modules(__path__))


@functools.cache
def kinds() -> dict[str, type[Method]]:
    """Kind → method, in the order of their presets; those that have none come last."""
    methods = [
        value
        for module in modules()
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    by_kind = {method.model_fields["kind"].default: method for method in methods if method is not Method}
    order = [given.method.kind for given in presets()]
    return dict(sorted(by_kind.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


@functools.cache
def presets() -> tuple[Preset, ...]:
    """The methods as they are offered, each with its usual settings, in the order in which they are offered."""
    found = [given for module in modules() for given in getattr(module, "PRESETS", ())]
    return tuple(sorted(found, key=lambda given: given.place))


@functools.cache
def usual() -> dict[str, Method]:
    """Kind → the method with its usual settings, of all that have a preset of their own name."""
    return {given.name: given.method for given in presets() if given.name in kinds()}


@functools.cache
def arm_looks() -> dict[str, Look]:
    """Name of a preset → how it looks in charts."""
    return {given.name: given.look for given in presets() if given.look is not None}


def look_of(method: Method) -> Look:
    """How a method looks in charts: as the preset that it is, or the first of its kind; a star where there is none."""
    alike = [given for given in presets() if given.method.kind == method.kind and given.look is not None]
    given = next((given for given in alike if given.method == method), next(iter(alike), None))
    return Look(method.label, "*") if given is None or given.look is None else given.look


def get(kind: object) -> type[Method]:
    """The method of a kind. Raises InputError naming the kinds there are."""
    if not isinstance(kind, str) or kind not in kinds():
        raise InputError(f"Unknown method {kind!r}: choose one of {', '.join(sorted(kinds()))}.")
    return kinds()[kind]


def preset(name: str) -> Preset:
    """A preset by its name, or one made of a kind and settings: `lora:rank=8`, `peft:BOFT:boft_block_size=4`.

    A made one has the learning rate of its kind's first preset, of a kind that has none that of LoRA. Raises InputError
    naming the bad value.
    """
    known = {given.name: given for given in presets()}
    kind, *words = name.split(":")
    if name in known or not words:
        if name not in known:
            raise InputError(f"Unknown method {name!r}: choose one of {', '.join(sorted(known))}.")
        return known[name]
    method = get(kind).from_words(words)
    like = next((given for given in presets() if given.method.kind == kind), known["lora"])
    return Preset(name, method, f"{method.label}, as it is named.", swept=like.swept, rate=like.rate)


def preset_method(name: str, **fields: Any) -> Method:
    """The method of a preset, with other fields. Raises InputError naming the bad value."""
    method = preset(name).method
    return method.changed(**fields) if fields else method


def read(value: object) -> object:
    """A method from its fields, by its kind; what is no mapping stays as it is. Raises InputError for no such kind."""
    return get(value.get("kind")).model_validate(value) if isinstance(value, Mapping) else value
