"""From the table to what to take, in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from peftbook.decision.terms import Comparison, Kind, Recommendation, Row
from peftbook.evidence.planning import settle
from peftbook.evidence.results import format_value
from peftbook.evidence.stats import FEWEST_EXAMPLES, FEWEST_GROUPS, Interval

NAMED = 3  # rows in one line
ANSWER_CHARS = 40  # of an answer in a sentence


def recommend(found: Comparison) -> Recommendation:
    """The rule of `peftbook.decision`, applied.

    Equal to the leader is what may be best, and what is worse by less than the margin (upper end of the 90 %
    interval). Of the equals whose mean is within the margin of the leader's, the cheapest is chosen. Two things leave
    the question open: that the chosen row may give up more than the margin against an equal one, and that an equal one
    is cheaper still, though behind in the mean by more than the margin.
    """
    contest = found.contest
    if len(contest) < 2:
        alone = f"only {contest[0].label} has finished" if contest else "no run has finished"
        return Recommendation("nothing to compare", f"There is nothing to compare: {alone}.")
    leader = contest[0]
    apart = [row.label for row in contest[1:] if found.gain(leader, row) is None]
    if apart:
        words = f"{leader.label} shares no seed with {listed(apart)}: train all methods with the same seeds."
        return Recommendation("nothing to compare", words, leader=leader)
    if found.measure.sign > 0 and leader.scores[found.measure.name].mean < found.margin:
        return Recommendation("nothing to compare", *say_floor(found, leader), None, leader)
    few = found.test_examples < FEWEST_EXAMPLES or not found.decides
    if is_unusable(found, leader, few):
        return Recommendation("nothing usable", *say_unusable(found, leader), None, leader)
    equals = [row for row in contest if few or row.may_be_best or most_lost(found, leader, row) <= found.margin]
    near = [row for row in equals if mean_gain(found, leader, row) <= found.margin]
    chosen = min(near, key=lambda row: price(row, found.cost))
    others = [row for row in equals if row is not chosen]
    loss = max((most_lost(found, row, chosen) for row in others), default=0.0)
    open_to = [row for row in others if few or most_lost(found, row, chosen) > found.margin]
    cheaper = [row for row in others if row not in near and price(row, found.cost) < price(chosen, found.cost)]
    open_to += [row for row in cheaper if row not in open_to]
    if open_to:
        return say_open(found, chosen, open_to, equals, loss)
    kind: Kind = "untuned is as good" if chosen.plain else "cheapest of equals" if others else "clear"
    if kind == "clear":
        headline, lacks, method = say_clear(found, chosen)
    else:
        headline, lacks, method = (say_untuned if chosen.plain else say_cheapest)(found, chosen, others, loss)
    return Recommendation(kind, headline, lacks, method, chosen, leader, tuple(row.label for row in equals), loss)


def is_unusable(found: Comparison, leader: Row, few: bool) -> bool:
    """Whether even the best row is worth nothing: hardly a word of its texts is right, or repeating the input would do
    as well within the margin, or the same answer to all. The second is not said of a few examples.
    """
    best = leader.scores[found.measure.name].mean
    if found.measure.sign < 0:
        return False
    floors = [one.mean for one in (found.copying, found.constant) if one is not None]
    as_good = bool(floors) and best - max(floors) <= found.margin
    return best < found.measure.usable or (as_good and not few)


def mean_gain(found: Comparison, first: Row, second: Row) -> float:
    one = found.gain(first, second)
    return one.mean if one is not None else 0.0 if first is second else math.inf


def most_lost(found: Comparison, other: Row, chosen: Row) -> float:
    """The most that `chosen` may give up against another row: upper end of the 90 % interval, 95 % one-sided."""
    one = found.gain(other, chosen)
    return one.mean + one.half90 if one is not None else 0.0 if other is chosen else math.inf


def price(row: Row, cost: str) -> tuple:
    """What "cheapest" orders by: the size of the model, which every use pays for, then what was asked for."""
    costs = (row.cost(name) for name in (cost, "gigabyte_seconds", "peak_memory_bytes"))
    return (row.model_parameters, *costs, row.label)


# --- words -----------------------------------------------------------------------------------------------------


def amount(found: Comparison, value: float) -> str:
    """A difference with its measure or unit: `0.051 ROUGE-L`."""
    return f"{format_value(value, 3)} {found.measure.unit or found.measure.label}"


def signed(value: float) -> str:
    """A difference with its sign."""
    return ("+" if round(value, 3) > 0 else "") + format_value(round(value, 3) + 0.0, 3)


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def bill(row: Row) -> str:
    """What a row costs."""
    if row.plain:
        return "nothing to train or store"
    if row.untuned:
        return "nothing to train, but more to read and to keep for every answer"
    parts = [f"{format_value(row.trainable_parameters, 0)} trained parameters"]
    parts += [f"{format_value(row.train_seconds, -3)} s of training"] if row.train_seconds else []
    parts += [f"{format_value(row.peak_memory_bytes, 0, 'bytes')} at the peak"] if row.peak_memory_bytes else []
    return ", ".join([*parts, f"{format_value(row.adapter_bytes, 0, 'bytes')} to store"])


def ahead(found: Comparison, row: Row, other: Row) -> str:
    """`0.051 ROUGE-L (95 % interval +0.030 to +0.072)`."""
    one = found.gain(row, other)
    if one is None:
        return "an unknown amount"
    if math.isinf(one.half95):
        return f"{amount(found, one.mean)}, of unknown error"
    return f"{amount(found, one.mean)} (95 % interval {signed(one.low)} to {signed(one.high)})"


def correction(found: Comparison) -> str:
    """How the many comparisons are accounted for."""
    once = "" if found.seeds > 1 else "Each was trained once: other seeds may order them differently. "
    return (
        f"{once}The family-wise level is {100 * found.level:g} %: which of the {len(found.contest)} rows may be the "
        "best is decided by one-sided comparisons of each with every other, corrected by Bonferroni."
    )


Words = tuple[str, tuple[str, ...], tuple[str, ...]]  # headline, what is lacking, how it was decided


def say_floor(found: Comparison, leader: Row) -> Words:
    """Where the measure cannot tell good from bad, because nothing is good."""
    best = amount(found, leader.scores[found.measure.name].mean)
    others = [one.label for one in found.measures if one is not found.measure]
    return (
        f"{found.measure.label} cannot decide here: the best row, {leader.label}, has {best}, less than the "
        f"{format_value(found.margin, 3)} that would matter.",
        (f"Read some texts, train longer or on more data, or decide by another measure ({listed(others)}).",),
        (),
    )


def say_unusable(found: Comparison, leader: Row) -> Words:
    """That no row is worth taking, held against the untuned model and against repeating the input."""
    name, plain = found.measure.name, found.baseline(leader)
    others = [] if plain is None else [f"the untuned model has {format_value(plain.scores[name].mean, 3)}"]
    if found.copying is not None:
        others.append(f"repeating the input unchanged would have {format_value(found.copying.mean, 3)}")
    if found.constant is not None:
        answer = found.commonest[:ANSWER_CHARS] + "…" * (len(found.commonest) > ANSWER_CHARS)
        others.append(f"always answering “{answer}” would have {format_value(found.constant.mean, 3)}")
    best = f"No row is usable: the best, {leader.label}, has {amount(found, leader.scores[name].mean)}"
    remedy = "Read some of its texts. Train longer or on more rows, say in the prompt what to do, or choose a larger"
    return f"{best}{f'; {listed(others)}' if others else ''}.", (f"{remedy} model.",), ()


def say_open(
    found: Comparison, chosen: Row, open_to: Sequence[Row], equals: Sequence[Row], loss: float
) -> Recommendation:
    """What this test set cannot tell, what would, and the best guess until then."""
    needs: dict[tuple[int, int], tuple[Row, Row]] = {}
    each = found.level / max(len(found.contest) - 1, 2)  # one-sided, as `pairs.detect` asks
    for row in open_to:
        first, second = (row, chosen) if mean_gain(found, row, chosen) >= 0 else (chosen, row)
        one = found.gain(first, second)
        if one is not None:
            needs.setdefault(seeds_and_examples(one, found.margin, each), (first, second))
    (seeds, examples), (first, second) = max(needs.items())
    one = found.gain(first, second)
    assert one is not None
    examples, by_seeds = max(examples, FEWEST_EXAMPLES), seeds > one.seeds
    lacks = (
        f"Too few {lacking(one, by_seeds)} to tell {first.label} from {second.label}: the difference in the mean is "
        f"{ahead(found, first, second)}, and {amount(found, found.margin)} would matter.",
        say_how_many(found, one, seeds, examples),
    )
    near = f"it is the cheapest whose mean is within {amount(found, found.margin)} of the best"
    why = "it has the best mean" if chosen is found.contest[0] else near
    method = [f"{chosen.label} is the best guess because {why}. It costs {bill(chosen)}."]
    if found.margin < loss < math.inf:
        method.append(f"It may give up as much as {amount(found, loss)}.")
    return Recommendation(
        "too few seeds" if by_seeds else "too few examples",
        f"Best guess: {chosen.label}. Cannot be told from {named(open_to)} on these rows.",
        lacks,
        (*method, "Draw them anew: rows or seeds that are added after a look void the level.", correction(found)),
        chosen,
        found.contest[0],
        tuple(row.label for row in equals),
        loss,
        examples,
        seeds if by_seeds else None,
    )


def named(rows: Sequence[Row]) -> str:
    """The first rows by their labels, best mean first, and how many others there are."""
    labels = [row.label for row in rows]
    return listed(labels if len(labels) <= NAMED else [*labels[: NAMED - 1], f"{len(labels) - NAMED + 1} others"])


def seeds_and_examples(one: Interval, margin: float, level: float) -> tuple[int, int]:
    """About how many (seeds, test examples) would tell; the fewest that say it where nothing is known of the spread."""
    if math.isinf(one.standard_error):
        return one.seeds, FEWEST_EXAMPLES
    examples, seeds = settle(one, margin, level)
    return seeds, examples


def lacking(one: Interval, by_seeds: bool) -> str:
    """What there is too little of."""
    return "seeds" if by_seeds else "groups of test examples" if 0 < one.groups < FEWEST_GROUPS else "test examples"


def say_how_many(found: Comparison, one: Interval, seeds: int, examples: int) -> str:
    """How many seeds and fresh test examples, of how many groups, would find a difference that matters."""
    if found.margin == 0:
        return "No number of test examples settles a margin of 0: state the difference that would matter."
    if math.isinf(one.standard_error):
        return f"How far scores differ from example to example is not known: test at least {examples} examples."
    needed = [f"{seeds} seeds (there are {one.seeds})"] if seeds > one.seeds else []
    if not needed or examples > one.examples:
        needed.append(f"{examples:,} test examples (there are {found.test_examples:,})")
    groups = max(FEWEST_GROUPS, math.ceil(one.groups * examples / one.examples)) if one.groups else 0
    needed += [f"{groups:,} groups (there are {one.groups:,})"] if groups > one.groups else []
    return (
        f"About {listed(needed)} would find a difference of {amount(found, found.margin)} four times in five, if the "
        "spread stays what it is."
    )


def say_clear(found: Comparison, row: Row) -> Words:
    """A winner with its margin and its cost."""
    second = found.contest[1]
    plain = found.baseline(row)
    words = f"{row.label} is ahead of the next best, {second.label}, by {ahead(found, row, second)}"
    if plain is not None and plain is not second:
        words += f", and of the untuned model by {ahead(found, row, plain)}"
    parts = [f"{words}.", f"It costs {bill(row)}."]
    cheaper = [one for one in found.contest[1:] if price(one, found.cost) < price(row, found.cost) and not one.untuned]
    if cheaper:
        parts.append(f"The best that is cheaper is {cheaper[0].label} ({bill(cheaper[0])}).")
    return f"Take {row.label}: it is the clear winner on these rows.", (), (*parts, correction(found))


def say_cheapest(found: Comparison, row: Row, others: Sequence[Row], loss: float) -> Words:
    """Equals, and the cheapest of them."""
    better = [one for one in others if (pair := found.pair(one.label, row.label)) and pair.detected]
    same = [one for one in others if one not in better]
    headline = f"Take {row.label}: a better row is ahead by too little to matter."
    if same:
        headline = f"Take {row.label}: the cheapest of equals, no detectable difference from {named(same)}."
    parts = [
        f"{one.label} is detectably better, but by less than the {amount(found, found.margin)} that would matter."
        for one in better
    ]
    parts.append(f"It costs {bill(row)}, and gives up {amount(found, max(loss, 0.0))} at most (95 %, one-sided).")
    plain = found.baseline(row)
    if plain is not None:
        parts.append(f"It is ahead of the untuned model by {ahead(found, row, plain)}.")
    return headline, (), (*parts, correction(found))


def say_untuned(found: Comparison, row: Row, others: Sequence[Row], loss: float) -> Words:
    """Nothing need be trained."""
    if not others:
        second = found.contest[1]
        lead = f"It is ahead of the next best, {second.label}, by {ahead(found, row, second)}."
        headline = "Train nothing of this kind: the untuned model is better than every method that was trained."
        return headline, (), (lead, correction(found))
    lost = f"The untuned model gives up {amount(found, max(loss, 0.0))} at most (95 %, one-sided)."
    remedy = "Training longer or on more data may change that."
    headline = f"Train nothing: the untuned model is as good, no detectable difference from {named(others)}."
    return headline, (remedy,), (lost, correction(found))
