"""Decision: records of one comparison to its table and to what should be taken; studio and command line share it.

Each score and each paired difference has the book's 95 % interval, `stats.score_interval`, over shared seeds and test
examples, or over clusters where examples share a group or nearly an input (`tasks.groups_of`); of shares near 0 or 1
that of `shares`. Perplexity is compared through the loss. The decision is about one measure, and has two questions,
each answered at a family-wise level of 5 %:

- Which rows may be the best? One-sided comparisons of each with every other, corrected by Bonferroni (`pairs`).
- Which rows beat the untuned model? Holm's step-down procedure over these comparisons.

What cannot be told from the best is not thereby equal to it. A row is only recommended if what it may give up, by the
upper end of the 90 % interval, is at most a margin that is stated; else the answer is that there are too few test
examples, or seeds, and how many would be needed (`recommendation`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import compress
from typing import Any

from peftbook.core.errors import InputError
from peftbook.core.records import Record
from peftbook.decision.candidates import Candidate, describe_row, encoder_in_words, group_records
from peftbook.decision.cautions import list_cautions
from peftbook.decision.copying import commonest_target, copies, score_of
from peftbook.decision.forgetting import forgotten
from peftbook.decision.labels import label_runs
from peftbook.decision.own import measures_with, with_own_scores
from peftbook.decision.own_metrics import Metric
from peftbook.decision.pairs import beats_baseline, contrast, detect, order, pair_up
from peftbook.decision.recommendation import recommend
from peftbook.decision.terms import COSTS, MEASURES, Comparison, Measure, Pair, Row
from peftbook.evidence.comparison import examples_of, table
from peftbook.evidence.stats import FEWEST_EXAMPLES, Interval
from peftbook.methods.untuned import Untuned
from peftbook.tasks import TaskExample, groups_of

__all__ = ["COSTS", "MEASURES", "Comparison", "Row", "check_choices", "compare", "pareto"]

LEVEL = 0.05  # family-wise, of each of the two questions
CONTENDERS = 3  # whose texts are shown side by side


def compare(
    records: Sequence[Record],
    texts: Mapping[str, Sequence[str]],
    examples: Sequence[TaskExample],
    *,
    measure: str | Measure = "rougeL",
    margin: float | None = None,
    level: float = LEVEL,
    cost: str = "gigabyte_seconds",
    tuned: bool | None = False,
    metrics: Sequence[Metric] = (),
    prose: Mapping[str, Record] | None = None,
    leaked: Collection[str] = (),
    warnings: Sequence[str] = (),
) -> Comparison:
    """The table of all records and what to take.

    records: quality runs of one task, scored on the same test examples.  texts: generated, by key of the record.
    examples: of the split that was scored, in its order; may be empty.  metrics: the user's own, computed from texts
    and examples here.  measure: what decides, one of MEASURES, the name of such a metric, or another
    whose column the records have.
    margin: differences below it do not matter; None is the measure's own.  cost: what "cheapest" is about, after the
    size of the model, one of COSTS.  tuned: whether the learning rates were chosen on this data's validation rows, None
    where some were.  prose: by key of a record what `prose_probe` measured of its run.
    leaked: ids of examples whose input is nearly that of a training row; the others are compared apart too.
    warnings: what else the rows do not carry, in sentences.
    Raises InputError for records that cannot be compared and for an unknown or missing measure.
    """
    given = measure if isinstance(measure, Measure) else None
    check_choices("rougeL" if given else measure, cost, margin, metrics)  # type: ignore[arg-type]
    known = measures_with(metrics) | ({given.name: given} if given else {})
    deciding = given or known[measure]  # type: ignore[index]
    margin = deciding.margin if margin is None else margin
    candidates = group_records(with_own_scores(records, texts, examples, metrics))
    measures = measures_of(candidates, deciding, known)
    scored, most = (
        max(examples_of(one.done, each.column) for each in by for one in candidates if one.has(each.column))
        for by in ((deciding,), measures)
    )
    if examples and len(examples) < most:
        raise InputError(f"{most} test examples were scored and {len(examples)} are given: give the whole split.")
    groups = groups_of(examples)
    own = next((one for one in metrics if one.name == deciding.name), None)
    labelled = dict(zip(label_runs([one.run for one in candidates]), candidates, strict=True))
    base = {one.run.model: 0 for one in candidates}
    for one in candidates:
        base[one.run.model] = max(base[one.run.model], one.base_parameters)
    rows = [describe_row(label, one, measures, base[one.run.model], groups) for label, one in labelled.items()]
    rows = with_forgotten(rows, labelled, prose or {})
    contest = [row for row in rows if not row.failure and deciding.name in row.scores]
    contest.sort(key=lambda row: (-deciding.sign * row.scores[deciding.name].mean, row.untuned, row.label))
    competing = {row.label: labelled[row.label] for row in contest}
    pairs = pair_up(competing, measures, deciding, groups)
    if scored >= FEWEST_EXAMPLES:
        pairs = detect(pairs, deciding, len(contest), level)
    tested, commonest = examples[:scored], commonest_target(examples[:scored])
    by_deciding = tested, deciding, groups[:scored], own
    found = Comparison(
        rows=(*mark(contest, pairs, deciding, level, scored), *(row for row in rows if row not in contest)),
        measure=deciding,
        pairs=pairs,
        measures=measures,
        test_examples=scored,
        seeds=max((len(row.seeds) for row in rows), default=0),
        margin=margin,
        level=level,
        cost=cost,
        encoder=encoder_in_words(records),
        hardware=tuple(sorted({record.hardware for record in records if record.hardware})),
        copying=score_of(copies(tested), *by_deciding),
        constant=score_of([commonest] * len(tested) if commonest else [], *by_deciding),
        commonest=commonest,
        metrics=tuple(metrics),
        test_rows=len(examples),
        leaked=sum(example.id in leaked for example in tested),
    )
    found = dataclasses.replace(found, recommendation=recommend(found))
    contenders = {label: competing[label] for label in contenders_of(found)}
    found = dataclasses.replace(found, contrasts=contrast(contenders, deciding, texts, examples, groups))
    if 0 < found.leaked < scored:
        fresh = [example.id not in leaked for example in examples]
        kept = [record.model_copy(update={"per_example": where(record.per_example, fresh)}) for record in records]
        written = where(texts, fresh)
        apart = compare(
            kept, written, [*compress(examples, fresh)], measure=deciding, margin=margin, level=level, cost=cost,
            tuned=tuned, metrics=metrics, prose=prose,
        )  # fmt: skip
        found = dataclasses.replace(found, unseen=apart)
    return dataclasses.replace(found, cautions=(*warnings, *list_cautions(found, tuned)))


def contenders_of(found: Comparison) -> list[str]:
    """Labels of the rows whose texts are worth reading: the one to take, or the leader, and those that may be as good,
    best mean first; the next best if there is none.
    """
    told, labels = found.recommendation, [row.label for row in found.contest]
    first = told.row or told.leader
    equals = [label for label in labels if label in told.equals and (first is None or label != first.label)]
    others = equals or [label for label in labels if first is None or label != first.label]
    return [*([first.label] if first else []), *others][: CONTENDERS if equals else 2]


def where(columns: Mapping[str, Sequence[Any]], chosen: Sequence[bool]) -> dict[str, list[Any]]:
    """Each list without the places that are not chosen."""
    return {name: [*compress(values, chosen)] for name, values in columns.items()}


def with_forgotten(rows: Sequence[Row], labelled: Mapping[str, Candidate], prose: Mapping[str, Record]) -> list[Row]:
    """The rows, those that were trained with what they have forgotten, as far as it was measured."""
    plain = {one.run.model: one for one in labelled.values() if one.run.method == Untuned()}
    return [
        dataclasses.replace(row, forgotten=forgotten(labelled[row.label], plain[row.run.model], prose))
        if not row.untuned and row.run.model in plain
        else row
        for row in rows
    ]


def measures_of(
    candidates: Sequence[Candidate], deciding: Measure, known: Mapping[str, Measure] = MEASURES
) -> tuple[Measure, ...]:
    """What the candidates were scored by. Raises InputError where none has finished or the deciding one is missing."""
    found = tuple(
        one
        for one in known.values()
        if any(each.has(one.column) for each in candidates) and (one is deciding or says_something(one, candidates))
    )
    if not found:
        raise InputError("No run of this comparison has finished: wait, or see what stopped them.")
    if deciding not in found:
        names = ", ".join(one.name for one in found)
        raise InputError(
            f"No run was scored by {deciding.name!r}: choose one of {names}, or let the runs generate texts."
        )
    return found


def says_something(measure: Measure, candidates: Sequence[Candidate]) -> bool:
    """Not where free text is asked for exact matches and no row has one."""
    return measure.name != "exact_match" or any(
        one.has(measure.column) and table(one.done, measure.column).any() for one in candidates
    )


def check_choices(
    measure: str, cost: str = "gigabyte_seconds", margin: float | None = None, metrics: Sequence[Metric] = ()
) -> None:
    """Raises InputError for an unknown measure or cost and for a margin that is none. metrics: the user's own."""
    if measure not in (known := measures_with(metrics)):
        raise InputError(f"Unknown measure {measure!r}: choose one of {', '.join(known)}.")
    if cost not in COSTS:
        raise InputError(f"Unknown cost {cost!r}: choose one of {', '.join(COSTS)}.")
    if margin is not None and not (math.isfinite(margin) and margin >= 0):
        raise InputError(f"Margin {margin!r} is not a number of at least 0: give a difference that does not matter.")


def mark(contest: Sequence[Row], pairs: Sequence[Pair], measure: Measure, level: float, examples: int) -> list[Row]:
    """The rows, best mean first, with their differences and the answers to the two questions.

    With fewer than 20 test examples nothing is ruled out and nothing beats the untuned model.
    """
    labels = [row.label for row in contest]
    plain = {row.run.model: row.label for row in contest if row.plain}
    baselines = {row.label: plain[row.run.model] for row in contest if not row.plain and row.run.model in plain}
    ruled_out = {order(one, measure)[1] for one in pairs if one.detected}
    better = beats_baseline(baselines, pairs, measure, level) if examples >= FEWEST_EXAMPLES else set()
    by_pair: dict[tuple[str, str], Mapping[str, Interval]] = {}
    for one in pairs:
        for way in (one, one.reversed()):
            by_pair[way.first, way.second] = way.differences
    return [
        dataclasses.replace(
            row,
            against_untuned=by_pair.get((row.label, baselines.get(row.label, "")), {}),
            against_leader=by_pair.get((row.label, labels[0]), {}),
            may_be_best=row.label not in ruled_out or row.label == labels[0],
            beats_untuned=row.label in better,
        )
        for row in contest
    ]


def pareto(
    rows: Sequence[Row], cost: str = "gigabyte_seconds", measure: Measure = MEASURES["rougeL"]
) -> tuple[Row, ...]:
    """The rows on the front, cheapest first: no other row has at least their score for no more, and one of them better.

    Raises InputError for an unknown cost.
    """
    check_choices("rougeL", cost)
    points = [
        (row.cost(cost), measure.sign * row.scores[measure.name].mean, row)
        for row in rows
        if not row.failure and measure.name in row.scores
    ]
    front = [
        (price, score, row)
        for price, score, row in points
        if not any(p <= price and s >= score and (p < price or s > score) for p, s, _ in points)
    ]
    return tuple(row for _, _, row in sorted(front, key=lambda one: one[:2]))
