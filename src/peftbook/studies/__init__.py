"""Studies: one module each. A study names a claim, its source, the runs that test it and what would refute it.

A study module exposes `STUDIES`, its studies by name: one for each claim that its runs decide. Adding a study means
adding a module here and a line to `MODULES`, in the order of worth in which the queue serves them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from peftbook.errors import InputError
from peftbook.evidence.stats import Interval
from peftbook.records import Record, Store
from peftbook.specs import Probe, Run

__all__ = ["NAMES", "Quantity", "Study", "Verdict", "get_study"]

MODULES = {
    "standard": "standard",
    "coverage": "coverage",
    "methods": "methods",
    "costs": "costs",
    "benchmark": "benchmark",
    "benchmark_bleu": "benchmark",
    "benchmark_prefix": "benchmark",
    "learning_rate": "learning_rate",
    "learning_rate_by_rank": "learning_rate",
    "prompt_length": "prompt_design",
    "prompt_longer": "prompt_design",
    "prompt_init": "prompt_design",
    "codebooks_squared": "codebooks",
    "codebooks_absolute": "codebooks",
    "codebooks_bins": "codebooks",
    "weight_error": "weight_error",
    "weight_error_order": "weight_error",
    "double_quant_bits": "double_quant",
    "double_quant_loss": "double_quant",
    "data_size": "data_size",
    "targets": "targets",
    "targets_all": "targets",
    "recovery": "recovery",
    "loftq": "recovery",
    "requantised": "recovery",
    "forgetting": "forgetting",
    "intruders": "forgetting",
    "subspace": "subspace",
    "merging_latency": "merging",
    "adapter_latency": "merging",
    "merging_quality": "merging",
    "rouge_settings": "rouge_settings",
    "bertscore_negation": "rouge_settings",
    "sql_prompt": "sql",
    "sql_lora": "sql",
    "rank": "rank",
    "scaling": "scaling",
    "scaling_tuned": "scaling",
    "scaling_size": "scaling",
    "two_rates": "two_rates",
    "lora_plus": "variants",
    "pissa": "variants",
    "olora": "variants",
    "dora": "variants",
    "vera": "variants",
    "lora_fa": "variants",
    "expressiveness": "expressiveness",
    "expressiveness_depth": "expressiveness",
    "serving": "serving",
    "capacity": "capacity",
    "activations": "activations",
    "step_peaks": "activations",
    "step_seconds": "step_seconds",
    "memory": "memory",
    "memory_process": "memory",
    "lora_fa_memory": "memory",
    "quantised_step_time": "memory",
    "throughput": "throughput",
    "learning_rate_long": "learning_rate",
    "half_products": "half_products",
}
NAMES = tuple(MODULES)


@dataclass(frozen=True)
class Quantity:
    """A named result: value with its interval, unit, number of seeds and examples, and the runs behind it.

    low, high: 95 % interval, or None where the value is a count or a single measurement.
    digits: decimals to print.
    """

    value: float
    unit: str
    runs: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    n: int = 0
    digits: int = 2
    note: str = ""

    @classmethod
    def of(cls, interval: Interval, unit: str, runs: tuple[str, ...], digits: int = 3, note: str = "") -> Quantity:
        """An interval as a named quantity; where its error is over groups, the note has the one over examples."""
        if interval.by_example is not None:
            low, high = (f"{end:.{max(digits, 0)}f}".replace("-", "−") for end in interval.by_example)
            note = f"95 % interval over {interval.groups} groups of examples; over single examples {low} to {high}"
        return cls(
            interval.mean, unit, runs, interval.low, interval.high, interval.seeds, interval.examples, digits, note
        )


@dataclass(frozen=True)
class Verdict:
    """What the data decided: reproduced, equivalent, refuted, direction only or undecided; or why they do not.

    `measured` is a study that puts no claim to the test, `not yet run` and `not testable here` say what is missing.
    quantities: the numbers that decided, the deciding one first.
    """

    outcome: str
    sentence: str
    quantities: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "sentence", typeset(self.sentence))


@dataclass(frozen=True)
class Study:
    """A question put to runs.

    runs: given the store, every run that is already determined; later stages appear once earlier ones have records.
    quantities: named values from the records; verdict: the one rule of the book applied to them.
    refuted_if: what would refute the claim, written before the runs.
    """

    name: str
    title: str
    claim: str
    source: str
    refuted_if: str
    does_not_show: str
    chapter: str
    runs: Callable[[Store], Sequence[Run | Probe]]
    quantities: Callable[[Store], Mapping[str, Quantity]]
    verdict: Callable[[Store], Verdict]

    def __post_init__(self):
        for name in ("claim", "refuted_if", "does_not_show"):
            text = typeset(getattr(self, name))
            object.__setattr__(self, name, text[:1].upper() + text[1:])

    def records(self, store: Store) -> list[Record]:
        """The records at hand of the runs determined so far."""
        return [record for run in self.runs(store) if (record := store.get(run)) is not None]

    def missing(self, store: Store) -> list[Run | Probe]:
        """The runs determined so far that have no record."""
        return [run for run in self.runs(store) if run not in store]


def typeset(text: str) -> str:
    """Numbers as the book prints them: a minus sign before them, a space before %."""
    return re.sub(r"(?<![\w.)-])-(?=[\d.])", "−", re.sub(r"(?<=\d)%", " %", text))


def get_study(name: str) -> Study:
    """Load a study by name. Raises InputError for an unknown one."""
    if name not in NAMES:
        raise InputError(f"Unknown study {name!r}: choose one of {', '.join(NAMES)}.")
    return importlib.import_module(f"peftbook.studies.{MODULES[name]}").STUDIES[name]
