"""Does LoRA forget less, and does full fine-tuning stay free of intruder dimensions?

Written before the runs. Full fine-tuning at three rates and LoRA of ranks 8, 64 and 256 on E2E, with the loss on
general prose taken while they train; three seeds. Methods are compared at *matched* target loss: the loss on each piece
of prose is interpolated linearly in target loss to the lowest target loss that both arms reach, so that
learning less is not counted as forgetting less. The comparison that decides is with the rate of full fine-tuning that
has the lowest final target loss; since it is chosen on the same curves, the sign must hold at the other two rates too.

Intruders: leading singular vectors that are new, after full fine-tuning at that rate and after LoRA of rank 8, three
seeds; the other arms have one. The sign must hold at every ε of the sweep at which either has any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Missing, Record, Store
from peftbook.evidence import stats
from peftbook.evidence.comparison import keys_of, measured
from peftbook.evidence.planning import judge_claim
from peftbook.methods import Method
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.studies import BLIND, Quantity, Verdict, available, by_seed, study
from peftbook.studies.frontier import reading
from peftbook.studies.standard import E2E_TOKENS, probe_of, training

SEEDS = (1, 2, 3)
STEPS = (5, 10, 20, 30, 45)
MARGIN = 0.01  # nats per token of prose: half of what counts on the task, since this model forgets little
EPSILON = 0.6  # the ε that decides about intruders
SWEEP = (0.4, 0.5, 0.6, 0.7, 0.8)
LEAST = 0.01  # of the leading singular vectors: the least difference that counts
ARMS: dict[str, tuple[Method, float]] = {
    "full_low": (Full(), 2.5e-5),
    "full_middle": (Full(), 1e-4),
    "full_high": (Full(), 4e-4),
    "r8": (LoRA(rank=8), 8e-4),
    "r64": (LoRA(rank=64), 8e-4),
    "r256": (LoRA(rank=256), 8e-4),
}
FULL = ("full_low", "full_middle", "full_high")


def run_of(arm: str, seed: int) -> specs.Run:
    """The training that is watched."""
    method, rate = ARMS[arm]
    return training("e2e", method, E2E_TOKENS, rate, seed, n_loss=100)


def probe(arm: str, seed: int) -> specs.Probe:
    """Target and prose loss while one arm trains."""
    return probe_of("curves.learning_curve", run_of(arm, seed), steps=STEPS, prose=True)


def intruder_probe(arm: str, seed: int = SEEDS[0]) -> specs.Probe:
    """Singular vectors of one trained arm."""
    return probe_of("weights.intruders", run_of(arm, seed))


curves, intruders = by_seed(probe, SEEDS), by_seed(intruder_probe, SEEDS)


def at_target(record: Record, values: np.ndarray, target: float) -> Any:
    """`values`, (moments, …), when the target loss first falls to `target`, linear between moments; else the last."""
    aims = np.array(record.curve["validation_loss_nats"], dtype=float)
    return reading(aims, values, target) if (aims[1:] <= target).any() else values[-1]


def matched(record: Record, target: float) -> float:
    """Prose loss, nats per token, at the target loss."""
    return float(at_target(record, np.array(record.curve["prose_loss_nats"], dtype=float), target))


def prose_nats(record: Record) -> tuple[np.ndarray, list[float]]:
    """Summed nats of every piece of prose, (moments, pieces), and the pieces' label tokens."""
    rows = [record.per_example[f"prose_nats_{int(step)}"] for step in record.curve["step"]]
    return np.array(rows, dtype=float), [float(count) for count in record.per_example["prose_tokens"]]


def best_full(store: Store) -> str:
    """The rate of full fine-tuning with the lowest final target loss. Raises Missing."""
    final = {
        arm: math.fsum(float(record.curve["validation_loss_nats"][-1]) for record in curves(arm, store)) for arm in FULL
    }
    return min(final, key=lambda arm: final[arm])


def difference(first: str, second: str, store: Store) -> stats.Interval:
    """Prose loss of first − second at matched target loss, paired over seeds and pieces of prose. Raises Missing."""
    one, two, rows = curves(first, store), curves(second, store), []
    for pair in zip(one, two, strict=True):
        target = max(min(float(v) for v in record.curve["validation_loss_nats"]) for record in pair)
        a, b = (at_target(record, prose_nats(record)[0], target) for record in pair)
        rows.append((a - b).tolist())
    return stats.mean_interval(rows, prose_nats(one[0])[1])


def share(record: Record, epsilon: float) -> float:
    """Share of the leading singular vectors that are intruders at ε."""
    count = float(record.measurements.get(f"intruders_{epsilon:g}") or 0)
    return count / float(record.measurements["vectors"] or 1)


def more_intruders(epsilon: float, store: Store) -> stats.Interval:
    """Share of intruders at ε of LoRA (r = 8) minus that of full fine-tuning at its best rate, paired by seed.

    Raises Missing.
    """
    one, two = intruders("r8", store), intruders(best_full(store), store)
    return stats.seed_interval([share(a, epsilon) - share(b, epsilon) for a, b in zip(one, two, strict=True)])


def runs(store: Store) -> list[specs.Probe]:
    """Curves seed by seed, then the intruder runs: one seed of each arm, two more of r = 8 and the best full rate."""
    first = [probe(arm, seed) for seed in SEEDS for arm in ARMS] + [
        intruder_probe(arm) for arm in ("full_middle", "full_high", "full_low", "r8", "r64", "r256")
    ]
    arms = ["r8", *available(best_full, [store])]
    return first + [intruder_probe(arm, seed) for seed in SEEDS[1:] for arm in arms]


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Final target and prose loss of each arm, differences at matched loss, intruders and rank of the update."""
    out: dict[str, Quantity] = {}
    for arm in ARMS:
        with suppress(Missing):
            out |= loss_quantities(arm, curves(arm, store))
        with suppress(Missing):
            out |= intruder_quantities(arm, store)
        if arm in FULL:
            with suppress(Missing):
                out[f"{arm}_minus_r64_prose"] = difference_quantity(arm, "r64", store)
    for arm in ("r8", "r64", "r256"):
        with suppress(Missing):
            out[f"full_minus_{arm}_prose"] = difference_quantity(best_full(store), arm, store)
    with suppress(Missing):
        keys = keys_of(*(intruders(name, store) for name in ("r8", best_full(store))))
        for epsilon in SWEEP:
            out[name_of(epsilon)] = Quantity.of(more_intruders(epsilon, store), "", keys)
    return out


def loss_quantities(arm: str, found: list[Record]) -> dict[str, Quantity]:
    """Final target and prose loss of an arm, and how much prose loss it has added."""
    keys = keys_of(found)
    last = stats.seed_interval([record.curve["validation_loss_nats"][-1] for record in found])
    target = Quantity.of(last, "nats per token", keys)
    out = {f"{arm}_validation_loss": replace(target, note="interval over seeds only")}
    prose, tokens = np.array([prose_nats(record)[0] for record in found]), prose_nats(found[0])[1]
    for name, nats in (("prose_loss", prose[:, -1]), ("forgotten", prose[:, -1] - prose[:, 0])):
        interval = stats.mean_interval(nats.tolist(), tokens)
        out[f"{arm}_{name}"] = Quantity.of(interval, "nats per token", keys)
    return out


def difference_quantity(first: str, second: str, store: Store) -> Quantity:
    """The difference of two arms. Raises Missing."""
    keys = keys_of(curves(first, store), curves(second, store))
    return Quantity.of(difference(first, second, store), "nats per token", keys)


def name_of(epsilon: float) -> str:
    """The quantity of `more_intruders`: ε in hundredths, since a name has no second point."""
    return f"r8_minus_full_intruders_{100 * epsilon:.0f}"


def intruder_quantities(arm: str, store: Store) -> dict[str, Quantity]:
    """Intruders of an arm at EPSILON and rank of its update, with an interval of all seeds. Raises Missing."""
    found = [store.need(intruder_probe(arm))]
    with suppress(Missing):
        found = intruders(arm, store)
    keys, vectors = keys_of(found), int(found[0].measurements["vectors"] or 0)
    counts = stats.seed_interval([vectors * share(one, EPSILON) for one in found])
    low, high = (counts.low, counts.high) if len(found) > 1 else (None, None)
    rank = math.fsum(measured(found, "median_rank_of_update")) / len(found)
    return {
        f"{arm}_intruders": Quantity(counts.mean, f"of {vectors}", keys, low, high, len(found), digits=0),
        f"{arm}_update_rank": Quantity(rank, "", keys, seeds=len(found), digits=0),
    }


@study("forgetting", runs, quantities)
def forgetting_verdict(store: Store) -> Verdict:
    """At matched target loss, has full fine-tuning lost more on prose than LoRA of rank 64, at every rate?"""
    full = best_full(store)
    found = {rate: difference(rate, "r64", store) for rate in FULL}
    chosen = found[full]
    said = "; ".join(f"{one:+.3f} at {ARMS[rate][1]:g}" for rate, one in found.items())
    sentence = (
        "At matched target loss the prose loss of full fine-tuning minus that of LoRA (r = 64) is, by the rate of full "
        f"fine-tuning, {said} nats per token (95 % intervals); the lowest target loss has {ARMS[full][1]:g}; margin "
        f"{MARGIN}"
    )
    (outcome, part), reason, held = judge_claim(chosen, MARGIN, (0.0, math.inf)), "", ""
    turns = any(one.mean * chosen.mean <= 0 for one in found.values())
    if turns and outcome != "equivalent":
        outcome, reason = "undecided", "; the sign changes with the rate"
        held = "the sign changes with the rate of full fine-tuning"
    elif outcome == "equivalent" and any(one.low > MARGIN or one.high < -MARGIN for one in found.values()):
        outcome, reason = "undecided", "; at another rate the difference is beyond the margin"
        held = "at another rate of full fine-tuning the difference is beyond the margin"
    elif outcome == "undecided":
        reason = f"; its half-width is {chosen.half95:.3f}"
    named = ("full_minus_r64_prose", *(f"{one}_minus_r64_prose" for one in FULL))
    return Verdict(outcome, f"{sentence}{reason}.", named, (part,), held)


@study("intruders", runs, quantities)
def intruder_verdict(store: Store) -> Verdict:
    """Does LoRA of rank 8 have more intruder dimensions than full fine-tuning at its best rate, at every ε?"""
    full, found = best_full(store), more_intruders(EPSILON, store)
    records = [intruders(arm, store) for arm in (full, "r8")]
    pairs = {epsilon: tuple(fmean(share(one, epsilon) for one in each) for each in records) for epsilon in SWEEP}
    named = (name_of(EPSILON), "r8_intruders", f"{full}_intruders")
    if max(map(max, pairs.values())) == 0:
        sentence = (
            f"None of the leading singular vectors is new after full fine-tuning (rate {ARMS[full][1]:g}) or after "
            f"LoRA (r = 8) at any ε from {min(SWEEP):g} to {max(SWEEP):g}, over {len(SEEDS)} seeds; the training is "
            "too short to bring any."
        )
        return Verdict("undecided", sentence, named, held=BLIND)
    said = "; ".join(f"{a:.1%} and {b:.1%} at ε = {epsilon:g}" for epsilon, (a, b) in pairs.items())
    sentence = (
        f"Of the leading singular vectors, new are after full fine-tuning (rate {ARMS[full][1]:g}) and after LoRA "
        f"(r = 8): {said}; the difference at {EPSILON:g} is {found.mean:+.1%} (95 % interval {found.low:+.1%} to "
        f"{found.high:+.1%} over {len(SEEDS)} seeds; least that counts {LEAST:.0%})"
    )
    if max(pairs[EPSILON]) == 0:
        return Verdict("undecided", f"{sentence}; the training is too short to bring any.", named, held=BLIND)
    (outcome, part), reason, held = judge_claim(found, LEAST, (0.0, math.inf)), "", ""
    signs = [b - a for a, b in pairs.values() if max(a, b) > 0]
    if outcome in ("reproduced", "refuted") and any(one * found.mean <= 0 for one in signs):
        outcome, reason = "undecided", "; the sign changes with ε"
        held = "the sign changes with ε"
    elif outcome == "undecided":
        reason = f"; its half-width is {found.half95:.1%}"
    return Verdict(outcome, f"{sentence}{reason}.", named, (part,), held)
