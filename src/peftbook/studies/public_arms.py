"""The rule for runs of others: arms, batches and errors of huggingface/peft's runs on MetaMathQA, and what was seen.

Written, with all claims on these runs, before any outcome was read but for what SEEN and SEEN_MEMORY name, and a first
look at reruns by a reader: a pooled standard deviation of 1.2 points on 101 degrees of freedom. One rule came after:
the first two batches, which share their versions, count once in a ratio of seconds.

An arm is a configuration at its present settings. Three configurations changed a setting between runs (CHANGED); the
runs before are an arm of their own, which no claim asks about. A batch is the runs of some days with one set of
versions and one benchmark code. Its days follow those of the table; the run of 21 July 2026 has the library versions
and the benchmark code of 14 July. Two runs are not quite of their batch: OSF's of January 2026 has an older benchmark,
and of OFT's of 17 June 2025 the code is not known.

The accuracy of an arm is the mean over its runs, in points: per cent of the 1,319 test questions. Two arms are compared
within each batch that has both, and the differences are averaged, so that what a version does to both falls out. Two
errors are added:

- Of reruns, 2 s²/k for k shared batches. s² is the variance of an arm's runs about their mean, pooled over all arms.
  All seeds are 0: it has what hardware and versions do, and not what a seed would. The drift of versions that all arms
  share is in s² too, though it falls out of a difference, so that s² is too large rather than too small. It is one
  value for all arms: one that hardly learns may move less than it says, and one on the edge of diverging more.
- Of questions, p(1 − p)/1319 for each arm. All runs answer the same questions, so more runs do not make it smaller, and
  without the single answers the two arms count as independent. Arms tuned from one model err on the same questions
  more often than that, and part of what reruns move is in p(1 − p) already: this error is an overstatement.

Degrees of freedom are Satterthwaite's, of s² with those of the pool and of the questions with 1,318. `here` has the
error of reruns alone: it is about these 1,319 questions and no others, and decides nothing.

The margin is two points: one question in fifty, the least for which a user would change the method, and 1.45 binomial
errors of one accuracy near one half (1.38 points). The interval of a difference is about ±4 points whatever the number
of reruns, twice the margin. So equality to within the margin cannot be shown with 1,319 questions and no single
answers: a claim that an arm is no worse needs one that is some two points better, and one that it is better by the
margin needs some six.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from peftbook.evidence import stats
from peftbook.evidence.public_runs import TEST_ROWS, Outcome, PublicRun, outcomes, public_runs
from peftbook.evidence.stats import Interval

MARGIN = 2.0  # points
LEVEL = 0.05
# First days of the batches.
BATCHES = (
    "2025-06-17", "2025-06-19", "2025-07-31", "2025-08-14", "2025-10-23",
    "2026-01-09", "2026-04-14", "2026-05-27", "2026-07-14", "2026-08-11",
)  # fmt: skip
PURE = BATCHES[:2]  # between which nothing changed but what is logged
# Configuration → day of its first run at present settings: rate and length; the truncated series; the adapter's type.
CHANGED = {"adaptionprompt--lr_5e-3": "2026-07-21", "oft--rank32": "2025-07-31", "osf--rank128": "2026-01-10"}
# Arms of which the book or its sheets quoted an accuracy, a time or a size before the criteria were written. Of OFT and
# MiSS values are quoted without a setting, so each of their settings counts.
SEEN = (
    "full-finetuning--lr_0.00001", "lora--rank32", "lora--rank64", "lora--rank64-rslora",
    "prompt_tuning--default", "prompt_tuning--lr_0.001", "prompt_tuning--sample_vocab-lr_0.001",
    "oft--rank32", "miss--bat", "miss--default", "miss--mini",
)  # fmt: skip
# Those of which a peak memory was: these, and rows on which the byte model was made (`memory_elsewhere`).
SEEN_MEMORY = (
    *SEEN, "lora--rank10-target-mlp", "ia3--default", "ia3--lr_0.001", "prefixtuning--lr_0.001",
    "prefixtuning--lr_0.005_zero_init", "prefixtuning--tokens50-init_prefix-lr_0.005",
)  # fmt: skip

Values = Mapping[str, Mapping[str, float]]  # arm → batch → value


def batch(run: PublicRun) -> str:
    """The first day of the run's batch."""
    return max(day for day in BATCHES if day <= run.created_at)


def arm(run: PublicRun) -> str:
    """The run's configuration, with the day of a change behind it for the runs before."""
    changed = CHANGED.get(run.configuration, "")
    return f"{run.configuration} before {changed}" if run.created_at < changed else run.configuration


def values_of(
    value: Callable[[Outcome], float | None],
    runs: Iterable[PublicRun] | None = None,
    measured: Mapping[str, Outcome] | None = None,
) -> Values:
    """What each run measured, by arm and batch; of the shipped tables unless others are given."""
    known = outcomes() if measured is None else measured
    out: dict[str, dict[str, float]] = {}
    for run in public_runs() if runs is None else runs:
        if (found := value(known[run.id])) is not None:
            out.setdefault(arm(run), {})[batch(run)] = found
    return out


def accuracies() -> Values:
    """Points, per cent of the test questions that are answered right."""
    return values_of(lambda one: None if one.test_accuracy is None else 100 * one.test_accuracy)


def log_seconds() -> Values:
    """Logarithm of the seconds of training."""
    return values_of(lambda one: None if one.train_seconds is None else math.log(one.train_seconds))


# --- errors ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A variance and its degrees of freedom."""

    variance: float
    freedom: int

    @property
    def sd(self) -> float:
        return math.sqrt(self.variance)

    @property
    def ends(self) -> tuple[float, float]:
        """95 % interval of the standard deviation, √(ν s²/χ²)."""
        quantiles = (stats.special.chdtri(self.freedom, share) for share in (LEVEL / 2, 1 - LEVEL / 2))
        low, high = (math.sqrt(self.freedom * self.variance / float(one)) for one in quantiles)
        return low, high


def pooled(rows: Iterable[Sequence[float]]) -> Spread:
    """The variance about the means of rows with two values or more, pooled. Raises ValueError where there is none."""
    several = [np.asarray(row) for row in rows if len(row) > 1]
    freedom = sum(len(row) - 1 for row in several)
    if not freedom:
        raise ValueError("No arm ran twice, so that the error of a rerun is not known.")
    return Spread(float(sum(((row - row.mean()) ** 2).sum() for row in several)) / freedom, freedom)


def rerun_spread(values: Values) -> Spread:
    """What reruns of an arm differ by: hardware, and versions where they changed between."""
    return pooled([list(runs.values()) for runs in values.values()])


def changes(values: Values, before: str, after: str) -> dict[str, float]:
    """Arm → its value in one batch minus that in another, of the arms in both."""
    return {name: runs[after] - runs[before] for name, runs in values.items() if before in runs and after in runs}


def shared_batches(values: Values, first: str, second: str) -> list[str]:
    """Batches that have both arms. Raises ValueError where there is none."""
    if shared := [day for day in BATCHES if day in values[first] and day in values[second]]:
        return shared
    raise ValueError(f"{first} and {second} never ran with the same versions, so that they cannot be compared.")


def difference(values: Values, first: str, second: str, only: str = "") -> Interval:
    """First − second in points, by the rule of this module. only: a single batch to compare in."""
    shared = [only] if only else shared_batches(values, first, second)
    spread, (mean, rerun) = rerun_spread(values), of_reruns(values, first, second, shared)
    shares = [np.mean([values[name][day] for day in shared]) / 100 for name in (first, second)]
    questions = sum(100**2 * share * (1 - share) / TEST_ROWS for share in shares)
    freedom = float((rerun + questions) ** 2 / (rerun**2 / spread.freedom + questions**2 / (TEST_ROWS - 1)))
    return Interval.of(mean, 0.0, math.sqrt(rerun + questions), 1, TEST_ROWS, freedom)


def here(values: Values, first: str, second: str) -> Interval:
    """First − second on these very questions: with the error of reruns alone."""
    mean, rerun = of_reruns(values, first, second, shared_batches(values, first, second))
    return Interval.of(mean, 0.0, math.sqrt(rerun), 1, TEST_ROWS, rerun_spread(values).freedom)


def of_reruns(values: Values, first: str, second: str, shared: Sequence[str]) -> tuple[float, float]:
    """Mean of first − second over batches, and its variance by reruns."""
    mean = float(np.mean([values[first][day] - values[second][day] for day in shared]))
    return mean, 2 * rerun_spread(values).variance / len(shared)


def log_ratio(values: Values, first: str, second: str) -> Interval:
    """First − second of logarithms, its error from how the batches differ.

    Batches have other versions and other code that is timed: a ratio is of one set of versions, and these are its
    sample. The batches of PURE have the same and count once, by their mean.
    """
    found = {day: values[first][day] - values[second][day] for day in shared_batches(values, first, second)}
    same = [value for day, value in found.items() if day in PURE]
    ratios = [value for day, value in found.items() if day not in PURE] + ([float(np.mean(same))] if same else [])
    error = math.inf if len(ratios) < 2 else float(np.std(ratios, ddof=1)) / math.sqrt(len(ratios))
    return Interval.of(float(np.mean(ratios)), 0.0, error, 1, len(ratios))


# --- families and orders ---------------------------------------------------------------------------------------


def any_above(found: Mapping[str, Interval], edge: float) -> str:
    """Verdict on the claim that at least one of several is above an edge.

    reproduced: one surely is, after Holm's correction.  refuted: the whole 95 % interval of each lies below, which
    needs no correction since all must.
    """
    if any(stats.surely_above(found, edge).values()):
        return "reproduced"
    return "refuted" if all(one.high < edge for one in found.values()) else "undecided"


def neighbours(values: Values, day: str) -> list[tuple[str, str]]:
    """Arms next to each other in the ranking of one batch, the better one first."""
    ranked = sorted((name for name, runs in values.items() if day in runs), key=lambda name: -values[name][day])
    return list(itertools.pairwise(ranked))


def turned(values: Values, before: str, after: str) -> list[float]:
    """Of the neighbours in one batch's ranking, among the arms of both: 1 where the other batch has the other order.

    A tie in either of them is half of that.
    """
    both = {name: values[name] for name in changes(values, before, after)}
    signs = []
    for first, second in neighbours(both, before):
        order = [np.sign(both[first][day] - both[second][day]) for day in (before, after)]
        signs.append(float(1 - order[0] * order[1]) / 2)
    return signs
