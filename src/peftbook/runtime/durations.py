"""Durations of runs: by records made here, else by the time model, else by records made elsewhere."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from peftbook.core.records import Record, Store
from peftbook.core.specs import Probe, Run
from peftbook.runtime.hardware import cpu_model
from peftbook.runtime.precision import products_here
from peftbook.runtime.processes import run_child

Spec = Run | Probe
Predict = Callable[[Sequence[Spec]], Sequence[float | None]]


@dataclass
class Estimates:
    """How long a run takes, from the records made here and the runs of this queue, else predicted.

    elsewhere: seconds on other machines, used only where nothing better is known.
    """

    seconds: dict[Hashable, list[float]] = field(default_factory=lambda: defaultdict(list))
    elsewhere: dict[Hashable, list[float]] = field(default_factory=lambda: defaultdict(list))
    predicted: dict[Hashable, float | None] = field(default_factory=dict)
    asked: bool = False

    def note(self, spec: Spec, seconds: float, here: bool = True) -> None:
        """Add the duration of a finished run."""
        known = self.seconds if here else self.elsewhere
        known[kind_of_work(spec)].append(seconds)
        known[spec.platform].append(seconds)

    def read(self, store: Store) -> None:
        """Add the duration of every record at hand."""
        for record in store.all():
            if (seconds := record.wall_seconds) is not None:
                self.note(record.spec, seconds, made_here(record))

    def of(self, spec: Spec) -> float | None:
        """Median seconds of runs of the same kind here; else predicted for the kind; else the median elsewhere; else
        the median of all runs of the platform; else None."""
        kind = kind_of_work(spec)
        if seen := self.seconds.get(kind):
            return statistics.median(seen)
        if (predicted := self.predicted.get(kind)) is not None:
            return predicted
        for known, name in ((self.elsewhere, kind), (self.seconds, spec.platform), (self.elsewhere, spec.platform)):
            if seen := known.get(name):
                return statistics.median(seen)
        return None

    def foresee(self, specs: Sequence[Spec], predict: Predict) -> None:
        """Predict one run of each kind that has neither a duration nor a prediction.

        If there are runs, the first call always asks for predictions, even for none: asking measures the machine, and
        every record states the prediction at its rates.
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
    """What determines a run's duration: platform, task, method, tokens, texts; or the measure of a probe."""
    if isinstance(spec, Probe):
        return spec.platform, spec.measure, len(spec.runs)
    tokens = spec.budget.tokens if spec.budget else 0
    shots = spec.method.examples_shown
    return spec.platform, spec.task.name, spec.method.full_kind, shots, tokens, spec.evaluation.n_generate


def predicted_here(specs: Sequence[Spec], threads: int = 1) -> list[float | None]:
    """Seconds of runs on this machine, predicted by the time model; None for runs that it does not cover.

    A child process computes them, and first measures the machine if that was never done.  threads: of each run.
    """
    told = "".join(f"{spec.canonical()}\n" for spec in specs)
    try:
        said = run_child("-m", "peftbook.training.estimate", text=told, threads=threads)
    except RuntimeError:
        return [None] * len(specs)
    return [float(line) if line else None for line in said]


def made_here(record: Record) -> bool:
    """Whether a record comes from a machine like this one: the same processor, the same handling of bfloat16."""
    if record.spec.platform != "cpu":
        return True
    native = record.provenance.get("bf16_products", "native") == "native"
    return record.provenance.get("cpu") == cpu_model() and native == products_here().native
