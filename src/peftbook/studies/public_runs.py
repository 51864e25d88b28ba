"""Do claims hold at three billion parameters? Asked of the runs that huggingface/peft has published, each a claim.

The rule, what was seen before, and what the margin means are in `public_arms`. No run of ours is behind these claims:
they are marked, counted apart and never averaged with the book's own. Rates, lengths and ranks are the benchmark's: a
default for each method, chosen by nobody's sweep, so that a difference is one of settings too.

The same question at 135M, where a study of the book asks it, is in AT_135M.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from peftbook.core.records import Store
from peftbook.evidence import stats
from peftbook.evidence.planning import Judged, judge_claim
from peftbook.evidence.public_runs import TEST_ROWS
from peftbook.evidence.stats import Interval
from peftbook.studies import Quantity, Verdict, study
from peftbook.studies.public_arms import (
    BATCHES,
    LEVEL,
    MARGIN,
    PURE,
    SEEN,
    Spread,
    Values,
    accuracies,
    any_above,
    changes,
    difference,
    here,
    log_ratio,
    log_seconds,
    neighbours,
    pooled,
    rerun_spread,
    turned,
)

TIME_MARGIN = 0.10  # of the seconds of whole jobs, with loading and the test: twice what counts of a step
TURNED_SHARE, TURNED_MARGIN = 0.10, 0.05  # of the neighbours of a ranking
JANUARY, JULY = BATCHES[5], BATCHES[8]
RANKINGS = (PURE, (JANUARY, JULY))  # a ranking, and the batch that is held against it
LORA, FULL = "lora--rank32", "full-finetuning--lr_0.00001"


@dataclass(frozen=True)
class Pair:
    """A claim about the first arm minus the second, in points, as `stats.judge` takes it."""

    label: str
    first: str
    second: str
    margin: float
    claim: tuple[float, float]


@dataclass(frozen=True)
class Family:
    """A claim that at least one of several arms is above LoRA by more than `edge` points; or, `none`, that none is."""

    label: str
    members: Callable[[Values], Sequence[str]]
    edge: float
    none: bool = False


NOT_WORSE, BETTER = (0.0, (-MARGIN, math.inf)), (MARGIN, (0.0, math.inf))  # a claim that holds the margin has margin 0
PAIRS = {
    "public_methods": Pair("LoRA minus full fine-tuning", LORA, FULL, *NOT_WORSE),
    "public_rank": Pair("rank 64 minus rank 32", "lora--rank64", LORA, 0.0, (-math.inf, MARGIN)),
    "public_targets": Pair("the MLP minus q and v", "lora--rank10-target-mlp", LORA, *BETTER),
    "public_dora": Pair("DoRA minus LoRA", "lora--rank32-dora", LORA, *BETTER),
    "public_rslora": Pair("α/√r minus α/r at rank 64", "lora--rank64-rslora", "lora--rank64", *BETTER),
    "public_lora_fa": Pair("LoRA-FA minus LoRA", "lora--rank32-lorafa", LORA, *NOT_WORSE),
    "public_vera": Pair("VeRA minus LoRA", "vera--default", LORA, *NOT_WORSE),
}
BOTH = {"oft": "oft--rank32", "miss": "miss--default"}
TIMES = {
    "public_dora_time": Pair("DoRA", "lora--rank32-dora", LORA, math.log1p(TIME_MARGIN), (0.0, math.inf)),
    "public_prompt_time": Pair(
        "Prompt tuning", "prompt_tuning--default", LORA, math.log1p(TIME_MARGIN), (0.0, math.inf)
    ),
}
AT_135M = {
    "public_methods": "methods", "public_rank": "rank", "public_targets": "targets", "public_dora": "dora",
    "public_rslora": "scaling", "public_lora_fa": "lora_fa", "public_vera": "vera",
    "public_oft_miss": "beyond_lora_new", "public_others": "beyond_lora", "public_prompt": "sql_lora",
    "public_prefix": "benchmark_prefix",
}  # fmt: skip


def others(values: Values) -> list[str]:
    """The arms that are no LoRA, that nobody had seen, and that ran in a batch with LoRA; at present settings."""
    return sorted(
        name
        for name, runs in values.items()
        if not name.startswith("lora--") and " before " not in name and name not in SEEN and runs.keys() & values[LORA]
    )


def settings_of(method: str) -> Callable[[Values], list[str]]:
    """The arms of one method."""
    return lambda values: sorted(name for name in values if name.startswith(f"{method}--"))


FAMILIES = {
    "public_others": Family("configurations that are no LoRA", others, MARGIN),
    "public_ia3": Family("settings of (IA)³", settings_of("ia3"), -MARGIN),
    "public_prompt": Family("settings of prompt tuning", settings_of("prompt_tuning"), -MARGIN, none=True),
    "public_prefix": Family("settings of prefix tuning", settings_of("prefixtuning"), -MARGIN, none=True),
}


def no_runs(store: Store) -> list:
    """None: the runs are others'."""
    return []


def family(name: str, values: Values) -> dict[str, Interval]:
    """Each arm of a family minus LoRA, the best one first."""
    found = {one: difference(values, one, LORA) for one in FAMILIES[name].members(values)}
    return dict(sorted(found.items(), key=lambda item: -item[1].mean))


def short(study_name: str) -> str:
    """The name of the quantity that decides a study: `dora` of `public_dora`."""
    return study_name.removeprefix("public_")


def slug(name: str) -> str:
    """A configuration's name in the name of a quantity."""
    return re.sub("[^a-z0-9]+", "_", name.lower())


# --- named values ----------------------------------------------------------------------------------------------


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Differences, ratios of seconds, and what a rerun moves."""
    values = accuracies()
    out = rerun_quantities(values)
    for name, pair in PAIRS.items():
        bare = here(values, pair.first, pair.second)
        out[short(name)] = Quantity.of(difference(values, pair.first, pair.second), "points", (), 1)
        out[f"{short(name)}_here"] = Quantity.of(bare, "points", (), 1, "95 % interval on these questions, of reruns")
    families = [(one, found) for name in FAMILIES for one, found in family(name, values).items()]
    for one, found in [*families, *((one, difference(values, one, LORA)) for one in BOTH.values())]:
        out[f"{slug(one)}_minus_lora"] = Quantity.of(found, "points", (), 1)
    seconds = log_seconds()
    for name, pair in TIMES.items():
        ratio = log_ratio(seconds, pair.first, pair.second)
        out[short(name)] = Quantity.ratio(ratio, (), 2, "95 % interval over sets of versions")
    return out


def rerun_quantities(values: Values) -> dict[str, Quantity]:
    """What a rerun moves, what versions move beside, and how far one run orders the arms."""
    every, pure = rerun_spread(values), pooled([(0.0, one) for one in changes(values, *PURE).values()])
    # Runs with other versions than another: of the first two batches, which share theirs, only the second.
    rest = pooled(
        [value for day, value in runs.items() if day != PURE[0] or PURE[1] not in runs] for runs in values.values()
    )
    out = {
        "rerun_sd": of_spread("standard deviation of a rerun, versions included", every),
        "pure_sd": of_spread("standard deviation of a rerun where nothing changed", pure),
        "drift_sd": Quantity(math.sqrt(max(0.0, rest.variance - pure.variance)), "points", (), digits=2,
                             note="what later reruns move beyond those where nothing changed"),
        "binomial_se": Quantity(100 * math.sqrt(0.25 / TEST_ROWS), "points", (), n=TEST_ROWS, digits=2,
                                note="of one accuracy of one half"),
        "half_width": Quantity(difference(values, LORA, FULL).half95, "points", (), n=TEST_ROWS, digits=1,
                               note="of the interval of LoRA minus full fine-tuning"),
    }  # fmt: skip
    pairs = neighbours(values, JULY)
    sure = sum(stats.holm({two: stats.p_value(difference(values, *two, only=JULY)) for two in pairs}, LEVEL).values())
    note = "neighbours in the ranking of July 2026 that surely differ, after Holm's correction"
    out["sure_orders"] = Quantity(sure, f"of {len(pairs)} pairs of neighbours", (), n=len(pairs), digits=0, note=note)
    share = turned_share(values)
    out["turned_share"] = Quantity.of(share, "", (), 2, "95 % interval over pairs", among=(0.0, 1.0))
    for label, two in zip(("pure", "july"), RANKINGS, strict=True):
        signs = turned(values, *two)
        out[f"turned_{label}"] = Quantity(sum(signs), "pairs", (), n=len(signs), digits=1)
    return out


def of_spread(what: str, spread: Spread) -> Quantity:
    """A standard deviation with its interval; n is its degrees of freedom."""
    return Quantity(spread.sd, "points", (), *spread.ends, n=spread.freedom, digits=2, note=what)


def turned_share(values: Values) -> Interval:
    """Share of neighbours that stand the other way round in the other batch.

    Two pairs that share an arm count as unrelated; where that arm moves, one of them tends to turn and the other not,
    so that the interval is too wide rather than too narrow.
    """
    return stats.example_interval([sign for two in RANKINGS for sign in turned(values, *two)])


# --- verdicts --------------------------------------------------------------------------------------------------


def points(found: Interval) -> str:
    """A difference with its interval in words."""
    return f"{found.mean:+.1f} points (95 % interval {found.low:+.1f} to {found.high:+.1f})"


def pair_verdict(name: str) -> Verdict:
    """The rule for two arms."""
    pair, values = PAIRS[name], accuracies()
    found, bare = (of(values, pair.first, pair.second) for of in (difference, here))
    outcome, judged = judge_claim(found, pair.margin, pair.claim)
    sentence = (
        f"Accuracy of {pair.label}: {points(found)}, margin {MARGIN:g}; on these questions alone "
        f"{bare.low:+.1f} to {bare.high:+.1f}."
    )
    return Verdict(outcome, sentence, (short(name), f"{short(name)}_here"), (judged,))


def family_verdict(name: str) -> Verdict:
    """The rule for the best of several arms."""
    claim, found = FAMILIES[name], family(name, accuracies())
    opposite = {"reproduced": "refuted", "refuted": "reproduced", "undecided": "undecided"}
    outcome = any_above(found, claim.edge)
    best = next(iter(found))
    sure = [one for one, above in stats.surely_above(found, claim.edge).items() if above]
    below = sum(one.high < claim.edge for one in found.values())
    sentence = (
        f"Of {len(found)} {claim.label} {best} is best, minus LoRA {points(found[best])}. Surely above "
        f"{claim.edge:+g} after Holm's correction: {', '.join(sure) or 'none'}; whole interval below: {below}."
    )
    edges = (claim.edge, math.inf)
    judged = tuple(Judged(one, edges, edges, level=LEVEL / len(found)) for one in found.values())
    named = tuple(f"{slug(one)}_minus_lora" for one in found)
    return Verdict(opposite[outcome] if claim.none else outcome, sentence, named, judged)


def time_verdict(name: str) -> Verdict:
    """The rule for seconds."""
    pair = TIMES[name]
    found = log_ratio(log_seconds(), pair.first, pair.second)
    outcome, judged = judge_claim(found, pair.margin, pair.claim)
    ratio, low, high = found.exp
    sentence = (
        f"{pair.label} takes {ratio:.2f} times LoRA's seconds within a batch (95 % interval {low:.2f} to "
        f"{high:.2f} over {found.examples} sets of versions; margin {TIME_MARGIN:.0%})."
    )
    return Verdict(outcome, sentence, (short(name),), (judged,))


for _rule, _names in ((pair_verdict, PAIRS), (family_verdict, FAMILIES), (time_verdict, TIMES)):
    for _name in _names:
        study(_name, no_runs, quantities)(lambda store, rule=_rule, name=_name: rule(name))


@study("public_oft_miss", no_runs, quantities)
def oft_miss_verdict(store: Store) -> Verdict:
    """Are both better than LoRA by more than the margin?"""
    values = accuracies()
    found = {label: difference(values, one, LORA) for label, one in BOTH.items()}
    parts = [judge_claim(one, 0.0, (MARGIN, math.inf), count=len(found)) for one in found.values()]
    sentence = f"Minus LoRA, OFT {points(found['oft'])} and MiSS {points(found['miss'])}; margin {MARGIN:g}."
    named = tuple(f"{slug(one)}_minus_lora" for one in BOTH.values())
    return Verdict(stats.together([part for part, _ in parts]), sentence, named, tuple(judged for _, judged in parts))


@study("public_neighbours", no_runs, quantities)
def neighbours_verdict(store: Store) -> Verdict:
    """Do neighbours of a ranking change places in a rerun?"""
    values = accuracies()
    found = turned_share(values)
    outcome, judged = judge_claim(found, TURNED_MARGIN, (TURNED_SHARE, math.inf))
    counts = [turned(values, *two) for two in RANKINGS]
    sentence = (
        f"{found.mean:.0%} of {found.examples} pairs of neighbours change places (95 % interval "
        f"{max(found.low, 0):.0%} to {min(found.high, 1):.0%}, margin {TURNED_MARGIN:.0%}; a tie counts half): "
        f"{sum(counts[0]):g} of {len(counts[0])} where nothing changed, {sum(counts[1]):g} of {len(counts[1])} from "
        "January to July 2026."
    )
    return Verdict(outcome, sentence, ("turned_share", "turned_pure", "turned_july"), (judged,))


@study("public_reruns", no_runs, quantities)
def reruns_verdict(store: Store) -> Verdict:
    """What a rerun moves."""
    found = rerun_quantities(accuracies())
    sentence = (
        f"A rerun moves an accuracy by {found['rerun_sd'].value:.2f} points (standard deviation), by "
        f"{found['pure_sd'].value:.2f} where nothing changed; {found['sure_orders'].value:.0f} of "
        f"{found['sure_orders'].n} neighbours in the ranking of July 2026 surely differ."
    )
    return Verdict("measured", sentence, ("rerun_sd", "pure_sd", "drift_sd", "sure_orders"))
