"""Does LoRA forget less, and does full fine-tuning stay free of intruder dimensions?

Written before the runs. Full fine-tuning at three rates and LoRA of ranks 8, 64 and 256 on E2E, with the loss on
general prose taken while they train; three seeds. Methods are compared at *matched* target loss: prose loss is
interpolated linearly in target loss to the worst final target loss among the two arms compared, so that learning less
is not counted as forgetting less. The rate of full fine-tuning that is compared is the one with the lowest final
target loss. Intruders: one run each of full fine-tuning and the three ranks, at the same rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from peftbook import metrics, specs
from peftbook.records import Record, Store
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.standard import E2E_TOKENS
from peftbook.studies.sweep import as_quantity, decide
from peftbook.tasks import task_spec

__all__ = ["ARMS", "SEEDS", "STUDIES", "curves", "intruder_probe", "matched", "probe"]

SEEDS = (1, 2, 3)
STEPS = (5, 10, 20, 30, 45)
MARGIN = 0.01  # nats per token of prose
INTRUDER_EPSILON = "0.6"
ARMS: dict[str, tuple[specs.Method, float]] = {
    "full_low": (specs.Full(), 2.5e-5),
    "full_middle": (specs.Full(), 1e-4),
    "full_high": (specs.Full(), 4e-4),
    "r8": (specs.LoRA(rank=8), 8e-4),
    "r64": (specs.LoRA(rank=64), 8e-4),
    "r256": (specs.LoRA(rank=256), 8e-4),
}
FULL = ("full_low", "full_middle", "full_high")


def run_of(arm: str, seed: int) -> specs.Run:
    """The training that is watched."""
    method, rate = ARMS[arm]
    return specs.Run(
        task=task_spec("e2e"),
        method=method,
        budget=specs.Budget(tokens=E2E_TOKENS, learning_rate=rate),
        evaluation=specs.Evaluation(split="validation", n_loss=100),
        seed=seed,
    )


def probe(arm: str, seed: int) -> specs.Probe:
    """Target and prose loss while one arm trains."""
    return specs.Probe(
        measure="curves.learning_curve", settings={"steps": STEPS, "prose": True}, runs=(run_of(arm, seed),), seed=seed
    )


def intruder_probe(arm: str) -> specs.Probe:
    """Singular vectors of one trained arm."""
    return specs.Probe(measure="weights.intruders", runs=(run_of(arm, SEEDS[0]),), seed=SEEDS[0])


def curves(arm: str, store: Store) -> list[Record]:
    """The arm's curves in seed order; empty unless all are there."""
    found = [record for seed in SEEDS if (record := store.get(probe(arm, seed))) is not None]
    return found if len(found) == len(SEEDS) else []


def matched(record: Record, target: float) -> float:
    """Prose loss at the first moment at which the target loss has fallen to `target`, linear between measurements."""
    aims = [float(value) for value in record.curve["validation_loss_nats"]]
    prose = [float(value) for value in record.curve["prose_loss_nats"]]
    for at in range(1, len(aims)):
        if aims[at] <= target:
            return float(np.interp(-target, [-aims[at - 1], -aims[at]], [prose[at - 1], prose[at]]))
    return prose[-1]


def best_full(store: Store) -> str | None:
    """The rate of full fine-tuning with the lowest final target loss."""
    final = {}
    for arm in FULL:
        if not (found := curves(arm, store)):
            return None
        final[arm] = math.fsum(float(one.curve["validation_loss_nats"][-1]) for one in found)
    return min(final, key=lambda arm: final[arm])


def difference(first: str, second: str, store: Store) -> metrics.Interval | None:
    """Prose loss of first − second at matched target loss, paired by seed."""
    one, two = curves(first, store), curves(second, store)
    if not one or not two:
        return None
    rows = []
    for a, b in zip(one, two, strict=True):
        target = max(min(float(v) for v in record.curve["validation_loss_nats"]) for record in (a, b))
        rows.append([matched(a, target) - matched(b, target)])
    return metrics.mean_interval(rows)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Final target and prose loss of each arm, differences at matched loss, intruders and rank of the update."""
    out: dict[str, Quantity] = {}
    for arm in ARMS:
        if found := curves(arm, store):
            keys = tuple(one.key for one in found)
            for name in ("validation", "prose"):
                rows = [[float(one.curve[f"{name}_loss_nats"][-1])] for one in found]
                out[f"{arm}_{name}_loss"] = as_quantity(metrics.mean_interval(rows), "nats per token", keys, len(SEEDS))
            rise = [[float(one.curve["prose_loss_nats"][-1]) - float(one.curve["prose_loss_nats"][0])] for one in found]
            out[f"{arm}_forgotten"] = as_quantity(metrics.mean_interval(rise), "nats per token", keys, len(SEEDS))
        if (record := store.get(intruder_probe(arm))) is not None:
            key = (record.key,)
            count = float(record.measurements[f"intruders_{INTRUDER_EPSILON}"] or 0)
            vectors = int(record.measurements["vectors"] or 0)
            out[f"{arm}_intruders"] = Quantity(count, f"of {vectors}", key, seeds=1, digits=0)
            rank = float(record.measurements["median_rank_of_update"] or 0)
            out[f"{arm}_update_rank"] = Quantity(rank, "", key, seeds=1, digits=0)
    if (full := best_full(store)) is not None:
        for arm in ("r8", "r64", "r256"):
            if (found_difference := difference(full, arm, store)) is not None:
                keys = tuple(one.key for name in (full, arm) for one in curves(name, store))
                out[f"full_minus_{arm}_prose"] = as_quantity(found_difference, "nats per token", keys, len(SEEDS))
    return out


def forgetting_verdict(store: Store) -> Verdict:
    """At matched target loss, has full fine-tuning lost more on prose than LoRA of rank 64?"""
    full = best_full(store)
    found = difference(full, "r64", store) if full else None
    return decide(
        found, MARGIN, (0.0, math.inf), "At matched target loss, the prose loss of full fine-tuning minus LoRA's",
        "full_minus_r64_prose", "nats per token",
    )  # fmt: skip


def intruder_verdict(store: Store) -> Verdict:
    """Does LoRA of rank 8 have intruder dimensions and full fine-tuning at its best rate none?"""
    full = best_full(store)
    records = [store.get(intruder_probe(arm)) for arm in (full, "r8") if arm]
    if len(records) < 2 or any(one is None for one in records):
        return Verdict("not yet run", "The runs of full fine-tuning and LoRA are not all there.")
    counts = [int(one.measurements[f"intruders_{INTRUDER_EPSILON}"] or 0) for one in records if one]
    vectors = int(records[0].measurements["vectors"] or 0) if records[0] else 0
    outcome = "reproduced" if counts[0] == 0 < counts[1] else "refuted" if counts[0] >= counts[1] else "undecided"
    return Verdict(
        outcome,
        f"At ε = {INTRUDER_EPSILON}, {counts[0]} of {vectors} leading singular vectors are new after full fine-tuning "
        f"and {counts[1]} after LoRA (r = 8); one seed.",
        ("r8_intruders",),
    )


LIMITS = (
    "A few dozen steps on one easy task; prose of two public-domain sources, which the model has probably read. Longer "
    "training forgets more."
)


def runs(store: Store) -> list[specs.Probe]:
    """Curves seed by seed, then the intruder runs."""
    return [probe(arm, seed) for seed in SEEDS for arm in ARMS] + [
        intruder_probe(arm) for arm in ("full_middle", "full_high", "full_low", "r8", "r64", "r256")
    ]


STUDIES = {
    "forgetting": Study(
        name="forgetting",
        title="Does LoRA forget less?",
        claim="LoRA forgets less than full fine-tuning, even where both have learned the same.",
        source="biderman2024, sections 4.2 and 4.3",
        refuted_if=f"at matched target loss LoRA (r = 64) has lost more than full fine-tuning on prose by over "
        f"{MARGIN} nats per token (the whole 95 % interval beyond the margin).",
        does_not_show=LIMITS,
        chapter="book/head-to-head",
        runs=runs,
        quantities=quantities,
        verdict=forgetting_verdict,
    ),
    "intruders": Study(
        name="intruders",
        title="Does LoRA bring new singular directions?",
        claim="LoRA brings intruder dimensions into the weights, full fine-tuning does not.",
        source="shuttleworth2024, abstract",
        refuted_if="full fine-tuning has at least as many intruder dimensions as LoRA of rank 8.",
        does_not_show=LIMITS + " Five of thirty layers; counts have one seed and no interval.",
        chapter="book/lora",
        runs=runs,
        quantities=quantities,
        verdict=intruder_verdict,
    ),
}
