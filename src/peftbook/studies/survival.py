"""Is what requantising loses told by the size of the update against the steps of the grid?

Written before the runs. On the small Llama and on SmolLM2: QLoRA on NF4 with double quantisation, rank 16, at rates
that span about two orders of magnitude, five seeds each; every adapter is merged into its 4-bit base, which is then
quantised again. On SmolLM2 five of the thirty layers are adapted: with all of them the rates that make an update large
break the model. Rates, layers and budgets were chosen by the size of the update, κ (below) and the gain of single runs
with a seed of their own; what requantising leaves of their gains was not looked at. Known from `requantised` was that
the small Llama loses next to nothing at a high rate, and SmolLM2 nearly all at a lower one.

Size: over all weights of the adapted matrices, the root mean square of the update γBA over that of the least change
that rounding does not undo, half the distance from the weight's level to the nearest other one times the constant of
its block (`half_steps`). It needs no data. Kept share: what is left, after requantising, of the adapter's gain in loss
on validation examples. On each model the larger update keeps more: Spearman's rank correlation of size and kept share
over the rates, with each seed. And one scale of sizes does for both models: the size at which half of the gain is kept
is the same up to a factor. (A rank correlation over both models together is shown and not judged: it stays near 0.8
even where one model keeps all from a size on at which the other keeps nothing.)

An adapter that does not surely gain FLOOR has nothing to keep and is left out.

Beside it, and not on trial: κ = ⟨R, D⟩ / ‖D‖² of the update D and of what is left of it, R, which takes the rounding
and no data either, with its distance from the kept share.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Missing, Store
from peftbook.evidence import resampling, stats
from peftbook.evidence.comparison import measured, weights
from peftbook.evidence.planning import Judged, judge_claim
from peftbook.methods.qlora import QLoRA
from peftbook.studies import Quantity, Verdict, study
from peftbook.studies.merging import nats, percent, ratio_quantity
from peftbook.studies.standard import probe_of, rates, training
from peftbook.studies.weight_error import spearman
from peftbook.tasks import split_groups

SEEDS = (1, 2, 3, 4, 5)
EXAMPLES = 60
LEAST = 0.8  # of the rank correlation
MARGIN = 0.1
SCALE = 2.0  # the factor by which the sizes at which two models keep half may differ
SCALE_MARGIN = 1.25  # a factor on top
FLOOR = 0.05  # nats per token that an adapter surely gains
NEAR = 0.25  # a kept share up to here is near nothing, and one from 1 − NEAR on near all
PARTS = 3  # of the claim
FEWEST = 4  # rates, of which a rank correlation can be taken
LABELS = {"small": "the small Llama", "smollm2": "SmolLM2"}
MODELS = {"small": specs.SMALL_LLAMA, "smollm2": specs.Model()}
METHODS = {"small": QLoRA(), "smollm2": QLoRA(layers=(2, 8, 14, 20, 26))}
RATES = {"small": rates(-1, 6), "smollm2": (4e-4, 1.6e-3, 3.2e-3, 6.4e-3, 9.1e-3, 1.28e-2)}
TOKENS = {"small": 14_000, "smollm2": 7_000}


class MergedAdapter(NamedTuple):
    """One rate on one model, with what its seeds left. kept: (1 + replicates, seeds), shares of the gain.

    size, update_kept: (seeds,), of the update against the steps, and κ.
    """

    model: str
    rate: float
    keys: tuple[str, ...]
    gain: stats.Interval
    size: np.ndarray
    update_kept: np.ndarray
    kept: np.ndarray
    examples: int

    @property
    def share(self) -> stats.Interval:
        """The share of the gain that is left."""
        return interval(self.kept, self.examples)


def groups() -> tuple[str, ...]:
    """The restaurant of each example."""
    return split_groups("e2e", "validation", EXAMPLES)


def interval(values: np.ndarray, examples: int) -> stats.Interval:
    """The interval of a statistic on the rows of `resampling.replicates`, over seeds and restaurants."""
    return resampling.statistic_interval(values, examples, groups())


def probe(model: str, rate: float, seed: int) -> specs.Probe:
    """One adapter, merged and quantised again."""
    more = {"n_loss": EXAMPLES, "model": MODELS[model]}
    return probe_of("serving.surviving_update", training("e2e", METHODS[model], TOKENS[model], rate, seed, **more))


def runs(store: Store) -> list[specs.Probe]:
    """Seed by seed, the small model first."""
    return [probe(model, rate, seed) for seed in SEEDS for model in MODELS for rate in RATES[model]]


def adapter(model: str, rate: float, store: Store) -> MergedAdapter:
    """What the records of a rate say. Raises Missing."""
    records = store.need_all(probe(model, rate, seed) for seed in SEEDS)
    untuned, merged, requantised = (nats(records, state) for state in ("untuned", "merged", "requantised"))
    counts = resampling.replicates(untuned.shape[1], groups())
    return MergedAdapter(
        model,
        rate,
        tuple(record.key for record in records),
        stats.paired_interval(untuned, merged, weights(records, "loss_nats")),
        np.array(measured(records, "size")),
        np.array(measured(records, "kept")),
        (counts @ (untuned - requantised).T) / (counts @ (untuned - merged).T),
        untuned.shape[1],
    )


def adapters(model: str, store: Store) -> list[MergedAdapter]:
    """All rates of a model, lowest first. Raises Missing."""
    return [adapter(model, rate, store) for rate in RATES[model]]


def gaining(found: Sequence[MergedAdapter]) -> list[MergedAdapter]:
    """Those that surely gain more than FLOOR."""
    return [one for one in found if one.gain.low > FLOOR]


def correlation(found: Sequence[MergedAdapter]) -> stats.Interval:
    """Spearman's correlation of size and kept share over the adapters, with each seed and each draw of examples."""
    size = np.array([one.size for one in found]).T  # (seeds, adapters)
    kept = np.array([one.kept for one in found]).transpose(1, 2, 0)  # (1 + replicates, seeds, adapters)
    return interval(spearman(np.broadcast_to(size, kept.shape), kept), found[0].examples)


def spans(found: Sequence[MergedAdapter]) -> bool:
    """The positive control: whether one surely keeps next to nothing and one surely next to all."""
    shares = [one.share for one in found]
    return any(share.mean + share.half(0.05 / len(shares)) <= NEAR for share in shares) and any(
        share.mean - share.half(0.05 / len(shares)) >= 1 - NEAR for share in shares
    )


def half_sizes(found: Sequence[MergedAdapter]) -> np.ndarray:
    """The size at which half of the gain is first kept, (1 + replicates, seeds); inf where that is never.

    Between two adapters that are next to each other in size, by the logarithm of their sizes.
    """
    size = np.log([one.size for one in found])  # (adapters, seeds)
    order = np.argsort(size, axis=0)
    size = np.take_along_axis(size, order, axis=0)[:, None]
    kept = np.array([one.kept for one in found])  # (adapters, 1 + replicates, seeds)
    kept = np.take_along_axis(kept, order[:, None], axis=0)
    crossed = (kept[:-1] < 0.5) & (kept[1:] >= 0.5)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = size[:-1] + (0.5 - kept[:-1]) / (kept[1:] - kept[:-1]) * (size[1:] - size[:-1])
    first = np.take_along_axis(at, crossed.argmax(axis=0)[None], axis=0)[0]
    return np.where(crossed.any(axis=0), np.exp(first), np.inf)


def scale(found: Mapping[str, Sequence[MergedAdapter]]) -> stats.Interval | None:
    """log of the size at which the first model keeps half over that of the second; None where one never does."""
    one, two = (half_sizes(chosen) for chosen in found.values())
    if not np.isfinite([one[0], two[0]]).all():
        return None
    with np.errstate(invalid="ignore"):
        return interval(np.log(one) - np.log(two), next(iter(found.values()))[0].examples)


def parts(store: Store) -> dict[str, list[MergedAdapter]]:
    """The adapters of each model that gain. Raises Missing."""
    return {model: gaining(adapters(model, store)) for model in MODELS}


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Of each adapter, by model and number, lowest rate first: size, κ, gain and kept share; then over adapters."""
    out: dict[str, Quantity] = {}
    for model in MODELS:
        with suppress(Missing):
            found = adapters(model, store)
            for number, one in enumerate(found, start=1):
                out |= adapter_quantities(f"{model}_{number}", one)
            out |= part_quantities(model, gaining(found))
    with suppress(Missing):
        found_by_model = parts(store)
        both = [one for chosen in found_by_model.values() for one in chosen]
        out |= part_quantities("both", both)
        if (apart := scale(found_by_model) if enough(found_by_model) else None) is not None:
            ratio = ratio_quantity(apart, tuple(key for one in both for key in one.keys))
            out["half_size_ratio"] = replace(ratio, note="the small Llama's over SmolLM2's")
    return out


def enough(found: Mapping[str, Sequence[MergedAdapter]]) -> bool:
    """Whether each model has adapters enough for a correlation."""
    return all(len(chosen) >= FEWEST for chosen in found.values())


def adapter_quantities(name: str, one: MergedAdapter) -> dict[str, Quantity]:
    """The rate of an adapter, the size of its update, κ, its gain and, where that is sure, the share that is kept."""
    out = {
        f"{name}_rate": Quantity(one.rate, "", one.keys, seeds=len(SEEDS), digits=-2),
        f"{name}_size": Quantity.of(stats.seed_interval(one.size), "", one.keys),
        f"{name}_update_kept": percent(stats.seed_interval(one.update_kept), one.keys),
        f"{name}_gain": Quantity.of(one.gain, "nats per token", one.keys),
    }
    return out | {f"{name}_kept": percent(one.share, one.keys) for one in gaining([one])}


def part_quantities(name: str, found: Sequence[MergedAdapter]) -> dict[str, Quantity]:
    """Over adapters: the correlation, the span of sizes, the size that keeps half, the distance of κ from the share."""
    keys = tuple(key for one in found for key in one.keys)
    out = {f"{name}_adapters": Quantity(float(len(found)), "", keys, seeds=len(SEEDS), digits=0)}
    if len(found) < FEWEST:
        return out
    size = np.array([one.size for one in found])  # (adapters, seeds)
    distance = np.abs(np.array([one.update_kept - one.kept[0] for one in found])).mean(axis=0)  # (seeds,)
    out[f"{name}_correlation"] = Quantity.of(correlation(found), "", keys, 2, among=(-1, 1))
    out[f"{name}_distance"] = percent(stats.seed_interval(distance), keys)
    out[f"{name}_span"] = Quantity.of(stats.seed_interval(size.max(axis=0) / size.min(axis=0)), "×", keys, 0)
    if name in MODELS and np.isfinite(half := half_sizes(found))[0].all():
        out[f"{name}_half_size"] = Quantity.of(interval(half, found[0].examples), "", keys, 2)
    return out


def correlation_part(model: str, found: Sequence[MergedAdapter]) -> tuple[str, str, list[Judged]]:
    """Outcome, words and what it was decided on: does the larger update keep more on this model?"""
    if len(found) < FEWEST:
        return "undecided", f"{len(found)} adapters that gain are too few on {LABELS[model]}", []
    interval = correlation(found)
    outcome, part = judge_claim(interval, MARGIN, (LEAST, math.inf), PARTS)
    said = (
        f"{interval.mean:.2f} on {LABELS[model]} (95 % interval {interval.low:.2f} to {min(interval.high, 1):.2f}; "
        f"{len(found)} adapters)"
    )
    if not spans(found):
        return "undecided", f"{said}, where none surely keeps next to nothing or none next to all", [part]
    return outcome, said, [part]


def scale_part(found: Mapping[str, Sequence[MergedAdapter]]) -> tuple[str, str, list[Judged]]:
    """Outcome, words and what it was decided on: does one scale of sizes do for both models?"""
    apart = scale(found) if enough(found) else None
    if apart is None:
        return "undecided", "No size is found at which each model keeps half", []
    outcome, part = judge_claim(apart, math.log(SCALE_MARGIN), (-math.log(SCALE), math.log(SCALE)), PARTS)
    ratio, low, high = apart.exp
    said = (
        f"Half of the gain is kept at sizes whose ratio, the small Llama's over SmolLM2's, is {ratio:.2f} (95 % "
        f"interval {low:.2f} to {high:.2f}; claim within a factor of {SCALE:g}, margin a factor of {SCALE_MARGIN:g})"
    )
    return outcome if all(map(spans, found.values())) else "undecided", said, [part]


@study("survival", runs, quantities, most=1 - NEAR, furthest=SCALE * SCALE_MARGIN)
def verdict(store: Store) -> Verdict:
    """Does the kept share of the gain rise with the size of the update on each model, on one scale of sizes?"""
    found = parts(store)
    by_model = (correlation_part(model, chosen) for model, chosen in found.items())
    outcomes, (*said, scales), decided = zip(*by_model, scale_part(found), strict=True)
    few = sum(map(len, RATES.values())) - sum(map(len, found.values()))
    left = f" {few} that do not surely gain {FLOOR} nats are left out." if few else ""
    known = quantities(store)
    names = (*(f"{model}_correlation" for model in found), "half_size_ratio")
    return Verdict(
        stats.together(outcomes),
        f"The rank correlation of an update's size with the share of its gain that requantising leaves is "
        f"{'; '.join(said)}; claim at least {LEAST}, margin {MARGIN}. {scales}.{left}",
        tuple(name for name in names if name in known),
        tuple(itertools.chain(*decided)),
    )
