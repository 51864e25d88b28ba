"""Gain and forgetting together: does OFT have a better frontier than LoRA, and a little replay a better one still?

Written before the records. The small Llama learns E2E by full fine-tuning, LoRA of rank 16, OFT whose blocks of 64 give
it about as many numbers, and LoRA with 5 % of general text in its training. The replayed text comes from what the
model was trained on, the general loss is taken on texts that were held out from it. Replay comes on top of the same
target batches in the same order, so that it trains for a twentieth longer.

Each arm's rate is the one with the lowest target loss on validation, seed 0, of a grid whose steps are a factor of 2,
extended where the best is an end. Five fresh seeds at that rate, target loss on test. Arms are compared at *matched*
target loss, seed by seed: at the lowest that all of the compared reach, general loss linear in target loss between the
moments at which both were taken. What other target examples would change of the matching is in the interval beside what
other seeds and other sources of general text would, and so is the bend of the curve that a line leaves out.

What a finer grid might change of a general loss no parabola tells, since the grid was tuned for another. Instead the
sign must be the same wherever either arm has its best rate or a neighbour of it, up to nine pairs, with the seed of the
grid. A rate whose target loss ends above what it had been lies beyond a cliff and stands beside none. Nothing is
decided unless LoRA itself forgets more than FLOOR at the matched loss: there must be something to save.

Looked at before, on validation with seed 99, which is not used here: one training each of LoRA, OFT and LoRA with
replay at a rate of 8e-3 and of full fine-tuning at 1e-3. LoRA lost 1.8 nats on general text and OFT 2.5, on which FLOOR
and MARGIN rest; OFT had lost most of it by the eighth step, so that its grid starts lower. Replay's one (1.0 lost,
target loss 0.03 above LoRA's) was seen when claim and margins stood.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.core.tracking import untracked
from peftbook.evidence import stats
from peftbook.evidence.comparison import keys_of, measured
from peftbook.evidence.planning import Judged
from peftbook.evidence.sweep import Sweep, extended, grid, interleave, trials
from peftbook.evidence.sweep import neighbours as beside
from peftbook.methods.from_peft import PeftMethod
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.untuned import Untuned
from peftbook.studies import BLIND, Quantity, Verdict, available, gathered, margins, study
from peftbook.studies.standard import probe_of, training
from peftbook.studies.tuned_comparison import Arm, tuning_quantities
from peftbook.tasks import test_groups

Split = Literal["validation", "test"]

SWEEP_SEED = 0
SEEDS = (1, 2, 3, 4, 5)
TOKENS, BATCH = 18_000, 4
STEPS = (10, 16, 23)  # and the last, about the thirtieth
EXAMPLES = 32  # of the target task, on validation and on test
EACH, WINDOW = 1, 128  # pieces of every source of general text, and ids of a piece
SHARE, PIECE = 0.05, 64  # of all training tokens, and ids of a replayed piece
FLOOR = 0.2  # nats per token of general text: the least forgetting worth saving
MARGIN = 0.05  # the same, a quarter of the floor: so small a model loses a nat and more of what it knew
MARGIN_GAIN = margins.LOSS
FACTOR = 2.0
CLAIMED = (0.0, math.inf)  # where a difference is by the claims
RATES_TURN = "neighbouring rates say the opposite"
OFT = PeftMethod(name="OFT", arguments=(("oft_block_size", 64), ("target_modules", "all-linear")))


ARMS = {
    arm.name: arm
    for arm in (
        Arm("full", "Full fine-tuning", Full(), grid(5e-4, FACTOR, 3)),
        Arm("lora", "LoRA, r = 16", LoRA(rank=16), grid(4e-3, FACTOR, 3)),
        Arm("oft", "OFT, blocks of 64", OFT, grid(2e-3, FACTOR, 3)),
        Arm("replay", "LoRA, 5 % replay", LoRA(rank=16), grid(4e-3, FACTOR, 3)),
    )
}
TRIALS = ("lora", "oft", "replay")  # what the claims are about
# A pair, and those whose common target loss it is compared at.
PAIRS = {
    ("lora", "oft"): ("lora", "oft"),
    ("oft", "replay"): TRIALS,
    ("lora", "replay"): TRIALS,
    ("full", "lora"): ("full", "lora"),
}


def probe(arm: str | None, rate: float, seed: int, split: Split) -> specs.Probe:
    """The training of an arm at a rate, watched; None is the model before any."""
    run = training(
        "e2e", ARMS[arm].method if arm else Untuned(), TOKENS, rate if arm else None, seed, batch_size=BATCH,
        split=split, n_loss=EXAMPLES, model=specs.SMALL_LLAMA, dtype="fp32",
    )  # fmt: skip
    replay = SHARE if arm == "replay" else 0.0
    return probe_of("curves.frontier", run, steps=STEPS, each=EACH, window=WINDOW, piece=PIECE, replay=replay)


def start(split: Split) -> specs.Probe:
    """The losses before any training, which all arms and seeds share."""
    return probe(None, 0.0, 0, split)


# --- a training as a path ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """What was measured along a training, the first moment before it.

    target, general: (moments, examples), summed nats.  target_tokens, general_tokens: (examples,), label tokens.
    sources: of each piece of general text.
    """

    target: np.ndarray
    general: np.ndarray
    target_tokens: np.ndarray
    general_tokens: np.ndarray
    sources: tuple[str, ...]

    def losses(self, target: np.ndarray, general: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Target loss, and general loss added since the start, at each moment, in nats per token.

        target, general: how often each example counts.
        """
        aims = self.target @ target / (self.target_tokens @ target)
        known = self.general @ general / (self.general_tokens @ general)
        return aims, known - known[0]


def joined(first: Record, record: Record) -> Path:
    """The path from the record of the model before training and that of its training."""

    def rows(name: str) -> np.ndarray:
        later = [record.per_example[f"{name}_nats_{int(step)}"] for step in record.curve["step"]]
        return np.array([first.per_example[f"{name}_nats_0"], *later], dtype=float)

    target, general = (np.array(first.per_example[f"{name}_tokens"], dtype=float) for name in ("target", "general"))
    sources = tuple(map(str, first.per_example["general_source"]))
    return Path(rows("target"), rows("general"), target, general, sources)


def crossing(aims: np.ndarray, level: float) -> int:
    """The first moment after the start at which the target loss is at most `level`."""
    return 1 + int(np.argmax(aims[1:] <= level))


def reading(aims: np.ndarray, values: np.ndarray, level: float) -> Any:
    """`values`, (moments, …), where the target loss first falls to `level`, linear between moments."""
    at = crossing(aims, level)
    fall = aims[at - 1] - aims[at]
    share = min(1.0, max(0.0, (aims[at - 1] - level) / fall)) if fall > 0 else 1.0
    return values[at - 1] + share * (values[at] - values[at - 1])


def bend(aims: np.ndarray, values: np.ndarray, level: float) -> float:
    """By how much a parabola through the nearest third moment lies above the line of `reading`.

    Newton's second difference, never more than `values` differ between the two moments.
    """
    at = crossing(aims, level)
    third = at - 2 if at > 1 else at + 1
    if third >= len(aims) or len({aims[third], aims[at - 1], aims[at]}) < 3:
        return 0.0
    slopes = [(values[one] - values[third]) / (aims[one] - aims[third]) for one in (at - 1, at)]
    second = (slopes[1] - slopes[0]) / (aims[at] - aims[at - 1])
    most = abs(values[at] - values[at - 1])
    return float(np.clip(second * (level - aims[at - 1]) * (level - aims[at]), -most, most))


def matched_level(aims: Iterable[np.ndarray]) -> float:
    """The lowest target loss that all of these paths reach after their start."""
    return max(float(one[1:].min()) for one in aims)


Weights = tuple[np.ndarray, np.ndarray]  # how often each target example and each piece of general text counts


def readings(paths: Mapping[str, Path], weights: Weights, read: Callable = reading) -> dict[str, float]:
    """General loss added by each arm where all of them have reached the same target loss."""
    losses = {arm: path.losses(*weights) for arm, path in paths.items()}
    level = matched_level(aims for aims, _ in losses.values())
    return {arm: float(read(*values, level)) for arm, values in losses.items()}


def each_once(paths: Mapping[str, Path]) -> Weights:
    """Every example counts once."""
    first = next(iter(paths.values()))
    return np.ones(len(first.target_tokens)), np.ones(len(first.general_tokens))


def leaving_out(codes: Sequence[int]) -> np.ndarray:
    """Weights that leave out each group in turn, (groups, examples)."""
    return (np.arange(max(codes) + 1)[:, None] != np.array(codes)).astype(float)


def matched_interval(
    seeds: Sequence[Mapping[str, Path]], value: Callable[[Mapping[str, float]], float], groups: Sequence[str] = ()
) -> stats.Interval:
    """The interval of a value of the general losses that arms have added at matched target loss.

    seeds: the arms' paths, of each seed.  groups: of the target examples, or empty.
    Its second error is what leaving out single target examples, or groups of them, and single sources of general text
    changes, in quadrature. The mean over seeds of the bend that the line leaves out is its bias.
    """
    first = next(iter(seeds[0].values()))
    targets, pieces = len(first.target_tokens), len(first.general_tokens)
    target_codes = stats.group_codes(groups, targets) or list(range(targets))
    source_codes = stats.group_codes(first.sources, pieces) or list(range(pieces))
    whole = each_once(seeds[0])
    parts = [
        [(kept, whole[1]) for kept in leaving_out(target_codes)],
        [(whole[0], kept) for kept in leaving_out(source_codes)],
    ]
    per_seed = np.array([value(readings(paths, whole)) for paths in seeds])
    moved = [np.array([[value(readings(paths, one)) for paths in seeds] for one in part]) for part in parts]
    deviations = np.concatenate([math.sqrt(1 - 1 / len(one)) * (one - per_seed) for one in moved])
    seed_se, example_se = (float(error) for error in stats.standard_errors(per_seed, deviations, 1.0))
    freedom = min(
        stats.freedom_of(np.bincount(codes, weights=tokens))
        for codes, tokens in ((target_codes, first.target_tokens), (source_codes, first.general_tokens))
    )
    count = min(max(target_codes), max(source_codes)) + 1
    found = stats.Interval.of(float(per_seed.mean()), seed_se, example_se, len(seeds), pieces, freedom, count)
    bends = [value(readings(paths, whole, bend)) for paths in seeds]
    return stats.with_bias(found, float(np.mean(bends)))


# --- the runs ----------------------------------------------------------------------------------------------------


def final_loss(record: Record) -> float:
    """Target loss at the end of a training, in nats per token; infinite where it diverged."""
    if record.measurements.get("diverged"):
        return math.inf
    nats = record.per_example[f"target_nats_{int(record.curve['step'][-1])}"]
    return math.fsum(map(float, nats)) / math.fsum(map(float, record.per_example["target_tokens"]))


def tuning(arm: str) -> Sweep[specs.Probe]:
    """The sweep that chooses the arm's rate."""
    return Sweep(
        lambda rate: [probe(arm, rate, SWEEP_SEED, "validation")],
        ARMS[arm].rates,
        lambda losses: extended(losses, FACTOR),
        lambda records: final_loss(records[0]),
    )


def best_rate(arm: str, store: Store) -> float:
    """The rate with the lowest target loss on validation. Raises Missing."""
    return tuning(arm).best(store.get)


def neighbours(arm: str, store: Store) -> list[float]:
    """The best rate and those beside it at which the training `fell`, ascending. Raises Missing."""
    losses = tuning(arm).losses(store.get)
    return [rate for rate in beside(losses) if fell(store.need(probe(arm, rate, SWEEP_SEED, "validation")))]


def fell(record: Record) -> bool:
    """Whether a training ended at the lowest target loss that it had."""
    ends = [math.fsum(map(float, record.per_example[f"target_nats_{int(step)}"])) for step in record.curve["step"]]
    return not record.measurements.get("diverged") and ends[-1] == min(ends)


def final_probes(arm: str, store: Store) -> list[specs.Probe]:
    """The arm's trainings with fresh seeds at its best rate. Raises Missing until that is known."""
    with untracked():
        rate = best_rate(arm, store)
    return [probe(arm, rate, seed, "test") for seed in SEEDS]


def runs(store: Store) -> list[specs.Probe]:
    """The grids, middles first and arms in turn; then the fresh seeds, arms in turn."""
    finals = available(lambda arm: final_probes(arm, store), ARMS)
    return [start("validation"), start("test"), *trials(map(tuning, ARMS), store.get), *interleave(finals)]


def finals(arm: str, store: Store) -> list[Record]:
    """The arm's records at its best rate, by seed. Raises Missing."""
    return store.need_all(final_probes(arm, store))


def seed_paths(arms: Sequence[str], store: Store) -> list[dict[str, Path]]:
    """The paths of these arms, of each fresh seed. Raises Missing."""
    first, records = store.need(start("test")), {arm: finals(arm, store) for arm in arms}
    return [{arm: joined(first, records[arm][at]) for arm in arms} for at in range(len(SEEDS))]


# --- what is judged ----------------------------------------------------------------------------------------------


def difference(one: str, other: str, arms: Sequence[str], store: Store) -> stats.Interval:
    """General loss added by one arm minus the other's, where all of `arms` have one target loss. Raises Missing."""
    return matched_interval(seed_paths(arms, store), lambda found: found[one] - found[other], groups())


def seed_differences(one: str, other: str, store: Store) -> list[float]:
    """The `difference` of a pair, of each seed. Raises Missing."""
    found = [readings(paths, each_once(paths)) for paths in seed_paths(PAIRS[one, other], store)]
    return [values[one] - values[other] for values in found]


def added(arm: str, arms: Sequence[str], store: Store) -> stats.Interval:
    """General loss that an arm has added where all of `arms` have one target loss. Raises Missing."""
    return matched_interval(seed_paths(arms, store), lambda found: found[arm], groups())


def groups() -> tuple[str, ...]:
    """What the target examples on test share."""
    return test_groups("e2e", EXAMPLES)


def gained(one: str, other: str, store: Store) -> stats.Interval:
    """Target loss at the end, one minus the other, with the choice of both rates. Raises Missing."""
    seeds = seed_paths((one, other), store)
    last, others = (np.array([paths[arm].target[-1] for paths in seeds]) for arm in (one, other))
    tokens = seeds[0][one].target_tokens.tolist()
    found = stats.paired_interval(last, others, tokens, groups())
    with untracked():
        spreads = [stats.score_interval(table, tokens).seed_se * math.sqrt(len(seeds)) for table in (last, others)]
        errors = [
            tuning(arm).choice_error(store.get, float(stats.rate_noise(spread, 1, found.example_se)))
            for arm, spread in zip((one, other), spreads, strict=True)
        ]
    return stats.with_choice(found, *errors)


def on_grid(one: tuple[str, float], other: tuple[str, float], store: Store) -> float:
    """`difference` of two arms at rates of their grids, with the grid's seed on validation. Raises Missing."""
    first = store.need(start("validation"))
    records = {
        name: store.need(probe(*arm, SWEEP_SEED, "validation")) for name, arm in (("one", one), ("other", other))
    }
    paths = {name: joined(first, record) for name, record in records.items()}
    found = readings(paths, each_once(paths))
    return found["one"] - found["other"]


def at_neighbours(one: str, other: str, store: Store) -> list[float]:
    """`on_grid` for two arms at each pair of best rates and neighbours. Raises Missing."""
    pairs = itertools.product(neighbours(one, store), neighbours(other, store))
    return [on_grid((one, rate), (other, beside), store) for rate, beside in pairs]


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Rates, final losses and forgetting of each arm, at its end and matched; differences; what replay takes."""
    words: dict[str, Any] = {"unit": "nats per token", "n": EXAMPLES, "digits": 3}
    out = gathered(lambda arm: tuning_quantities(tuning(arm), store.get, 1, f"{arm}_", **words), ARMS)
    out |= gathered(lambda arm: ends(arm, store), ARMS)
    out |= gathered(lambda pair: pair_quantities(*pair, store), PAIRS)
    return out | gathered(lambda measure: measure(store), (trial_quantities, rate_quantities))


def ends(arm: str, store: Store) -> dict[str, Quantity]:
    """What an arm has gained and forgotten at the end of its trainings. Raises Missing."""
    paths, records = [one[arm] for one in seed_paths((arm,), store)], finals(arm, store)
    first, keys = paths[0], keys_of(records)
    target = stats.mean_interval(np.array([path.target[-1] for path in paths]), first.target_tokens.tolist(), groups())
    rise = np.array([path.general[-1] - path.general[0] for path in paths])
    general = stats.mean_interval(rise, first.general_tokens.tolist(), first.sources)
    trained = float(records[0].measurements["trainable_parameters"] or 0)
    return {
        f"{arm}_target_loss": Quantity.of(target, "nats per token", keys),
        f"{arm}_forgotten": Quantity.of(general, "nats per token", keys),
        f"{arm}_parameters": Quantity(trained, "parameters", keys[:1], digits=0),
    }


def pair_quantities(one: str, other: str, store: Store) -> dict[str, Quantity]:
    """The difference of two arms at matched target loss, and where their rates are moved. Raises Missing."""
    arms = PAIRS[one, other]
    keys = keys_of(*(finals(arm, store) for arm in arms))
    moved = at_neighbours(one, other, store)
    return {
        f"{one}_minus_{other}": Quantity.of(difference(one, other, arms, store), "nats per token", keys),
        f"{one}_minus_{other}_moved": Quantity.middle(
            moved, "nats per token", keys, "median and range over best rates and their neighbours", seeds=1, digits=3
        ),
    }


def trial_quantities(store: Store) -> dict[str, Quantity]:
    """What LoRA forgets where the three on trial have one target loss, and what replay costs. Raises Missing."""
    keys = keys_of(*(finals(arm, store) for arm in TRIALS))
    plain, mixed = (finals(arm, store) for arm in ("lora", "replay"))
    cost = gained("replay", "lora", store)
    out = {f"{arm}_matched": Quantity.of(added(arm, TRIALS, store), "nats per token", keys) for arm in TRIALS}
    out["replay_minus_lora_target"] = Quantity.of(cost, "nats per token", keys_of(plain, mixed))
    less, more = (math.fsum(measured(arm, "train_label_tokens")) for arm in (plain, mixed))
    share = Quantity(100 * (1 - less / more), "%", keys_of(plain, mixed), seeds=len(SEEDS), digits=1)
    return out | {"replayed_label_share": share}


def rate_quantities(store: Store) -> dict[str, Quantity]:
    """What half the rate does to LoRA, and what replay does where rates are equal; shown, not judged. Raises Missing.

    Added when the records were there, which say that the rate moves what is forgotten more than the arm does.
    """
    plain, mixed = (tuning(arm).losses(store.get) for arm in ("lora", "replay"))
    shared = [rate for rate in plain if math.isfinite(plain[rate] + mixed.get(rate, math.inf))]
    same, best = [on_grid(("lora", rate), ("replay", rate), store) for rate in shared], best_rate("lora", store)
    keys = tuple(probe(arm, rate, SWEEP_SEED, "validation").key for arm in ("lora", "replay") for rate in shared)
    slower = on_grid(("lora", best), ("lora", neighbours("lora", store)[0]), store)
    return {
        "lora_minus_replay_at_one_rate": Quantity.middle(
            same, "nats per token", keys, f"median and range over {len(same)} rates", seeds=1, digits=3
        ),
        "lora_minus_lora_at_half_rate": Quantity(slower, "nats per token", keys, seeds=1, digits=3),
    }


def unforgotten(arms: Sequence[str], store: Store) -> str:
    """Why nothing can be decided, where LoRA itself does not surely forget more than FLOOR; else empty."""
    found = added("lora", arms, store)
    if found.low > FLOOR:
        return ""
    return f"LoRA adds {found.mean:.3f} ({found.low:+.3f} to {found.high:+.3f}), not surely more than {FLOOR}"


def standing(found: stats.Interval, moved: Sequence[float]) -> tuple[str, str]:
    """The verdict on a difference that the claim puts above zero, and why it is undecided, where it is.

    moved: the difference at other rates, which may not contradict it.
    """
    outcome = stats.judge(found, MARGIN, CLAIMED)
    against = sum(one * found.mean <= 0 for one in moved)
    beyond = sum(abs(one) > MARGIN for one in moved)
    if outcome == "equivalent" and beyond:
        return "undecided", f"at {beyond} of {len(moved)} pairs of rates it is beyond the margin"
    if outcome in ("reproduced", "refuted", "direction only") and against:
        return "undecided", f"at {against} of {len(moved)} pairs of rates its sign is the other"
    return outcome, f"its half-width is {found.half95:.3f}" if outcome in ("undecided", "direction only") else ""


def contradicted(found: stats.Interval, moved: Sequence[float]) -> bool:
    """Whether other rates would keep `standing` from any outcome, however narrow the interval."""
    return any(one * found.mean <= 0 for one in moved) and any(abs(one) > MARGIN for one in moved)


@study("frontier", runs, quantities)
def oft_verdict(store: Store) -> Verdict:
    """At matched target loss, has LoRA forgotten more than OFT?"""
    arms = PAIRS["lora", "oft"]
    found, moved = difference("lora", "oft", arms, store), at_neighbours("lora", "oft", store)
    outcome, reason = standing(found, moved)
    judged = Judged.of(found, MARGIN, CLAIMED)
    held = RATES_TURN if contradicted(found, moved) else ""
    if nothing := unforgotten(arms, store):
        outcome, reason, held = "undecided", nothing, BLIND
    sentence = (
        f"At matched target loss, general loss of LoRA minus OFT is {found:+.3f} nats per token (95 % interval; "
        f"margin {MARGIN}), and {min(moved):+.3f} to {max(moved):+.3f} at the best rates and their neighbours"
    )
    named = ("lora_minus_oft", "lora_minus_oft_moved")
    return Verdict(outcome, f"{sentence}{f'; {reason}' if reason else ''}.", named, (judged,), held)


@study("replay", runs, quantities)
def replay_verdict(store: Store) -> Verdict:
    """Does replay save more than the change to OFT, save anything, and cost no gain?"""
    beyond, saved = (difference(one, "replay", TRIALS, store) for one in ("oft", "lora"))
    cost, moved = gained("replay", "lora", store), at_neighbours("oft", "replay", store)
    moved_too = at_neighbours("lora", "replay", store)
    parts = {
        "more than OFT saves": standing(beyond, moved),
        "saved": standing(saved, moved_too),
        "no gain lost": (stats.judge(cost, 0.0, (-math.inf, MARGIN_GAIN)), ""),
    }
    judged = (*(Judged.of(one, MARGIN, CLAIMED) for one in (beyond, saved)),
              Judged.of(cost, 0.0, (-math.inf, MARGIN_GAIN)))  # fmt: skip
    held = RATES_TURN if contradicted(beyond, moved) or contradicted(saved, moved_too) else ""
    outcome = stats.together([part for part, _ in parts.values()])
    reason = ""
    if nothing := unforgotten(TRIALS, store):
        outcome, reason, held = "undecided", nothing, BLIND
    elif outcome != "reproduced":
        told = {part: f"{one} ({why})" if why else one for part, (one, why) in parts.items()}
        reason = "; ".join(f"{part}: {one}" for part, one in told.items())
    sentence = (
        f"Where all three have one target loss, general loss of OFT minus LoRA with replay is {beyond:+.3f} nats per "
        f"token, of LoRA without it {saved:+.3f} (margin {MARGIN}); at the end replay changes LoRA's target loss by "
        f"{cost:+.3f} (at most {MARGIN_GAIN}; 95 % intervals). At the best rates and their neighbours the first is "
        f"{min(moved):+.3f} to {max(moved):+.3f}"
    )
    return Verdict(
        outcome,
        f"{sentence}{f'; {reason}' if reason else ''}.",
        ("oft_minus_replay", "lora_minus_replay", "replay_minus_lora_target", "oft_minus_replay_moved"),
        judged,
        held,
    )
