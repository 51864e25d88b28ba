"""Do LoRA's variants do what each claims?

Written before the runs. Each variant at rank 16 and alpha 32 on all linear layers, four rates a factor of 4 apart, one
seed, extended at the edges; five fresh seeds at the chosen rate, because six claims share one level. Speed is the
number of steps until the training loss, averaged over eight steps, first reaches what plain LoRA's has reached after
three fifths of its steps; a variant that never does counts with all its steps, which is less than it would need. A
claim is decided by its own interval and must stand after Holm's correction over the six, an equivalence too. The
differences to LoRA at the best of eight rates, of which three seeds are at hand, are shown beside.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from contextlib import suppress

from peftbook.core.records import Missing, Record, Store
from peftbook.evidence import comparison, stats
from peftbook.evidence.planning import Judged, spent
from peftbook.methods.lora import LoRA
from peftbook.methods.vera import VeRA
from peftbook.studies import BLIND, Quantity, Verdict, margins, rank, study
from peftbook.studies.standard import E2E_TOKENS, rates
from peftbook.studies.tuned_comparison import Arm, TunedComparison, decide, runs_of

MARGIN = margins.LOSS
SPEED_MARGIN = 0.1  # of plain LoRA's steps
REACHED = 0.6  # of plain LoRA's steps, after which its training loss is the target
SMOOTH = 8
COMPARISON = TunedComparison(
    task="e2e",
    tokens=E2E_TOKENS,
    arms=(
        Arm("lora", "LoRA", LoRA(), rates(-2, 4, 2), 2e-4),
        Arm("plus", "LoRA+ (ratio 4)", LoRA(b_rate_ratio=4), rates(-4, 2, 2)),
        Arm("plus16", "LoRA+ (ratio 16)", LoRA(b_rate_ratio=16), rates(-4, 2, 2)),
        Arm("pissa", "PiSSA", LoRA(init="pissa"), rates(-4, 2, 2)),
        Arm("olora", "OLoRA", LoRA(init="olora"), rates(-4, 2, 2)),
        Arm("dora", "DoRA", LoRA(dora=True), rates(-2, 4, 2), 2e-4),
        Arm("frozen_a", "LoRA-FA", LoRA(freeze_a=True), rates(0, 6, 2)),
        Arm("vera", "VeRA", VeRA(), rates(2, 8, 2)),
    ),
    factor=4,
    bearable=MARGIN / 2,
    seeds=(1, 2, 3, 4, 5),
)
best_rate = COMPARISON.best_rate
# By itself LoRA-FA matched LoRA with five seeds, but not after Holm's correction: three more were added.
LORA_FA = dataclasses.replace(
    COMPARISON, arms=tuple(map(COMPARISON.arm, ("lora", "frozen_a"))), seeds=(1, 2, 3, 4, 5, 6, 7, 8), first_look=5
)
# variant → what the verdict is about: its speed, a lower loss, or a loss no higher
CLAIMS = {
    "plus16": "speed", "pissa": "speed", "olora": "speed", "dora": "lower", "vera": "match", "frozen_a": "match"
}  # fmt: skip
FASTER = (-math.inf, math.log(1 - SPEED_MARGIN))


def smoothed(record: Record) -> list[float]:
    """Training loss averaged over the last SMOOTH steps, from step SMOOTH on."""
    losses = [float(value) for value in record.curve["train_loss_nats"]]
    return [math.fsum(losses[at - SMOOTH : at]) / SMOOTH for at in range(SMOOTH, len(losses) + 1)]


def steps_to(record: Record, target: float) -> int | None:
    """The first step at which the smoothed training loss is at most `target`; None if it never is."""
    return next((at + SMOOTH for at, loss in enumerate(smoothed(record)) if loss <= target), None)


def speed(name: str, store: Store) -> stats.Interval:
    """log(steps to the target / plain LoRA's), by seed; a run that never gets there counts with all its steps."""
    records, rows = COMPARISON.finals_of((name, "lora"), store), []
    for record, plain in zip(records[name], records["lora"], strict=True):
        curve = smoothed(plain)
        target = curve[max(0, round(REACHED * (len(curve) + SMOOTH - 1)) - SMOOTH)]
        steps = steps_to(record, target) or len(record.curve["train_loss_nats"])
        rows.append(math.log(steps / (steps_to(plain, target) or steps)))
    return stats.seed_interval(rows)


def effect(name: str, store: Store) -> stats.Interval:
    """What the variant's claim is about: log ratio of steps, or difference in test loss to plain LoRA."""
    if CLAIMS[name] == "speed":
        return speed(name, store)
    return compared(name).difference(name, "lora", "loss_nats", store)


def compared(name: str) -> TunedComparison:
    """The comparison whose seeds judge a loss."""
    return LORA_FA if name == "frozen_a" else COMPARISON


def rule(name: str) -> tuple[float, tuple[float, float]]:
    """Margin and allowed interval of the variant's claim."""
    kinds = {
        "speed": (-FASTER[1], FASTER), "lower": (MARGIN, (-math.inf, 0.0)), "match": (0.0, (-math.inf, MARGIN))
    }  # fmt: skip
    return kinds[CLAIMS[name]]


def outcome_alone(name: str, found: stats.Interval) -> str:
    """The verdict on the variant's claim by its own interval.

    A speed that bears the claim out has the margin in the claim: it need not be reached twice.
    """
    margin, claim = rule(name)
    if CLAIMS[name] == "speed" and stats.judge(found, 0.0, claim) == "reproduced":
        return "reproduced"
    return stats.judge(found, margin, claim)


def judgement(name: str, found: stats.Interval) -> Judged:
    """What the claim is decided on; each outcome at the level of the first of six by Holm, which is the hardest."""
    margin, claim = rule(name)
    level = 0.05 / len(CLAIMS)
    one = Judged.of(found, margin, claim, level, level)
    return dataclasses.replace(one, inside=claim) if CLAIMS[name] == "speed" else one


def p_alone(name: str, found: stats.Interval) -> float:
    """p of what would decide the claim: against the border that lies nearest, the end of the claim or of its margin.

    Of an equivalence the larger p of its two one-sided tests; of a second look what the first has left.
    """
    margin, claim = rule(name)
    if outcome_alone(name, found) == "equivalent":
        p = max(stats.p_value(dataclasses.replace(found, mean=found.mean + end)) / 2 for end in (-margin, margin))
    else:
        border = claim[1] if found.mean <= claim[1] else claim[1] + margin
        p = stats.p_value(dataclasses.replace(found, mean=found.mean - border))
    return min(1.0, p / spent(found))


def stands(name: str, store: Store) -> bool:
    """Whether the decided claim survives Holm's procedure over the six. Raises Missing until all six are there."""
    return stats.holm({arm: p_alone(arm, effect(arm, store)) for arm in CLAIMS})[name]


def against_finer_lora(name: str, store: Store) -> dict[str, Quantity]:
    """Test loss of the variant minus that of LoRA at its best of `learning_rate`'s eight rates. Raises Missing."""
    plain = rank.COMPARISON.finals("r16", store)
    records = COMPARISON.finals(name, store)[: len(plain)]
    assert [one.spec.seed for one in records] == [one.spec.seed for one in plain]
    found = comparison.paired(records, plain, "loss_nats", COMPARISON.groups(plain[0]))
    return {f"{name}_minus_finer_lora_loss": Quantity.of(found, "nats per token", comparison.keys_of(records, plain))}


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Loss of each variant, its difference to LoRA, its speed, and how many differences survive Holm's correction."""
    out = COMPARISON.quantities(store)
    for arm in COMPARISON.arms[1:]:
        out |= compared(arm.name).paired(arm.name, "lora", store)
        with suppress(Missing):
            logs = speed(arm.name, store)
            ratio, low, high = logs.exp
            keys = COMPARISON.keys(store, arm.name, "lora")
            out[f"{arm.name}_steps"] = Quantity(ratio, "×", keys, low, high, logs.seeds, digits=2)
        with suppress(Missing):
            out |= against_finer_lora(arm.name, store)
    with suppress(Missing):
        out["differ"] = COMPARISON.differing([arm.name for arm in COMPARISON.arms[1:]], "lora", store, "variants")
    return out


def variant_verdict(name: str, store: Store) -> Verdict:
    """The rule for the variant's own claim, then Holm's correction."""
    found, (margin, claim) = effect(name, store), rule(name)
    label = COMPARISON.arm(name).label
    if CLAIMS[name] == "speed":
        ratio, low, high = found.exp
        said = (
            f"{label} needs {ratio:.2f} times the steps of plain LoRA to the same training loss "
            f"(95 % interval {low:.2f} to {high:.2f}; margin {SPEED_MARGIN:.0%})."
        )
        alone = Verdict(outcome_alone(name, found), said, (f"{name}_steps",), (judgement(name, found),))
    else:
        what, quantity = f"Test loss of {label} minus LoRA", f"{name}_minus_lora_loss"
        alone = decide(found, margin, claim, what, quantity, "nats per token")
        alone = dataclasses.replace(alone, judged=(judgement(name, found),))
    if alone.outcome not in ("reproduced", "refuted", "equivalent"):
        return alone
    said = alone.sentence.removesuffix(".")
    if CLAIMS[name] == "lower" and alone.outcome == "equivalent":
        farthest = max(map(abs, COMPARISON.by_rate(name, "lora", store).values()))
        said += f"; at the rates that both sweeps have they differ by at most {farthest:.3f} on validation"
        if farthest < MARGIN:
            blunt = f"{said}: so short a training does not part them, and equality says nothing."
            return dataclasses.replace(alone, outcome="undecided", sentence=blunt, held=BLIND)
    if not stands(name, store):
        rest = f"; alone {alone.outcome}, but not after Holm's correction over {len(CLAIMS)} claims."
        return dataclasses.replace(alone, outcome="undecided", sentence=said + rest)
    return dataclasses.replace(alone, sentence=f"{said}; stands after Holm's correction.")


for _study, _arm in {
    "lora_plus": "plus16",
    "pissa": "pissa",
    "olora": "olora",
    "dora": "dora",
    "vera": "vera",
    "lora_fa": "frozen_a",
}.items():
    study(_study, runs_of(COMPARISON, LORA_FA), quantities, label=COMPARISON.arm(_arm).label)(
        lambda store, arm=_arm: variant_verdict(arm, store)
    )
