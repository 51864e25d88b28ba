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
from contextlib import suppress
from dataclasses import replace

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Missing, Store, Unusable
from peftbook.core.specs import Run
from peftbook.core.tracking import untracked
from peftbook.evidence import stats
from peftbook.evidence.comparison import measured, paired
from peftbook.methods.lora import LoRA
from peftbook.studies import Quantity, Verdict, available, margins, study
from peftbook.studies.standard import E2E_TOKENS, probe_of, rates, training
from peftbook.studies.tuned_comparison import Arm, TunedComparison, decide

RANKS = (16, 64, 256)
MARGIN = margins.LOSS
SCALINGS = {"standard": "standard", "rank_stabilized": "stabilised"}
SIZE_RANKS = (4, 16, 64, 256)
SIZE_SEEDS = (1, 2, 3)
SIZE_TOKENS, SIZE_RATE, SIZE_EXAMPLES = 14_000, 2e-4, 20
LEAST_EXPONENT = 0.25  # of the rank: halfway between no dependence and the root
COMPARISON = TunedComparison(
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
    """Both scalings at rank 256 with rank 16's best standard rate, on the fresh seeds. Raises Missing."""
    with untracked():
        rate = COMPARISON.best_rate("standard16", store)
    return {
        name: [COMPARISON.final_run(COMPARISON.arm(name), rate, seed) for seed in COMPARISON.seeds]
        for name in ("standard256", "stabilised256")
    }


def fixed_difference(store: Store) -> stats.Interval:
    """Loss of α/√r minus α/r at rank 256 and the fixed rate. Raises Missing."""
    plain, stabilised = (store.need_all(runs) for runs in fixed_runs(store).values())
    for record in (*plain, *stabilised):
        if record.failure:
            raise Unusable(record.spec, "A run diverged at the fixed rate.")
    return paired(stabilised, plain, "loss_nats", COMPARISON.groups(plain[0]))


def size_probe(scaling: str, rank: int, seed: int) -> specs.Probe:
    """One training at the fixed rate, whose update is measured."""
    method = LoRA(rank=rank, scaling=scaling)  # type: ignore[arg-type]
    return probe_of("weights.update_size", training("e2e", method, SIZE_TOKENS, SIZE_RATE, seed, n_loss=SIZE_EXAMPLES))


def size_probes(store: Store) -> list[specs.Probe]:
    """Both scalings at every rank, seed by seed."""
    return [size_probe(scaling, rank, seed) for seed in SIZE_SEEDS for rank in SIZE_RANKS for scaling in SCALINGS]


def sizes(scaling: str, rank: int, store: Store) -> list[float]:
    """The median change of the outputs, for each seed. Raises Missing."""
    records = store.need_all(size_probe(scaling, rank, seed) for seed in SIZE_SEEDS)
    return measured(records, "median_change")


def exponent(scaling: str, store: Store) -> stats.Interval:
    """Slope of log(size) on log(rank), over seeds. Raises Missing."""
    table = [sizes(scaling, rank, store) for rank in SIZE_RANKS]
    slopes = np.polyfit(np.log(SIZE_RANKS), np.log(np.array(table)), 1)[0]
    return stats.seed_interval(slopes)


def size_quantities(store: Store) -> Mapping[str, Quantity]:
    """The size of the update at each rank and the exponent of the rank, for both scalings."""
    out: dict[str, Quantity] = {}
    for scaling, name in SCALINGS.items():
        for rank in SIZE_RANKS:
            with suppress(Missing):
                interval = stats.seed_interval([100 * value for value in sizes(scaling, rank, store)])
                keys = tuple(size_probe(scaling, rank, seed).key for seed in SIZE_SEEDS)
                out[f"{name}_r{rank}_change"] = Quantity.of(interval, "%", keys, 2)
        with suppress(Missing):
            keys = tuple(size_probe(scaling, rank, seed).key for rank in SIZE_RANKS for seed in SIZE_SEEDS)
            out[f"{name}_exponent"] = Quantity.of(exponent(scaling, store), "", keys, 2)
    return out


@study("scaling_size", size_probes, size_quantities, highest=-LEAST_EXPONENT)
def size_verdict(store: Store) -> Verdict:
    """Does the update shrink with the rank under α/r, and keep its size under α/√r?"""
    plain, stabilised = (exponent(scaling, store) for scaling in SCALINGS)
    parts = {
        stats.judge(plain, 0.0, (-math.inf, -LEAST_EXPONENT)),
        stats.judge(stabilised, 0.0, (-LEAST_EXPONENT, LEAST_EXPONENT)),
    }
    outcome = stats.together(parts)
    sentence = (
        f"At rate {SIZE_RATE:g} the size of the update goes with the rank to the power {plain.mean:+.2f} under α/r "
        f"(95 % interval {plain.low:+.2f} to {plain.high:+.2f}; claim below {-LEAST_EXPONENT:g}) and "
        f"{stabilised.mean:+.2f} under α/√r ({stabilised.low:+.2f} to {stabilised.high:+.2f}; claim within "
        f"±{LEAST_EXPONENT:g})."
    )
    return Verdict(outcome, sentence, ("standard_exponent", "stabilised_exponent"))


def runs(store: Store) -> list[Run]:
    """Sweeps and finals, then the pair at the fixed rate."""
    fixed = [run for pairs in available(fixed_runs, [store]) for pair in pairs.values() for run in pair]
    return COMPARISON.runs(store) + fixed


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Losses, the tuned differences by rank, and the difference at the fixed rate."""
    pairs = [(f"stabilised{rank}", f"standard{rank}") for rank in RANKS]
    out = COMPARISON.quantities(store, [*pairs, ("stabilised256", "plus256")])
    with suppress(Missing):
        keys = tuple(run.key for pair in fixed_runs(store).values() for run in pair)
        out["fixed_rate_difference"] = Quantity.of(fixed_difference(store), "nats per token", keys)
    return out


@study("scaling", runs, quantities)
def fixed_verdict(store: Store) -> Verdict:
    """At a fixed rate, is α/√r better at rank 256? Open where another rate of the grid gives another order."""
    (run, *_), _ = fixed_runs(store).values()
    rate = run.budget.learning_rate if run.budget else 0.0
    what = f"At {rate:g}, the best rate of rank 16 under α/r, the loss of α/√r minus α/r at rank 256"
    found = decide(fixed_difference(store), 0.0, (-math.inf, -MARGIN), what, "fixed_rate_difference", "nats per token")
    gains = COMPARISON.by_rate("stabilised256", "standard256", store)
    better = [at for at, gain in gains.items() if gain < 0]
    if 0 < len(better) < len(gains):
        said = f"{found.sentence} On validation α/√r is ahead at {' and '.join(f'{at:g}' for at in better)}."
        turns = "the order turns among the rates that both sweeps have: which rate is fixed decides"
        return replace(found, outcome="undecided", sentence=said, held=turns)
    return found


@study("scaling_tuned", runs, quantities)
def tuned_verdict(store: Store) -> Verdict:
    """After tuning, is α/√r still better at rank 256?"""
    what = "After tuning one shared rate, the loss of α/√r minus α/r at rank 256"
    return COMPARISON.verdict("stabilised256", "standard256", 0.0, (-math.inf, -MARGIN), what, store)
