"""From the table to what to take, in plain words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from peftbook.decision.terms import Comparison, Recommendation, Row
from peftbook.evidence.planning import settle
from peftbook.evidence.results import format_value
from peftbook.evidence.stats import FEWEST_EXAMPLES, FEWEST_GROUPS, Interval


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
        return Recommendation("nothing to compare", (f"There is nothing to compare: {alone}.",))
    leader = contest[0]
    apart = [row.label for row in contest[1:] if found.gain(leader, row) is None]
    if apart:
        words = f"{leader.label} shares no seed with {listed(apart)}: train all methods with the same seeds."
        return Recommendation("nothing to compare", (words,), None, leader)
    if found.measure.sign > 0 and leader.scores[found.measure.name].mean < found.margin:
        return Recommendation("nothing to compare", say_floor(found, leader), None, leader)
    few = found.test_examples < FEWEST_EXAMPLES or not found.decides
    if is_unusable(found, leader, few):
        return Recommendation("nothing usable", say_unusable(found, leader), None, leader)
    equals = [row for row in contest if few or row.may_be_best or most_lost(found, leader, row) <= found.margin]
    near = [row for row in equals if mean_gain(found, leader, row) <= found.margin]
    chosen = min(near, key=lambda row: price(row, found.cost))
    others = [row for row in equals if row is not chosen]
    loss = max((most_lost(found, row, chosen) for row in others), default=0.0)
    open_to = [row for row in others if few or most_lost(found, row, chosen) > found.margin]
    open_to += [row for row in others if row not in near and price(row, found.cost) < price(chosen, found.cost)]
    if open_to:
        return say_open(found, chosen, open_to, equals, loss)
    fields = chosen, leader, tuple(row.label for row in equals), loss
    if chosen.plain:
        return Recommendation("untuned is as good", say_untuned(found, chosen, others, loss), *fields)
    if others:
        return Recommendation("cheapest of equals", say_cheapest(found, chosen, others, loss), *fields)
    return Recommendation("clear", say_clear(found, chosen), *fields)


def is_unusable(found: Comparison, leader: Row, few: bool) -> bool:
    """Whether even the best row is worth nothing: hardly a word of its texts is right, or repeating the input would do
    as well, within the margin. The second is not said of a few examples.
    """
    best = leader.scores[found.measure.name].mean
    if found.measure.sign < 0:
        return False
    as_good = found.copying is not None and best - found.copying.mean <= found.margin
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


def say_floor(found: Comparison, leader: Row) -> tuple[str, ...]:
    """Where the measure cannot tell good from bad, because nothing is good."""
    best = amount(found, leader.scores[found.measure.name].mean)
    others = [one.label for one in found.measures if one is not found.measure]
    return (
        f"{found.measure.label} cannot decide here: the best row, {leader.label}, has {best}, less than the "
        f"{format_value(found.margin, 3)} that would matter.",
        f"Read some texts, train longer or on more data, or decide by another measure ({listed(others)}).",
    )


def say_unusable(found: Comparison, leader: Row) -> tuple[str, ...]:
    """That no row is worth taking, held against the untuned model and against repeating the input."""
    name, plain = found.measure.name, found.baseline(leader)
    others = [] if plain is None else [f"the untuned model has {format_value(plain.scores[name].mean, 3)}"]
    if found.copying is not None:
        others.append(f"repeating the input unchanged would have {format_value(found.copying.mean, 3)}")
    best = f"No row is usable: the best, {leader.label}, has {amount(found, leader.scores[name].mean)}"
    return (
        f"{best}{f'; {listed(others)}' if others else ''}.",
        "Read some of its texts. Train longer or on more rows, say in the prompt what to do, or choose a larger model.",
    )


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
    words = [
        f"Too few {lacking(one, by_seeds)} to tell {first.label} from {second.label}: the difference in the mean is "
        f"{ahead(found, first, second)}, and {amount(found, found.margin)} would matter.",
        say_how_many(found, one, seeds, examples),
        f"Until then the best guess is {chosen.label} ({bill(chosen)}): it has the best mean."
        if chosen is found.contest[0]
        else f"Until then the best guess is {chosen.label} ({bill(chosen)}): the cheapest whose mean is within "
        f"{amount(found, found.margin)} of the best.",
        f"It may give up as much as {amount(found, loss)}." if found.margin < loss < math.inf else "",
        correction(found),
    ]
    return Recommendation(
        "too few seeds" if by_seeds else "too few examples",
        tuple(filter(None, words)),
        chosen,
        found.contest[0],
        tuple(row.label for row in equals),
        loss,
        examples,
        seeds if by_seeds else None,
    )


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
        "spread stays what it is. Draw them anew: rows or seeds that are added after a look void the level."
    )


def say_clear(found: Comparison, row: Row) -> tuple[str, ...]:
    """A winner with its margin and its cost."""
    second = found.contest[1]
    plain = found.baseline(row)
    words = f"{row.label} is the clear winner: ahead of the next best, {second.label}, by {ahead(found, row, second)}"
    if plain is not None and plain is not second:
        words += f", and of the untuned model by {ahead(found, row, plain)}"
    parts = [f"{words}.", f"It costs {bill(row)}."]
    cheaper = [one for one in found.contest[1:] if price(one, found.cost) < price(row, found.cost) and not one.untuned]
    if cheaper:
        parts.append(f"The best that is cheaper is {cheaper[0].label} ({bill(cheaper[0])}).")
    return (*parts, correction(found))


def say_cheapest(found: Comparison, row: Row, others: Sequence[Row], loss: float) -> tuple[str, ...]:
    """Equals, and the cheapest of them."""
    better = [one for one in others if (pair := found.pair(one.label, row.label)) and pair.detected]
    same = [one for one in others if one not in better]
    parts = [f"Take {row.label}."]
    if same:
        parts = [f"No detectable difference between {listed([row.label, *(one.label for one in same)])}: "
                 f"take the cheapest, {row.label}."]  # fmt: skip
    parts += [
        f"{one.label} is detectably better, but by less than the {amount(found, found.margin)} that would matter."
        for one in better
    ]
    parts.append(f"It costs {bill(row)}, and gives up {amount(found, max(loss, 0.0))} at most (95 %, one-sided).")
    plain = found.baseline(row)
    if plain is not None:
        parts.append(f"It is ahead of the untuned model by {ahead(found, row, plain)}.")
    return (*parts, correction(found))


def say_untuned(found: Comparison, row: Row, others: Sequence[Row], loss: float) -> tuple[str, ...]:
    """Nothing need be trained."""
    if not others:
        second = found.contest[1]
        words = [
            f"The untuned model is better than every method that was trained: ahead of the next best, {second.label}, "
            f"by {ahead(found, row, second)}.",
            "Train nothing of this kind.",
        ]
    else:
        words = [
            f"The untuned model is as good: no detectable difference from {listed([one.label for one in others])}, and "
            f"{amount(found, max(loss, 0.0))} given up at most (95 %, one-sided).",
            "Train nothing, or train longer and on more data.",
        ]
    return (*words, correction(found))
