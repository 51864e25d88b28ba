"""Probes: measurements that are not one training. Each is a plain function from a `specs.Probe` to its findings.

`Probe.measure` names it as `module.function`; adding one means writing the function here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftbook.core import specs
from peftbook.core.errors import InputError


@dataclass(frozen=True)
class Findings:
    """What a probe found, in the fields of a record."""

    measurements: Mapping[str, float | int | None] = field(default_factory=dict)
    curve: Mapping[str, list[float]] = field(default_factory=dict)
    per_example: Mapping[str, list[float] | list[str]] = field(default_factory=dict)
    metrics_info: Mapping[str, Any] = field(default_factory=dict)


class EnoughError(Exception):
    """Ends a training or a forward pass whose rest is not wanted."""


def measure(probe: specs.Probe) -> Findings:
    """Make the measurement: `module.function` of this package. Raises InputError for an unknown name."""
    module_name, _, name = probe.measure.partition(".")
    known = [entry.name for entry in pkgutil.iter_modules(__path__)]
    module = importlib.import_module(f"{__name__}.{module_name}") if module_name in known else None
    function: Any = getattr(module, name, None)
    if getattr(function, "__annotations__", None) != {"probe": "specs.Probe", "return": "Findings"}:
        raise InputError(f"Unknown measure {probe.measure!r}: name it as module.function.")
    return function(probe)


def positive(probe: specs.Probe, *names: str) -> list[int]:
    """Settings that are positive integers. Raises InputError for another value."""
    values = [probe.whole(name) for name in names]
    for name, value in zip(names, values, strict=True):
        if value < 1:
            raise InputError(f"The probe's {name} is {value!r}: give an integer of 1 or more.")
    return values
