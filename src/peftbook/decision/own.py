"""The user's own metrics in a comparison: a column more for every record, made from its texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peftbook.core.errors import InputError
from peftbook.core.records import Record
from peftbook.decision.own_metrics import Metric, own_scores
from peftbook.decision.terms import MEASURES, Measure
from peftbook.tasks import TaskExample


def measures_with(metrics: Sequence[Metric]) -> dict[str, Measure]:
    """By name the measures that every comparison has, and those that the user declares."""
    return MEASURES | {one.name: Measure.own(one) for one in metrics}


def with_own_scores(
    records: Sequence[Record],
    texts: Mapping[str, Sequence[str]],
    examples: Sequence[TaskExample],
    metrics: Sequence[Metric],
) -> list[Record]:
    """The records, with the scores of the metrics beside the others that they hold; those without texts as they are.

    texts, examples: as of `decision.compare`. Raises InputError for texts without examples, and as `own_scores` does.
    """
    written = [record for record in records if texts.get(record.key)]
    if not (metrics and written):
        return list(records)
    targets = [example.target for example in examples]
    if not targets:
        raise InputError(f"Metric {metrics[0].name!r} compares texts with their targets: give the test examples.")
    found: dict[str, dict[str, list[float] | list[str]]] = {record.key: {} for record in written}
    for metric in metrics:
        scores = own_scores(metric, [texts[record.key] for record in written], targets)
        for record, own in zip(written, scores, strict=True):
            found[record.key][Measure.own(metric).column] = list(own)
    return [
        record.model_copy(update={"per_example": {**record.per_example, **found.get(record.key, {})}})
        for record in records
    ]
