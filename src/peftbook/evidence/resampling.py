"""The rule of `stats` for a statistic that is not a mean over examples, by replicates of the examples."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable

import numpy as np

from peftbook.evidence.stats import Groups, Interval, freedom_of, group_codes, seed_interval, standard_errors

DRAWS = 2000  # of the bootstrap


@functools.lru_cache(maxsize=4)
def resamples(examples: int, draws: int = DRAWS) -> np.ndarray:
    """Indices of all examples in order, then of `draws` bootstrap samples: (1 + draws, examples), read-only."""
    rng = np.random.default_rng(20260101)
    picks = np.concatenate([np.arange(examples)[None], rng.integers(examples, size=(draws, examples))])
    picks.flags.writeable = False
    return picks


@functools.lru_cache(maxsize=8)
def replicates(examples: int, groups: tuple[Hashable, ...] = ()) -> np.ndarray:
    """How often each example counts: once, then in each replicate; (1 + replicates, examples), read-only.

    The replicates are the bootstrap samples of `resamples`; where examples share groups, each leaves out one group.
    """
    if codes := group_codes(groups, examples):
        counts = np.concatenate([np.ones((1, examples)), np.arange(max(codes) + 1)[:, None] != np.array(codes)])
    else:
        counts = np.stack([np.bincount(picks, minlength=examples) for picks in resamples(examples)]).astype(float)
    counts.flags.writeable = False
    return counts


def statistic_interval(values: np.ndarray, examples: int, groups: Groups = ()) -> Interval:
    """`stats.score_interval` for a statistic that is not a mean over examples.

    values: (1 + replicates, seeds), the statistic on the rows of `replicates(examples, groups)`, or of `resamples`; not
    finite where a replicate has none. The error of the examples is infinite for a single example, and where a group
    cannot be left out or half the samples have no value.
    """
    per_seed, moved = values[0], values[1:][np.isfinite(values[1:]).all(axis=1)]
    if codes := group_codes(groups, examples):
        units = np.bincount(codes).astype(float)
        deviations, scale, needed = moved - per_seed, 1 - 1 / len(units), max(len(units), 2)
    else:
        units = np.ones(examples)
        deviations, scale, needed = moved - moved.mean(axis=0), 1 / max(len(moved) - 1, 1), len(values) // 2
    count = len(units) if codes else 0
    if len(units) == 1 or len(moved) < needed:
        unknown = seed_interval(per_seed)
        return Interval.of(unknown.mean, unknown.seed_se, math.inf, unknown.seeds, examples, 1.0, count)
    seed_se, example_se = (float(error) for error in standard_errors(per_seed, deviations, scale))
    return Interval.of(float(per_seed.mean()), seed_se, example_se, len(per_seed), examples, freedom_of(units), count)


def percentile_interval(draws: np.ndarray, seeds: int, examples: int) -> Interval:
    """The interval between percentiles of bootstrap draws of a statistic; `mean` is its middle, not the statistic."""
    low95, low90, high90, high95 = (float(end) for end in np.nanquantile(draws, [0.025, 0.05, 0.95, 0.975]))
    middle, half95, half90 = (low95 + high95) / 2, (high95 - low95) / 2, (high90 - low90) / 2
    return Interval(middle, half95, half90, 0.0, float(np.nanstd(draws)), seeds, examples)
