"""What a training has cost in plain prose: the loss there of what was trained, against the model as it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftbook.core import specs
from peftbook.core.records import Record
from peftbook.decision.candidates import Candidate
from peftbook.evidence import comparison
from peftbook.evidence.stats import Interval
from peftbook.tasks.prose import DATA_SHA256

TOKENS = 64  # of each of the 17 texts


def prose_is_measured(run: specs.Run) -> bool:
    """Whether a run measures the loss on plain prose: tested runs that train, and the untuned model without shots."""
    tested = run.purpose == "quality" and run.evaluation.split == "test"
    return tested and (run.method.trains or not run.method.examples_shown)


def prose_probe(run: specs.Run) -> specs.Probe:
    """The measurement of what a run trained: a record of its own, so that the run's stays what it is."""
    settings: Any = {"tokens": TOKENS, "data": DATA_SHA256}
    return specs.Probe(
        measure="curves.prose_loss",
        settings=settings,
        runs=(run,),
        model=run.model,
        seed=run.seed,
        platform=run.platform,
    )


def forgotten(own: Candidate, base: Candidate, prose: Mapping[str, Record]) -> Interval | None:
    """Loss on prose minus the untuned model's, nats per token, paired over texts and the book's interval of it.

    prose: by key of the run the record of its `prose_probe`.  None where one of them was not measured.
    """
    if any(not one.finished or any(record.key not in prose for record in one.done) for one in (own, base)):
        return None
    tuned, plain = ({seed: prose[record.key] for seed, record in one.finished.items()} for one in (own, base))
    first, second = comparison.shared(tuned, plain, (own.random, base.random))
    return comparison.paired(first, second, "loss_nats") if first else None
