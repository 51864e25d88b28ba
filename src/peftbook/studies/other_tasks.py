"""Do the arms that beat LoRA on E2E beat it elsewhere: on other tasks, and after ten times as many steps?

Written before the runs. In `beyond_lora` five arms have a surely lower test loss than plain LoRA on E2E after some
forty steps: LoRA+ with ratio 16, PiSSA, OLoRA, OFT and MiSS. Here the same arms, with full fine-tuning beside, are
tuned anew on two tasks whose data ship with the package: docstrings, and real e-mails that are spam or not. LoRA, full
fine-tuning, PiSSA and LoRA+ are trained for ten times the tokens on E2E.

Grids lie around what each arm chose on E2E, three rates a factor of 2 apart, each trained with three seeds and extended
at the edges; five fresh seeds at the chosen rate. The long trainings have one sweep seed and three fresh seeds. The
choice of every rate is in the interval (`stats.gain_of_best`).

The gain is one number a comparison: the mean over its better arms of their test loss minus LoRA's, paired by seed and
example, so that no arm is picked. LEAST is half of what the same mean is on E2E, where these arms were picked, so that
their gain there is an overstatement. A gain that is real and smaller is "refuted", and its size is what the card says.

Full fine-tuning on the e-mails has the margin of `methods`. Of an answer there are a word and the token that ends the
turn, so that a loss per token there is not that of a sentence; whether the word is right is counted too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np

from peftbook.core.records import Missing, Store
from peftbook.evidence import comparison, stats
from peftbook.methods.full import Full
from peftbook.studies import Quantity, Verdict, beyond_lora, study
from peftbook.studies.methods import MARGIN_NATS, TOKENS
from peftbook.studies.standard import E2E_TOKENS, rates
from peftbook.studies.tuned_comparison import Arm, TunedComparison, decide

LEAST = 0.012  # nats per token
BETTER = ("plus16", "pissa", "olora", "oft", "miss")
SWEEP_SEEDS = (0, 10, 11)
# Arm → the middle of its grid, as k of 2e-4 · 2^k: what it chose on E2E.
CENTRES = {"full": -1, "lora": 2, "plus16": 0, "pissa": 0, "olora": -2, "oft": -1, "miss": 0}


def arms(*names: str) -> tuple[Arm, ...]:
    """Full fine-tuning, LoRA and these arms of `beyond_lora`, each with its grid."""
    known = [Arm("full", "Full fine-tuning", Full()), *map(beyond_lora.COMPARISON.arm, ("lora", *names))]
    return tuple(replace(arm, rates=rates(CENTRES[arm.name] - 1, CENTRES[arm.name] + 1)) for arm in known)


COMPARISONS = {
    "docstrings": TunedComparison(
        task="docstrings",
        tokens=TOKENS,
        arms=arms(*BETTER),
        sweep_seeds=SWEEP_SEEDS,
        seeds=(1, 2, 3, 4, 5),
    ),
    "spam": TunedComparison(
        task="spam",
        tokens=E2E_TOKENS,
        arms=arms(*BETTER),
        sweep_seeds=SWEEP_SEEDS,
        seeds=(1, 2, 3, 4, 5),
        sweep_examples=220,
        test_examples=272,
        generate=272,
        max_new_tokens=4,
    ),
    "long": TunedComparison(task="e2e", tokens=10 * E2E_TOKENS, arms=arms("plus16", "pissa")),
}
SUBJECTS = {"docstrings": "docstrings", "spam": "e-mails", "long": "E2E after ten times the steps"}


def better(name: str) -> tuple[str, ...]:
    """The arms whose gain a comparison asks for."""
    return tuple(arm.name for arm in COMPARISONS[name].arms if arm.name in BETTER)


def gain(name: str, store: Store) -> stats.Interval:
    """The mean over the better arms of test loss minus LoRA's, nats per token. Raises Missing."""
    one = COMPARISONS[name]
    records = one.finals_of((*better(name), "lora"), store)
    groups = one.groups(records["lora"][0])
    values = {arm: comparison.values_of(found, "loss_nats", groups) for arm, found in records.items()}
    mean = np.mean([values[arm] for arm in better(name)], axis=0)
    found = comparison.interval(mean - values["lora"], records["lora"], "loss_nats", groups)
    shares = dict.fromkeys(better(name), 1 / len(better(name))) | {"lora": 1.0}
    return stats.with_choice(found, *(share * one.choice_error(arm, store) for arm, share in shares.items()))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Rates, losses and sizes of each comparison's arms, their differences to LoRA, and the gain."""
    out: dict[str, Quantity] = {}
    for name, one in COMPARISONS.items():
        arms = better(name)
        out |= one.quantities(store, [(arm, "lora") for arm in arms] + [("lora", "full")], f"{name}_")
        with suppress(Missing):
            keys = one.keys(store, "lora", *arms)
            out[f"{name}_gain"] = Quantity.of(gain(name, store), "nats per token", keys, 3)
    return out


def gain_verdict(name: str, store: Store) -> Verdict:
    """Is the mean gain at least LEAST?"""
    labels = ", ".join(COMPARISONS[name].arm(arm).label for arm in better(name))
    what = f"Mean test loss of {labels} minus plain LoRA's on {SUBJECTS[name]}"
    return decide(gain(name, store), 0.0, (-math.inf, -LEAST), what, f"{name}_gain", "nats per token")


for _name in COMPARISONS:
    study(f"gain_{_name}", COMPARISONS[_name].runs, quantities)(lambda store, name=_name: gain_verdict(name, store))


@study("full_spam", COMPARISONS["spam"].runs, quantities)
def full_spam(store: Store) -> Verdict:
    """Is LoRA as good as full fine-tuning on e-mails?"""
    what = "Test loss of LoRA minus full fine-tuning's on e-mails"
    return COMPARISONS["spam"].verdict("lora", "full", 0.0, (-math.inf, MARGIN_NATS), what, store, "spam_")
