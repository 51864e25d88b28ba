"""Is each way in which a training goes wrong seen by a check, and does its training loss give it away?

Written before the runs. One small task, one small model, LoRA of rank 16; a healthy run, and nine that differ from it
in one fault each. Weights in bfloat16 are a fault of full fine-tuning with its low rates, so that its twin is full
fine-tuning whose weights are in float32; both compute in bfloat16. A leak shows where training rows are few. Rates,
sizes and bounds were chosen with runs of a seed of their own, not all of the faults among them.

A check is a number that its fault raises above a bound; it takes losses, token ids or weights, and no second run. Each
fault has one that is its own. The first claim is that it sees its fault with every seed, and that the two runs without
a fault pass all nine: a count, without an interval. A check may see other faults too. A rate too high is asked at three
sizes.

The second claim is about five faults that the training loss is not said to show. What a leak does is to flatter: the
score on leaked test rows less that on the others, of one run. Each part has two halves, any of which may refute, so
that refuting takes Bonferroni's interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.evidence import comparison, resampling, stats
from peftbook.evidence.planning import judge_claim
from peftbook.methods import Method
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.scratch.checks import means
from peftbook.studies import Quantity, Verdict, by_seed, gathered, margins, study
from peftbook.studies.standard import probe_of, training
from peftbook.tasks import test_groups

SEEDS = (1, 2, 3)
ROWS = 60  # test rows that are asked, all there are
EVERY = 20  # steps between two losses on held-out rows
LIMIT = 24  # new tokens of an answer
RATE, FULL_RATE = 2e-3, 1e-4
TOKENS, FULL_TOKENS = 30_000, 16_000
FEW = 20  # training rows
MARGIN_LOSS = margins.LOSS
COST = 0.1  # of the answers
LORA = LoRA()
# Above its bound a check says that something is wrong.
BOUNDS = {
    "outweighs": 1.0,
    "remaining": 0.5,
    "stuck": 0.5,
    "unended": 0.0,
    "stray": 0.0,
    "shared": 0.0,
    "risen": 0.2,  # nats per token
    "unlike": 0.0,
    "doubled": 0.0,
}


@dataclass(frozen=True)
class GalleryRun:
    """A run of the gallery. fault: as of `training.probes.faults`.  check: the one that is to see it.

    examples: training rows, 0 for all.  twin: the run without the fault.
    """

    label: str
    check: str = ""
    fault: str = "none"
    method: Method = LORA
    rate: float = RATE
    tokens: int = TOKENS
    examples: int = 0
    twin: str = "healthy"


FULL = GalleryRun("Full fine-tuning", method=Full(), rate=FULL_RATE, tokens=FULL_TOKENS)
ARMS = {
    "healthy": GalleryRun("Healthy"),
    "rate_high": GalleryRun("Rate too high", "outweighs", rate=100 * RATE),
    "rate_ten": GalleryRun("Rate ten times too high", "outweighs", rate=10 * RATE),
    "rate_three": GalleryRun("Rate three times too high", "outweighs", rate=3 * RATE),
    "rate_low": GalleryRun("Rate too low", "remaining", rate=RATE / 100),
    "float32": FULL,
    "bfloat16": replace(FULL, label="Weights in bfloat16", check="stuck", fault="bfloat16", twin="float32"),
    "end_masked": GalleryRun("End token masked", "unended", "end_masked"),
    "prompt_graded": GalleryRun("Prompt graded", "stray", "prompt_graded"),
    "leak": GalleryRun("Test rows leaked", "shared", "leak", examples=FEW + ROWS // 2),
    "overfit": GalleryRun("Overfitting", "risen", examples=FEW),
    "other_template": GalleryRun("Another template", "unlike", "other_template"),
    "template_twice": GalleryRun("Template twice", "doubled", "template_twice"),
}
FAULTY = tuple(name for name, arm in ARMS.items() if arm.check)
SMALLER = ("rate_ten", "rate_three")  # a fault that is there already, not so large
SOUND = tuple(name for name in ARMS if name not in FAULTY)
SILENT = ("end_masked", "leak", "overfit", "other_template", "template_twice")
HALVES = 2 * len(SILENT)  # of the second claim


def probe(name: str, seed: int) -> specs.Probe:
    """One training with its fault, asked and checked."""
    arm = ARMS[name]
    asked = {"split": "test", "n_loss": ROWS, "n_generate": ROWS, "max_new_tokens": LIMIT, "generation_dtype": "bf16"}
    run = training(
        "tickets", arm.method, arm.tokens, arm.rate, seed, train_examples=arm.examples, model=specs.SMALL_LLAMA, **asked
    )
    return probe_of("faults.gallery", run, fault=arm.fault, every=EVERY)


def runs(store: Store) -> list[specs.Probe]:
    """Seed by seed."""
    return [probe(name, seed) for seed in SEEDS for name in ARMS]


records_of = by_seed(probe, SEEDS)


def groups() -> tuple[str, ...]:
    """The customers of the test rows."""
    return test_groups("tickets", ROWS)


def last_losses(records: list[Record]) -> list[float]:
    """The training loss at the end, of each seed."""
    return [means(record.curve["train_loss_nats"])[-1] for record in records]


def excess(name: str, store: Store) -> stats.Interval:
    """By how much the training loss ends above its twin's, paired by seed. Raises Missing."""
    ends, twin = (last_losses(records_of(one, store)) for one in (name, ARMS[name].twin))
    return stats.seed_interval(np.subtract(ends, twin))


def cost(name: str, store: Store) -> stats.Interval:
    """The share of right answers that a fault takes from its twin's, or that a leak adds. Raises Missing."""
    if name == "leak":
        return flattery(store)
    return comparison.paired(records_of(ARMS[name].twin, store), records_of(name, store), "exact_match", groups())


def flattery(store: Store) -> stats.Interval:
    """Right answers to test rows that were trained on, less those to the others. Raises Missing."""
    records = records_of("leak", store)
    right, known = (comparison.table(records, name).T for name in ("exact_match", "in_training"))  # (examples, seeds)
    counts = resampling.replicates(len(right), groups())
    leaked, clean = ((counts @ (right * of)) / (counts @ of) for of in (known, 1 - known))
    return resampling.statistic_interval(leaked - clean, len(right), groups())


def sees(record: Record, check: str) -> bool:
    """Whether a check says that something is wrong with this run."""
    return float(record.measurements[check] or 0) > BOUNDS[check]


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Of each run: answers, losses, checks; what a fault costs, and how far its training loss ends from the twin's."""
    return gathered(lambda name: arm_quantities(name, store), ARMS)


def arm_quantities(name: str, store: Store) -> dict[str, Quantity]:
    """Of one run. Raises Missing."""
    records = records_of(name, store)
    keys = comparison.keys_of(records)
    score = comparison.score(records, "exact_match", groups())
    stopped, tokens = (
        stats.seed_interval(comparison.measured(records, what)) for what in ("stopped_share", "answer_tokens")
    )
    out = {
        f"{name}_right": percent(score, keys, 0),
        f"{name}_stopped": percent(stopped, keys, 0),
        f"{name}_answer_tokens": Quantity.of(tokens, "tokens", keys, 1),
        f"{name}_train_loss": Quantity.of(stats.seed_interval(last_losses(records)), "nats per token", keys),
        f"{name}_test_loss": Quantity.of(comparison.score(records, "loss_nats", groups()), "nats per token", keys),
    }
    for check in BOUNDS:
        values = comparison.measured(records, check)
        out[f"{name}_{check}"] = Quantity.middle(values, UNITS.get(check, ""), keys, seeds=len(SEEDS), digits=2)
    if ARMS[name].check:
        both = comparison.keys_of(records, records_of(ARMS[name].twin, store))
        out[f"{name}_cost"] = percent(cost(name, store), keys if name == "leak" else both, -100)
        out[f"{name}_excess"] = Quantity.of(excess(name, store), "nats per token", both)
    return out


def percent(share: stats.Interval, keys: tuple[str, ...], least: float) -> Quantity:
    """A share of answers, or from −100 a difference of two, in percent."""
    hundredfold = replace(
        share, **{name: 100 * getattr(share, name) for name in ("mean", "half95", "half90")}, by_example=None
    )
    return Quantity.of(hundredfold, "%", keys, 0, among=(least, 100))


UNITS = {"risen": "nats per token"}


def check_label(record: Record, check: str) -> str:
    """A check of a run, in words."""
    fault = next(name for name in ARMS if probe(name, record.spec.seed).key == record.key)
    return f"{check} of “{ARMS[fault].label.lower()}”, seed {record.spec.seed}"


@study("faults", runs, quantities, many=len(FAULTY) - len(SMALLER))
def verdict(store: Store) -> Verdict:
    """Does each fault's own check see it with every seed, and do the healthy runs pass all checks?"""
    records = {name: records_of(name, store) for name in ARMS}
    missed = [
        check_label(one, ARMS[name].check)
        for name in FAULTY
        for one in records[name]
        if not sees(one, ARMS[name].check)
    ]
    alarms = [
        check_label(one, check) for name in SOUND for one in records[name] for check in BOUNDS if sees(one, check)
    ]
    trials, healthy = len(FAULTY) * len(SEEDS), len(SOUND) * len(SEEDS) * len(BOUNDS)
    said = "".join(f" {what}: {', '.join(which)}." for what, which in (("Missed", missed), ("False", alarms)) if which)
    return Verdict(
        "refuted" if missed or alarms else "reproduced",
        f"{trials - len(missed)} of {trials} faulty runs are seen by the check that is theirs, and of {healthy} checks "
        f"of runs without a fault {len(alarms)} say that something is wrong.{said}",
        tuple(f"{name}_{ARMS[name].check}" for name in FAULTY),
    )


@study("silent_faults", runs, quantities)
def verdict_on_losses(store: Store) -> Verdict:
    """Do five faults cost answers, though the training loss ends where it does without them?"""
    halves, said = [], []
    for name in SILENT:
        lost, above = cost(name, store), excess(name, store)
        halves += [
            judge_claim(lost, 0.0, (COST, math.inf), HALVES),
            judge_claim(above, 0.0, (-math.inf, MARGIN_LOSS), HALVES),
        ]
        said.append(
            f"{ARMS[name].label.lower()} {lost:.0%} at {above.mean:+.3f} nats "
            f"per token ({above.low:+.3f} to {above.high:+.3f})"
        )
    outcomes, parts = zip(*halves, strict=True)
    return Verdict(
        stats.together(outcomes),
        f"Of the answers, at so much more training loss: {'; '.join(said)} (95 % intervals; claim at least "
        f"{COST:.0%}, at most {MARGIN_LOSS} nats).",
        tuple(f"{name}_{what}" for name in SILENT for what in ("cost", "excess")),
        parts,
    )
