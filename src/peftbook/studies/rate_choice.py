"""What does it cost to choose a learning rate with one seed?

Written before its runs. Nearly every sweep of the book trains each rate with one seed. Here the best rate of each sweep
and its neighbours are trained with two further seeds; where these make another rate the best, its neighbours get them
too. A rate's loss is then the mean validation loss of its three seeds. Runs are in the order of what they can change:
first the sweeps behind the front page and behind verdicts that decide something, then those of open verdicts.

Known before: the further seeds of full fine-tuning and of LoRA on E2E, which `learning_rate` made. They choose 8e-4
for LoRA of rank 16, where one seed had chosen 1.6e-3.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np

from peftbook.core.records import Missing, Store
from peftbook.core.specs import Run
from peftbook.evidence import stats
from peftbook.evidence.planning import judge_claim
from peftbook.evidence.sweep import Sweep, best_of, trials, validation_loss
from peftbook.studies import (
    Quantity,
    Verdict,
    batch_size,
    benchmark,
    beyond_lora,
    data_size,
    learning_rate,
    margins,
    methods,
    prompt_design,
    qlora_width,
    recovery,
    scaling,
    sql,
    study,
    targets,
    two_rates,
    variants,
)
from peftbook.studies.tuned_comparison import FURTHER, TunedComparison

MARGIN = margins.LOSS / 2  # so that the choices of two arms cost no more than what counts
# In order of worth; arms that several comparisons share are the same runs.
COMPARISONS: tuple[TunedComparison, ...] = (
    benchmark.COMPARISON,
    beyond_lora.COMPARISON,
    data_size.COMPARISONS[100],
    prompt_design.COMPARISON,
    two_rates.COMPARISON,
    variants.COMPARISON,
    targets.COMPARISON,
    learning_rate.SHORT,
    scaling.COMPARISON,
    *batch_size.COMPARISONS.values(),
    *qlora_width.PLANS.values(),
    *recovery.COMPARISONS.values(),
    sql.COMPARISON,
    *data_size.COMPARISONS.values(),
    learning_rate.LONG,
)


def sweeps() -> Iterator[tuple[Sweep[Run], Sweep[Run]]]:
    """Each tuned arm's sweep with one seed and with further seeds, in order of worth; arms of several studies once."""
    known = set()
    for comparison in (methods.plan, *COMPARISONS):
        for arm in comparison.arms:
            one, several = comparison.tuning(arm), comparison.tuning(arm, FURTHER)
            grid = tuple(run.key for rate in one.grid for run in one.make(rate))
            if grid and grid not in known:
                known.add(grid)
                yield one, several


def runs(store: Store) -> list[Run]:
    """The runs of the sweeps with further seeds, sweep by sweep, each once."""
    found = {run.key: run for _, several in sweeps() for run in trials([several], store.get)}
    return list(found.values())


def cost(one: Sweep[Run], several: Sweep[Run], store: Store) -> float:
    """Nats that the rate chosen with one seed costs, by the mean loss of three; infinite if one of them diverged there.

    An upper bound: the lowest of several noisy means is lower than the loss to be had. Raises Missing.
    """
    losses = several.losses(store.get)
    return losses[one.best(store.get)] - losses[best_of(losses)]


def costs(store: Store) -> tuple[list[float], tuple[str, ...]]:
    """The cost of each sweep whose further runs are there, and the keys of all runs behind them."""
    found, keys = [], dict[str, None]()
    for one, several in sweeps():
        with suppress(Missing):
            found.append(cost(one, several, store))
            keys |= dict.fromkeys(run.key for trial in several.plan(store.get).values() for run in trial)
    return found, tuple(keys)


def contrast(store: Store) -> dict[str, Quantity]:
    """How much two neighbouring rates differ with one seed, in the variance that one rate has between seeds.

    Pooled over the pairs of rates whose further runs are there, and of single arms the lowest and the highest.
    `stats.rate_noise` has the value of the first 15 pairs.
    """
    pairs: dict[tuple[str, ...], tuple[float, float]] = {}
    shares = []  # of the arms
    for _, several in sweeps():
        own = {}
        whole = [runs for runs in several.plan(store.get).values() if len(runs) > 1 and all(map(store.get, runs))]
        for runs in itertools.pairwise(whole):
            losses = np.array([[validation_loss(store.need(run)) for run in trial] for trial in runs])
            if np.isfinite(losses).all():
                spread = float(np.diff(losses, axis=0).var(ddof=1)), float(losses.var(axis=1, ddof=1).mean())
                own[tuple(run.key for trial in runs for run in trial)] = spread
        shares += [pooled(own)] * bool(own)
        pairs |= own
    keys = tuple(dict.fromkeys(itertools.chain(*pairs)))
    each = functools.partial(Quantity, unit="", runs=keys, n=len(pairs), seeds=1 + len(FURTHER))
    return {
        "contrast": each(pooled(pairs), note="n: pairs of rates"),
        "contrast_lowest": each(min(shares, default=math.nan), note="of single arms"),
        "contrast_highest": each(max(shares, default=math.nan), note="of single arms"),
    }


def pooled(pairs: Mapping[tuple[str, ...], tuple[float, float]]) -> float:
    """The variances of differences over those of single rates, of all pairs together."""
    return math.fsum(one for one, _ in pairs.values()) / (math.fsum(of for _, of in pairs.values()) or math.nan)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """How many sweeps were asked, in how many three seeds choose another rate, and what one seed's choice costs."""
    found, keys = costs(store)
    if not found:
        return {}
    finite = [one for one in found if math.isfinite(one)]
    count = functools.partial(Quantity, unit="sweeps", runs=keys, n=len(found), digits=0)
    return {
        **contrast(store),
        "sweeps": count(len(found)),
        "moved": count(sum(one > 0 for one in found)),
        "diverged": count(len(found) - len(finite)),
        "cost": Quantity.of(stats.seed_interval(finite), "nats per token", keys),
        "largest_cost": Quantity(max(finite), "nats per token", keys, n=len(finite)),
    }


@study("rate_choice", runs, quantities)
def verdict(store: Store) -> Verdict:
    """Does the choice cost less than the margin on average, over sweeps? Asked when all further runs are there."""
    store.need_all(runs(store))
    found, _ = costs(store)
    finite = [one for one in found if math.isfinite(one)]
    mean = stats.seed_interval(finite)
    outcome, part = judge_claim(mean, 0.0, (-math.inf, MARGIN))
    moved, diverged = sum(one > 0 for one in found), len(found) - len(finite)
    sentence = (
        f"In {moved} of {len(found)} sweeps three seeds choose another rate than one; choosing with one costs "
        f"{mean.mean:.4f} nats per token on average (95 % interval {mean.low:.4f} to {mean.high:.4f}; "
        f"margin {MARGIN:g})"
        f"{f', and in {diverged} a further seed diverges at the chosen rate' if diverged else ''}."
    )
    return Verdict("refuted" if diverged and outcome == "reproduced" else outcome, sentence, ("cost", "moved"), (part,))
