"""Probes: measurements that are not one training. Each is a plain function from a `specs.Probe` to its findings.

Adding one means writing the function and adding its name to `MEASURES`; its module is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftbook import specs
from peftbook.errors import InputError

__all__ = ["MEASURES", "Findings", "measure"]

# name of the measure → module of this package that holds the function of that name
MEASURES = {
    "learning_curve": "curves",
}


@dataclass(frozen=True)
class Findings:
    """What a probe found, in the fields of a record."""

    measurements: Mapping[str, float | int | None] = field(default_factory=dict)
    curve: Mapping[str, list[float]] = field(default_factory=dict)
    per_example: Mapping[str, list[float] | list[str]] = field(default_factory=dict)
    metrics_info: Mapping[str, Any] = field(default_factory=dict)


def measure(probe: specs.Probe) -> Findings:
    """Make the measurement. Raises InputError for an unknown name."""
    if probe.measure not in MEASURES:
        raise InputError(f"Unknown measure {probe.measure!r}: choose one of {', '.join(sorted(MEASURES))}.")
    module = importlib.import_module(f"peftbook.training.probes.{MEASURES[probe.measure]}")
    return getattr(module, probe.measure)(probe)
