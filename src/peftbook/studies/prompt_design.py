"""Prompt tuning: how long must the soft prompt be, and does it matter how it starts?

Written before the runs. Lengths 1, 5, 20 and 100; random, vocabulary and text initialisation; four learning rates a
factor of 4 apart for each, extended at the edges, one seed; then three fresh seeds at the chosen rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from peftbook.core.records import Store
from peftbook.methods.prompt import PromptTuning
from peftbook.studies import Quantity, Verdict, margins, study
from peftbook.studies.benchmark import PROMPT_RATES
from peftbook.studies.standard import E2E_TOKENS
from peftbook.studies.tuned_comparison import Arm, TunedComparison

LENGTHS = (1, 5, 20, 100)
TEXT = "Describe this place in one or two sentences that say every given fact."
MARGIN = margins.LOSS


def arm_name(length: int, init: str) -> str:
    """`vocabulary_20` and the like."""
    return f"{init}_{length}"


def arm(length: int, init: str) -> Arm:
    """One soft prompt."""
    method = PromptTuning(length=length, init=init, init_text=TEXT if init == "text" else "")  # type: ignore[arg-type]
    return Arm(arm_name(length, init), f"{length} tokens, {init}", method, PROMPT_RATES, 0.3)


COMPARISON = TunedComparison(
    task="e2e",
    tokens=E2E_TOKENS,
    arms=tuple(arm(length, init) for init in ("vocabulary", "random", "text") for length in LENGTHS),
    factor=4,
    bearable=MARGIN / 2,
    seeds=(1, 2, 3, 4, 5),
    first_look=3,
)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Losses of all arms; differences between lengths (vocabulary) and between initialisations (20 tokens)."""
    vocabulary = {length: arm_name(length, "vocabulary") for length in LENGTHS}
    lengths = [(vocabulary[1], vocabulary[length]) for length in LENGTHS[1:]] + [(vocabulary[20], vocabulary[100])]
    starts = [(arm_name(length, init), vocabulary[length]) for length in LENGTHS for init in ("random", "text")]
    return COMPARISON.quantities(store, lengths + starts)


@study("prompt_length", COMPARISON.runs, quantities)
def length_verdict(store: Store) -> Verdict:
    """Are 20 tokens better than one?"""
    first, second = arm_name(1, "vocabulary"), arm_name(20, "vocabulary")
    what = "Test loss with 1 token minus that with 20"
    return COMPARISON.verdict(first, second, 0.0, (MARGIN, math.inf), what, store)


@study("prompt_longer", COMPARISON.runs, quantities)
def longer_verdict(store: Store) -> Verdict:
    """Do 100 tokens gain less than the margin over 20?"""
    first, second = arm_name(20, "vocabulary"), arm_name(100, "vocabulary")
    what = "Test loss with 20 tokens minus that with 100"
    return COMPARISON.verdict(first, second, 0.0, (-math.inf, MARGIN), what, store)


@study("prompt_init", COMPARISON.runs, quantities)
def init_verdict(store: Store) -> Verdict:
    """Is a random start worse than a vocabulary start at the paper's length of 100 tokens?"""
    first, second = arm_name(100, "random"), arm_name(100, "vocabulary")
    what = "With 100 tokens the test loss from a random start minus that from a vocabulary start"
    found = COMPARISON.verdict(first, second, 0.0, (MARGIN, math.inf), what, store)
    others = []
    for length in (5, 20):
        one = COMPARISON.difference(arm_name(length, "random"), arm_name(length, "vocabulary"), "loss_nats", store)
        others.append(f"{one:+.3f} with {length}")
    sentence = f"{found.sentence.removesuffix('.')}; it is {' and '.join(others)}, which decides nothing."
    return replace(found, sentence=sentence)
