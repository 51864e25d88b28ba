"""Candidates: the records of one model with one method, and what the table shows of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record
from peftbook.decision.labels import model_label
from peftbook.decision.shares import ends_of_share
from peftbook.decision.terms import Measure, Row, Skewed
from peftbook.evidence import comparison, metrics
from peftbook.evidence.stats import Groups, Interval


@dataclass
class Candidate:
    """The records of one model with one method, by seed. run: of the first that was met."""

    run: specs.Run
    records: dict[int, Record]

    @property
    def random(self) -> bool:
        """Whether a seed changes anything: not where nothing is trained and no examples are drawn."""
        return self.run.method.random

    @property
    def finished(self) -> dict[int, Record]:
        return {seed: record for seed, record in self.records.items() if not record.failure}

    @property
    def done(self) -> list[Record]:
        """What has finished, in the order of the seeds."""
        return list(self.finished.values())

    def has(self, column: str) -> bool:
        """Whether something has finished, and all of it was scored by this column."""
        return comparison.has_column(self.done, column)

    @property
    def failure(self) -> str:
        """Why it is not compared: what is left of it after a failed seed is a choice of the lucky ones."""
        failed = [one.failure for one in self.records.values() if one.failure]
        return f"{len(failed)} of {len(self.records)} runs failed: {failed[0]}" if failed else ""

    @property
    def base_parameters(self) -> int:
        """Parameters of the model without what was added to it; 0 where no record says."""
        added = self.run.method.efficient
        counts = [
            int(one.measurements.get("total_parameters") or 0)
            - added * int(one.measurements.get("trainable_parameters") or 0)
            for one in self.done
        ]
        return max(counts, default=0)


def group_records(records: Sequence[Record]) -> list[Candidate]:
    """The records by everything but the seed. Raises InputError where they cannot be compared."""
    if not records:
        raise InputError("There is no finished run to compare yet: wait for the first one.")
    candidates: dict[str, Candidate] = {}
    first: specs.Run | None = None
    for record in records:
        run = record.spec
        if not isinstance(run, specs.Run) or run.purpose != "quality":
            raise InputError(f"Record {record.short_key} is no quality run: compare trained and untuned models only.")
        first = first or run
        if (run.task, run.evaluation) != (first.task, first.evaluation):
            raise InputError(
                f"Runs {first.key[:12]} and {run.key[:12]} were not scored on the same test examples in the same way: "
                "compare the runs of one plan."
            )
        candidates.setdefault(run.model_copy(update={"seed": 0}).key, Candidate(run, {})).records[run.seed] = record
    for candidate in candidates.values():
        candidate.records = dict(sorted(candidate.records.items()))
    return list(candidates.values())


def describe_row(label: str, own: Candidate, measures: Sequence[Measure], base: int, groups: Groups = ()) -> Row:
    """The row without its differences. base: parameters of the model without what was added."""
    done = own.done

    def measured(name: str) -> list[float]:
        return [float(one.measurements.get(name) or 0) for one in done]

    trainable = int(max(measured("trainable_parameters"), default=0))
    stored = int(max(measured("adapter_bytes"), default=0))
    seconds = measured("train_seconds")
    return Row(
        label=label,
        model=model_label(own.run.model.name),
        method=own.run.method,
        run=next(iter(own.records.values())).spec,  # type: ignore[arg-type]
        seeds=tuple(own.records) if own.random else (),
        scores={one.name: score(done, one, groups) for one in measures if own.has(one.column)},
        trainable_parameters=trainable,
        model_parameters=base,
        adapter_bytes=stored or 4 * trainable,  # what is trained is saved in float32
        train_seconds=math.fsum(seconds) / len(seconds) if seconds else 0.0,
        peak_memory_bytes=int(max(measured("peak_memory_bytes"), default=0)),
        runs=comparison.keys_of(list(own.records.values())),
        failure=own.failure,
    )


def score(records: Sequence[Record], measure: Measure, groups: Groups = ()) -> Interval:
    """The book's interval of a score, within what such a score can be; of perplexity exp of the loss's."""
    one = comparison.score(records, measure.column, groups)
    if measure.share:
        table = comparison.table(records, measure.column)
        ends = ends_of_share(one, table, groups[: table.shape[1]])
        return one if ends == (one.low, one.high) else Skewed(**vars(one), ends=ends)
    if measure.name != "perplexity":
        return one
    mean, low, high = (metrics.perplexity([nats], [1]) for nats in (one.mean, one.low, one.high))
    half = (high - low) / 2
    return Skewed(mean, half, math.nan, math.nan, math.nan, one.seeds, one.examples, one.groups, ends=(low, high))


def encoder_in_words(records: Sequence[Record]) -> str:
    """BERTScore's encoder; empty where it was not computed. Raises InputError where the runs used several."""
    known = {str(sorted(info.items())): info for one in records if (info := one.metrics_info.get("bertscore"))}
    if len(known) > 1:
        names = ", ".join(sorted(str(info.get("name")) for info in known.values()))
        raise InputError(f"BERTScore was computed with several encoders ({names}): their scores cannot be compared.")
    for info in known.values():
        scale = "rescaled" if info.get("rescaled") else "not rescaled"
        return f"{info.get('name')}, layer {info.get('layer')}, {scale}, sha256 {str(info.get('sha256'))[:12]}"
    return ""
