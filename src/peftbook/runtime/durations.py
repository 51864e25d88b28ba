"""Durations: how long a run takes, by what was seen here, else by the time model, else by what was seen elsewhere."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from peftbook.core.progress import duration
from peftbook.core.records import Record, Store
from peftbook.core.specs import Probe, Run
from peftbook.runtime.hardware import cpu_model
from peftbook.runtime.precision import products_here
from peftbook.runtime.processes import run_child

__all__ = ["Estimates", "Predict", "Spec", "predicted_here"]

SLOW = 10.0  # times as long as on the book's machines, from which a run says so before it starts

Spec = Run | Probe
Predict = Callable[[Sequence[Spec]], Sequence[float | None]]


@dataclass
class Estimates:
    """How long a run takes, from the records made here and from what this queue has seen; else as predicted.

    elsewhere: of runs on other machines, which say what to expect only where nothing better is known.
    """

    seconds: dict[Hashable, list[float]] = field(default_factory=lambda: defaultdict(list))
    elsewhere: dict[Hashable, list[float]] = field(default_factory=lambda: defaultdict(list))
    predicted: dict[Hashable, float | None] = field(default_factory=dict)
    asked: bool = False

    def note(self, spec: Spec, seconds: float, here: bool = True) -> None:
        """One more run that took so long."""
        known = self.seconds if here else self.elsewhere
        known[kind_of_work(spec)].append(seconds)
        known[spec.platform].append(seconds)

    def read(self, store: Store) -> None:
        """Note how long every record at hand took to make."""
        for record in store.all():
            if (seconds := record.wall_seconds) is not None:
                self.note(record.spec, seconds, made_here(record))

    def of(self, spec: Spec) -> float | None:
        """Median seconds of runs with the same kind of work, else what is predicted for one of them, else the median
        on other machines, else of all runs of the platform, else None."""
        kind = kind_of_work(spec)
        if seen := self.seconds.get(kind):
            return statistics.median(seen)
        if (predicted := self.predicted.get(kind)) is not None:
            return predicted
        for known, name in ((self.elsewhere, kind), (self.seconds, spec.platform), (self.elsewhere, spec.platform)):
            if seen := known.get(name):
                return statistics.median(seen)
        return None

    def slow_words(self, spec: Spec) -> str:
        """That a run takes far longer here than it did on the machines of its kind's records; else empty."""
        here, there = self.of(spec), statistics.median(self.elsewhere.get(kind_of_work(spec)) or [0.0])
        if not here or not there or here < SLOW * there:
            return ""
        return (
            f"This takes about {duration(here)} here and took {duration(there)} on the machine of the book's records: "
            "`peftbook doctor` says what this machine has."
        )

    def foresee(self, specs: Sequence[Spec], predict: Predict) -> None:
        """Have one run of every kind predicted that was neither seen nor asked for.

        Where there are runs at all the first call asks, if for nothing: asking measures the machine, by whose rates
        each record will say what was predicted.
        """
        new: dict[Hashable, Spec] = {}
        for spec in specs:
            kind = kind_of_work(spec)
            if kind not in self.predicted and not self.seconds.get(kind):
                new.setdefault(kind, spec)
        if new or (specs and not self.asked):
            self.asked = True
            self.predicted |= dict(zip(new, predict(list(new.values())), strict=True))


def kind_of_work(spec: Spec) -> Hashable:
    """What makes two runs take about equally long: platform, task, method, tokens, texts; or the measure of a probe."""
    if isinstance(spec, Probe):
        return spec.platform, spec.measure, len(spec.runs)
    tokens = spec.budget.tokens if spec.budget else 0
    shots = spec.method.examples_shown
    return spec.platform, spec.task.name, spec.method.full_kind, shots, tokens, spec.evaluation.n_generate


def predicted_here(specs: Sequence[Spec], threads: int = 1) -> list[float | None]:
    """Seconds that runs will take on this machine, by the time model; None for those that it does not know.

    Another process computes them, after measuring the machine if that was never done. threads: of each run.
    """
    told = "".join(f"{spec.canonical()}\n" for spec in specs)
    try:
        said = run_child("-m", "peftbook.training.estimate", text=told, threads=threads)
    except RuntimeError:
        return [None] * len(specs)
    return [float(line) if line else None for line in said]


def made_here(record: Record) -> bool:
    """Whether a record comes from a machine like this one: that processor, multiplying bfloat16 as this one does."""
    if record.spec.platform != "cpu":
        return True
    native = record.provenance.get("bf16_products", "native") == "native"
    return record.provenance.get("cpu") == cpu_model() and native == products_here().native
