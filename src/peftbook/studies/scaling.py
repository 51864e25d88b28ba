"""α/r or α/√r? Rank-stabilised scaling at a fixed rate and after tuning.

Written before the runs. At alpha 32, ranks 16, 64 and 256, with either scaling. Fixed rate: the best rate of rank 16
with the standard scaling, where γ = α/r = 2; at rank 256 γ is 1/8 with the standard scaling and 2 with the stabilised
one. Tuned: each arm's own best of a grid a factor of 4 apart. Under Adam without clipping, multiplying γ by c is the
same as multiplying B's learning rate by c, so α/√r at rank r is LoRA+ with ratio √r: the last arm is that twin, and its
difference to the stabilised one should be none.

Size of the update: RMS(γBAx) / RMS(Wx), median over modules, after a training at one rate for all ranks and both
scalings; the exponent of the rank is the slope of its logarithm. After one step of SGD it is −1 with α/r and 0 with
α/√r, which is the paper's argument. After one step of Adam it is between −½ and 0 with α/r and between 0 and ½ with
α/√r, by how alike the texts are (chapter LoRA). Here whole trainings decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from peftbook import metrics, specs
from peftbook.methods.lora import LoRA
from peftbook.records import Store
from peftbook.specs import Run
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.standard import E2E_TOKENS, rates
from peftbook.studies.sweep import Arm, Comparison, as_quantity, decide
from peftbook.tasks import task_spec

__all__ = ["COMPARISON", "RANKS", "STUDIES"]

RANKS = (16, 64, 256)
MARGIN = 0.02  # nats per token
SCALINGS = {"standard": "standard", "rank_stabilized": "stabilised"}
SIZE_RANKS = (4, 16, 64, 256)
SIZE_SEEDS = (1, 2, 3)
SIZE_TOKENS, SIZE_RATE, SIZE_EXAMPLES = 14_000, 2e-4, 20
LEAST_EXPONENT = 0.25  # of the rank: halfway between no dependence and the root
COMPARISON = Comparison(
    task="e2e",
    tokens=E2E_TOKENS,
    arms=(
        *(Arm(f"standard{r}", f"α/r, r = {r}", LoRA(rank=r), rates(-2, 4, 2), 2e-4) for r in RANKS),
        *(
            Arm(f"stabilised{r}", f"α/√r, r = {r}", LoRA(rank=r, scaling="rank_stabilized"), rates(-4, 2, 2))
            for r in RANKS
        ),
        Arm("plus256", "α/r, r = 256, η_B = 16 η_A", LoRA(rank=256, b_rate_ratio=16), rates(-4, 2, 2)),
    ),
    factor=4,
)


def fixed_runs(store: Store) -> dict[str, list[Run]]:
    """Both scalings at rank 256 with rank 16's best standard rate, on the fresh seeds; empty until it is known."""
    rate = COMPARISON.best(COMPARISON.arm("standard16"), store)
    if rate is None:
        return {}
    return {
        name: [COMPARISON.final_run(COMPARISON.arm(name), rate, seed) for seed in COMPARISON.seeds]
        for name in ("standard256", "stabilised256")
    }


def fixed_difference(store: Store) -> metrics.Interval | None:
    """Loss of α/√r minus α/r at rank 256 and the fixed rate."""
    found = {name: [store.get(run) for run in runs] for name, runs in fixed_runs(store).items()}
    if not found or any(one is None or one.failure for records in found.values() for one in records):
        return None
    tables = {
        name: [[float(v) for v in one.per_example["loss_nats"]] for one in records if one]
        for name, records in found.items()
    }
    first = found["standard256"][0]
    weights = [float(value) for value in first.per_example["label_tokens"]] if first else []
    return metrics.paired_interval(tables["stabilised256"], tables["standard256"], weights)


def size_probe(scaling: str, rank: int, seed: int) -> specs.Probe:
    """One training at the fixed rate, whose update is measured."""
    run = specs.Run(
        task=task_spec("e2e"),
        method=LoRA(rank=rank, scaling=scaling),  # type: ignore[arg-type]
        budget=specs.Budget(tokens=SIZE_TOKENS, learning_rate=SIZE_RATE),
        evaluation=specs.Evaluation(split="validation", n_loss=SIZE_EXAMPLES),
        seed=seed,
    )
    return specs.Probe(measure="weights.update_size", runs=(run,), seed=seed)


def size_probes(store: Store) -> list[specs.Probe]:
    """Both scalings at every rank, seed by seed."""
    return [size_probe(scaling, rank, seed) for seed in SIZE_SEEDS for rank in SIZE_RANKS for scaling in SCALINGS]


def sizes(scaling: str, rank: int, store: Store) -> list[float]:
    """The median change of the outputs, for each seed; empty unless all are there."""
    found = [record for seed in SIZE_SEEDS if (record := store.get(size_probe(scaling, rank, seed))) is not None]
    return [float(one.measurements["median_change"] or 0) for one in found] if len(found) == len(SIZE_SEEDS) else []


def exponent(scaling: str, store: Store) -> metrics.Interval | None:
    """Slope of log(size) on log(rank), over seeds; None while a record is missing."""
    table = [sizes(scaling, rank, store) for rank in SIZE_RANKS]
    if not all(table):
        return None
    slopes = np.polyfit(np.log(SIZE_RANKS), np.log(np.array(table)), 1)[0]
    return metrics.mean_interval([[float(slope)] for slope in slopes])


def size_quantities(store: Store) -> Mapping[str, Quantity]:
    """The size of the update at each rank and the exponent of the rank, for both scalings."""
    out: dict[str, Quantity] = {}
    for scaling, name in SCALINGS.items():
        keys = tuple(size_probe(scaling, rank, seed).key for rank in SIZE_RANKS for seed in SIZE_SEEDS)
        for rank in SIZE_RANKS:
            if values := sizes(scaling, rank, store):
                mine = tuple(size_probe(scaling, rank, seed).key for seed in SIZE_SEEDS)
                interval = metrics.mean_interval([[100 * value] for value in values])
                out[f"{name}_r{rank}_change"] = as_quantity(interval, "%", mine, len(values), 2)
        if (found := exponent(scaling, store)) is not None:
            out[f"{name}_exponent"] = as_quantity(found, "", keys, len(SIZE_SEEDS), 2)
    return out


def size_verdict(store: Store) -> Verdict:
    """Does the update shrink with the rank under α/r, and keep its size under α/√r?"""
    plain, stabilised = (exponent(scaling, store) for scaling in SCALINGS)
    if plain is None or stabilised is None:
        return Verdict("not yet run", "The trainings at one rate for all ranks are not all there.")
    parts = {
        metrics.judge(plain, 0.0, (-math.inf, -LEAST_EXPONENT)),
        metrics.judge(stabilised, 0.0, (-LEAST_EXPONENT, LEAST_EXPONENT)),
    }
    outcome = "refuted" if "refuted" in parts else "reproduced" if parts == {"reproduced"} else "undecided"
    sentence = (
        f"At rate {SIZE_RATE:g} the size of the update goes with the rank to the power {plain.mean:+.2f} under α/r "
        f"(95 % interval {plain.low:+.2f} to {plain.high:+.2f}; claim below {-LEAST_EXPONENT:g}) and "
        f"{stabilised.mean:+.2f} under α/√r ({stabilised.low:+.2f} to {stabilised.high:+.2f}; claim within "
        f"±{LEAST_EXPONENT:g})."
    )
    return Verdict(outcome, sentence, ("standard_exponent", "stabilised_exponent"))


def runs(store: Store) -> list[Run]:
    """Sweeps and finals, then the pair at the fixed rate."""
    return COMPARISON.runs(store) + [run for pair in fixed_runs(store).values() for run in pair]


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Losses, the tuned differences by rank, and the difference at the fixed rate."""
    out = COMPARISON.quantities(store)
    for rank in RANKS:
        out |= COMPARISON.paired(f"stabilised{rank}", f"standard{rank}", store)
    out |= COMPARISON.paired("stabilised256", "plus256", store)
    if (fixed := fixed_difference(store)) is not None:
        keys = tuple(run.key for pair in fixed_runs(store).values() for run in pair)
        out["fixed_rate_difference"] = as_quantity(fixed, "nats per token", keys, len(COMPARISON.seeds))
    return out


def fixed_verdict(store: Store) -> Verdict:
    """At a fixed rate, is α/√r better at rank 256?"""
    what, found = "At a fixed rate, the loss of α/√r minus α/r at rank 256", fixed_difference(store)
    pairs = fixed_runs(store).values()
    if found is None and pairs and all(run in store for runs in pairs for run in runs):
        return Verdict("undecided", f"{what}: a run diverged at the fixed rate.")
    return decide(found, 0.0, (-math.inf, -MARGIN), what, "fixed_rate_difference", "nats per token")


def tuned_verdict(store: Store) -> Verdict:
    """After tuning, is α/√r still better at rank 256?"""
    what = "After tuning one shared rate, the loss of α/√r minus α/r at rank 256"
    return COMPARISON.verdict("stabilised256", "standard256", 0.0, (-math.inf, -MARGIN), what, store)


LIMITS = (
    "Short training with Adam; without Adam, or where gradients are clipped, the two scalings do not differ by B's "
    "learning rate alone. The fixed rate was tuned where γ = 2, which is the stabilised arm's γ and favours it."
)
STUDIES = {
    "scaling": Study(
        name="scaling",
        title="Does α/√r help at a fixed learning rate?",
        claim="At a fixed learning rate, α/√r makes high ranks learn better than α/r.",
        source="kalajdzievski2023, abstract",
        refuted_if=f"at rank 256 α/√r is not better by {MARGIN} nats per token (the whole 95 % interval above that).",
        does_not_show=LIMITS,
        chapter="book/lora-practice",
        runs=runs,
        quantities=quantities,
        verdict=fixed_verdict,
    ),
    "scaling_tuned": Study(
        name="scaling_tuned",
        title="Does the gain of α/√r survive tuning?",
        claim="The gain of α/√r survives the tuning of one learning rate for A and B.",
        source="kalajdzievski2023, abstract",
        refuted_if=f"after tuning α/√r is not better at rank 256 by {MARGIN} nats per token (the whole 95 % interval "
        "above that): then the gain was learning rate.",
        does_not_show=LIMITS + " A gain that survives may still be one of the ratio of B's rate to A's: the twin arm "
        "with that ratio is shown beside it.",
        chapter="book/lora-practice",
        runs=runs,
        quantities=quantities,
        verdict=tuned_verdict,
    ),
    "scaling_size": Study(
        name="scaling_size",
        title="How large is the update at each rank?",
        claim="With α/r the update shrinks as the rank grows; with α/√r it keeps its size.",
        source="kalajdzievski2023, section 3",
        refuted_if=f"the exponent of the rank is above {-LEAST_EXPONENT:g} with α/r, or beyond ±{LEAST_EXPONENT:g} "
        "with α/√r (the whole 95 % interval).",
        does_not_show="One rate and a training of a few steps with Adam; the paper's theorem is about the start of a "
        "training and about the order of magnitude. The median over modules and the mean over positions, on texts like "
        "those trained on.",
        chapter="book/lora-practice",
        runs=size_probes,
        quantities=size_quantities,
        verdict=size_verdict,
    ),
}
