"""Do LoRA's variants do what each claims?

Written before the runs. Each variant at rank 16 and alpha 32 on all linear layers, four rates a factor of 4 apart,
one seed, extended at the edges; three fresh seeds at the chosen rate. Speed is the number of steps until the training
loss, averaged over eight steps, first reaches what plain LoRA's mean over its last eight steps is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from peftbook import metrics, specs
from peftbook.records import Record, Store
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.standard import E2E_TOKENS, rates
from peftbook.studies.sweep import Arm, Comparison, as_quantity, decide, holm

__all__ = ["COMPARISON", "STUDIES", "steps_to"]

MARGIN = 0.02  # nats per token
SPEED_MARGIN = 0.1  # of plain LoRA's steps
SMOOTH = 8
COMPARISON = Comparison(
    task="e2e",
    tokens=E2E_TOKENS,
    arms=(
        Arm("lora", "LoRA", specs.LoRA(), rates(-2, 4, 2), 2e-4),
        Arm("plus", "LoRA+ (ratio 4)", specs.LoRA(b_rate_ratio=4), rates(-4, 2, 2)),
        Arm("plus16", "LoRA+ (ratio 16)", specs.LoRA(b_rate_ratio=16), rates(-4, 2, 2)),
        Arm("pissa", "PiSSA", specs.LoRA(init="pissa"), rates(-4, 2, 2)),
        Arm("olora", "OLoRA", specs.LoRA(init="olora"), rates(-4, 2, 2)),
        Arm("dora", "DoRA", specs.LoRA(dora=True), rates(-2, 4, 2), 2e-4),
        Arm("frozen_a", "LoRA-FA", specs.LoRA(freeze_a=True), rates(0, 6, 2)),
        Arm("vera", "VeRA", specs.VeRA(), rates(2, 8, 2)),
    ),
    factor=4,
)
SPEEDY = ("plus", "plus16", "pissa", "olora")


def steps_to(record: Record, target: float) -> float:
    """First step at which the mean training loss of the last SMOOTH steps is at most `target`; the end if never."""
    losses = [float(value) for value in record.curve["train_loss_nats"]]
    for at in range(SMOOTH, len(losses) + 1):
        if math.fsum(losses[at - SMOOTH : at]) / SMOOTH <= target:
            return float(at)
    return float(len(losses))


def speed(name: str, store: Store) -> metrics.Interval | None:
    """Steps to plain LoRA's final training loss over plain LoRA's own, by seed."""
    ours, base = COMPARISON.finals(name, store), COMPARISON.finals("lora", store)
    if not ours or not base:
        return None
    rows = []
    for one, plain in zip(ours, base, strict=True):
        losses = [float(value) for value in plain.curve["train_loss_nats"]]
        target = math.fsum(losses[-SMOOTH:]) / SMOOTH
        rows.append([steps_to(one, target) / steps_to(plain, target)])
    return metrics.mean_interval(rows)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Loss of each variant, its difference to LoRA, its speed, and how many differences survive Holm's correction."""
    out = COMPARISON.quantities(store)
    family = {}
    for arm in COMPARISON.arms[1:]:
        out |= COMPARISON.paired(arm.name, "lora", store)
        if (found := COMPARISON.difference(arm.name, "lora", "loss_nats", store)) is not None:
            family[arm.name] = found
        if (ratio := speed(arm.name, store)) is not None:
            keys = COMPARISON.keys(store, arm.name, "lora")
            out[f"{arm.name}_speed"] = as_quantity(ratio, "×", keys, len(COMPARISON.seeds), 2)
    if len(family) == len(COMPARISON.arms) - 1:
        keys = COMPARISON.keys(store, *(arm.name for arm in COMPARISON.arms))
        count = sum(holm(family).values())
        out["differ"] = Quantity(count, f"of {len(family)} variants", keys, seeds=len(COMPARISON.seeds), digits=0)
    return out


def speed_verdict(name: str):
    """Does the variant reach plain LoRA's final loss in fewer steps?"""

    def verdict(store: Store) -> Verdict:
        return decide(
            speed(name, store), SPEED_MARGIN, (-math.inf, 1.0), "Steps to plain LoRA's final training loss, over "
            "plain LoRA's own,", f"{name}_speed", "×",
        )  # fmt: skip

    return verdict


def quality_verdict(name: str, claim: tuple[float, float], margin: float):
    """Is the variant's loss minus LoRA's inside the claim?"""

    def verdict(store: Store) -> Verdict:
        found = COMPARISON.difference(name, "lora", "loss_nats", store)
        label = COMPARISON.arm(name).label
        return decide(
            found, margin, claim, f"Test loss of {label} minus LoRA", f"{name}_minus_lora_loss", "nats per token"
        )

    return verdict


def study(name: str, arm: str, claim: str, source: str, refuted_if: str, verdict) -> Study:
    """One variant's own claim on the shared runs."""
    return Study(
        name=name,
        title=f"{COMPARISON.arm(arm).label}: does it do what it claims?",
        claim=claim,
        source=source,
        refuted_if=refuted_if,
        does_not_show="Rank 16, a short training of one model on one easy task. Seven variants are compared with LoRA: "
        "the number that differ after Holm's correction is given beside the single verdicts.",
        chapter="book/lora",
        runs=COMPARISON.runs,
        quantities=quantities,
        verdict=verdict,
    )


SLOWER = f"it needs more steps than plain LoRA by over {SPEED_MARGIN:.0%} (the whole 95 % interval beyond)."
WORSE = f"its test loss is worse than LoRA's by more than {MARGIN} nats per token (the whole 95 % interval beyond)."
STUDIES = {
    one.name: one
    for one in (
        study("lora_plus", "plus16", "A higher rate for B than for A makes LoRA learn faster.",
              "hayou2024plus, abstract", SLOWER, speed_verdict("plus16")),
        study("pissa", "pissa", "Starting from the principal singular directions makes LoRA learn faster.",
              "meng2024, abstract", SLOWER, speed_verdict("pissa")),
        study("olora", "olora", "Starting from an orthonormal factor makes LoRA learn faster.",
              "buyukakyuz2024, abstract", SLOWER, speed_verdict("olora")),
        study("dora", "dora", "Learning magnitude and direction apart gives a lower loss at the same rank.",
              "liu2024dora, abstract", WORSE, quality_verdict("dora", (-math.inf, 0.0), MARGIN)),
        study("vera", "vera", "Shared random projections with trained diagonals match LoRA with a tenth of the "
              "parameters.", "kopiczko2023, abstract", WORSE, quality_verdict("vera", (-math.inf, MARGIN), 0.0)),
        study("lora_fa", "frozen_a", "Training B alone matches LoRA.", "zhang2023fa, abstract", WORSE,
              quality_verdict("frozen_a", (-math.inf, MARGIN), 0.0)),
    )
}  # fmt: skip
