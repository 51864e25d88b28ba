"""Which format should a frozen base be stored in? Bytes, error of weights and of outputs, and loss of each.

Written before the runs. The small Llama decides, whose float32 weights never lay on a grid of few bits. Three seeds:
the model as it comes and copies with their units in another order, which compute the same function and round other
weights together; each has calibration texts of its own, which the model was trained on. Loss and outputs are on texts
held out. No scale, group or damping is tuned: each way has the settings of its authors, at one group size. The loss is
taken where this model notices rounding, at two bits, and of three formats of four bits as a control.

A pilot with seed 99 was looked at for the time that a measurement takes and for the bits at which the loss moves: on 25
texts round-to-nearest added 0.041 nats a token at two bits and 0.009 at three, GPTQ 0.015 and HQQ 0.040 at two, AWQ
0.007 at three, NVFP4 0.001. The number of seeds and of texts, and that two bits decide, follow from it; the margins do
not. No output error was seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.evidence import stats
from peftbook.evidence.comparison import keys_of, measured
from peftbook.evidence.planning import Judged, judge_claim
from peftbook.studies import BLIND, Quantity, Verdict, study
from peftbook.studies.weight_error import task_error, weights_of

SEEDS = (0, 1, 2)
GROUP = 64
BITS = (4, 2)
FIXED = ("fp8", "mxfp4", "nvfp4", "nf4", "nf4_double", "nf4_half", "e2m1_half", "int4_half", "nf2")
WAYS = ("rtn", "hqq", "awq", "gptq")
FORMATS = (*FIXED, *(f"{way}_{bits}" for bits in BITS for way in WAYS))
SCORED = ("nf4", "mxfp4", "nvfp4", "nf2", *(f"{way}_2" for way in WAYS))  # whose loss is taken too
LABELS = {
    "fp8": "FP8 (E4M3), a scale a row", "mxfp4": "MXFP4", "nvfp4": "NVFP4", "nf4": "NF4, block 64",
    "nf4_double": "NF4, double quantisation", "nf4_half": "NF4, block 32", "e2m1_half": "E2M1, block 32",
    "int4_half": "Int4, block 32", "nf2": "NF2, block 64",
    "rtn": "Round-to-nearest", "hqq": "HQQ", "awq": "AWQ", "gptq": "GPTQ",
}  # fmt: skip
TESTED = 2  # bits at which the loss of this model tells the ways apart
SHARE = 0.1  # of what round-to-nearest costs: the margin
SAVED_BITS = 0.25  # of MXFP4 against NVFP4
EXPLAINED = 4**SAVED_BITS  # what so many bits are worth in squared error: a factor of four a bit
MARGIN = 0.05  # of that factor


def probe(seed: int) -> specs.Probe:
    """The measurement of the model or of one of its copies."""
    settings: dict = {
        "source": "small",
        "formats": FORMATS,
        "scored": SCORED,
        "group": GROUP,
        "texts": 100,
        "stride": 9,
        "calibration_tokens": 4096,
    }
    return specs.Probe(measure="bases.format_errors", settings=settings, model=specs.SMALL_LLAMA, seed=seed)


def runs(store: Store) -> list[specs.Probe]:
    """The model as it comes, then its copies."""
    return [probe(seed) for seed in SEEDS]


def records(store: Store) -> list[Record]:
    """All measurements. Raises Missing."""
    return store.need_all(runs(store))


def bits(found: Sequence[Record], name: str) -> float:
    """Stored bits for one weight of a format, counted from the bytes of what is kept."""
    measured = found[0].measurements
    return 8 * float(measured[f"{name}_bytes"] or 0) / float(measured["parameters"] or 1)


def costs(found: Sequence[Record], name: str) -> np.ndarray:
    """Nats that a format adds to each text, (seeds, texts)."""
    return np.array([task_error(one, name) - task_error(one, "full") for one in found])


def interval(found: Sequence[Record], added: np.ndarray) -> stats.Interval:
    """Nats per token, over copies and texts."""
    return stats.score_interval(added, weights_of(found[0]))


def ratio(found: Sequence[Record], first: str, second: str, what: str = "output") -> stats.Interval:
    """The logarithm of one format's error over another's, over copies."""
    above, below = (np.array(measured(found, f"{name}_{what}")) for name in (first, second))
    return stats.seed_interval(np.log(above / below))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Of every format bits, errors and cost; of the ways their differences; of four-bit floats their ratios."""
    found = records(store)
    keys, out = keys_of(found), dict[str, Quantity]()
    for name in FORMATS:
        out[f"{name}_bits"] = Quantity(bits(found, name), "bits", keys, digits=3)
        for what in ("mse", "output"):
            share = stats.seed_interval([100 * error for error in measured(found, f"{name}_{what}")])
            out[f"{name}_{what}"] = Quantity.of(share, "%", keys, 3 if share.mean < 0.1 else 2, among=(0.0, math.inf))
    for name in SCORED:
        out[f"{name}_cost"] = Quantity.of(interval(found, costs(found, name)), "nats per token", keys, 4)
    for first, second in (("gptq_2", "rtn_2"), ("awq_2", "rtn_2"), ("hqq_2", "rtn_2"), ("hqq_2", "gptq_2")):
        apart = interval(found, costs(found, first) - costs(found, second))
        out[f"{first}_minus_{second}"] = Quantity.of(apart, "nats per token", keys, 4)
    for way, number in itertools.product(WAYS[1:], BITS):
        over = ratio(found, f"{way}_{number}", f"rtn_{number}")
        out[f"{way}_{number}_over_rtn"] = Quantity.ratio(over, keys, 2)
    for second in ("nvfp4", "e2m1_half"):
        for what in ("output", "mse"):
            out[f"mxfp4_over_{second}_{what}"] = Quantity.ratio(ratio(found, "mxfp4", second, what), keys, 2)
    return out


def held(found: Sequence[Record], first: str, second: str, allowed: float) -> Verdict:
    """Is the loss of one way below that of another by as much as is asked?

    allowed: the claim is first − second < allowed · cost, with the cost of round-to-nearest. It is refuted beyond SHARE
    of that cost, and nothing is decided where round-to-nearest does not surely cost anything.
    """
    own = costs(found, f"rtn_{TESTED}")
    added = costs(found, f"{first}_{TESTED}") - costs(found, f"{second}_{TESTED}")
    control = interval(found, own)
    within, beyond = (
        stats.judge(interval(found, added - share * own), 0.0, (-math.inf, 0.0)) for share in (allowed, SHARE)
    )
    outcome = within if within == "reproduced" else beyond if beyond == "refuted" else "undecided"
    apart, names = interval(found, added), (LABELS[first], LABELS[second].replace("Round", "round"))
    words = (
        f"Loss on {names[0]} minus that on {names[1]} at {TESTED} bits is {apart:+.4f} nats per token (95 % interval "
        f"over {len(found)} copies and texts), where round-to-nearest costs {control:+.4f}; margin {SHARE:.0%} of "
        "that cost."
    )
    named = (f"{first}_{TESTED}_minus_{second}_{TESTED}", f"rtn_{TESTED}_cost")
    edge = (SHARE - allowed) * control.mean  # from what bears it out to what refutes it
    part = Judged(interval(found, added - allowed * own), (-math.inf, 0.0), (-math.inf, edge))
    if control.low <= 0:
        return Verdict("undecided", words, named, held=BLIND)
    return Verdict(outcome, words, named, (part,))


@study("bases_gptq", runs, quantities)
def gptq_verdict(store: Store) -> Verdict:
    """Is GPTQ's loss below that of round-to-nearest by a share of what this costs?"""
    return held(records(store), "gptq", "rtn", -SHARE)


@study("bases_hqq", runs, quantities)
def hqq_verdict(store: Store) -> Verdict:
    """Is HQQ's loss above GPTQ's by less than a share of what round-to-nearest costs?"""
    return held(records(store), "hqq", "gptq", SHARE)


@study("bases_mxfp4", runs, quantities)
def mxfp4_verdict(store: Store) -> Verdict:
    """Is the output error of MXFP4 that of NVFP4 times more than the bits between them explain?"""
    found = records(store)
    apart, alone = ratio(found, "mxfp4", "nvfp4"), ratio(found, "mxfp4", "e2m1_half")
    outcome, part = judge_claim(apart, math.log1p(MARGIN), (math.log(EXPLAINED), math.inf))
    low, high = math.exp(apart.low), math.exp(apart.high)
    sentence = (
        f"The squared output error of MXFP4 is {math.exp(apart.mean):.2f} times that of NVFP4 (95 % interval {low:.2f} "
        f"to {high:.2f} over {len(found)} copies); {SAVED_BITS} bits explain {EXPLAINED:.2f}, margin {MARGIN:.0%}. "
        f"Against the same blocks of 32 with scales in float16 it is {math.exp(alone.mean):.2f} times."
    )
    named = ("mxfp4_over_nvfp4_output", "mxfp4_over_e2m1_half_output")
    return Verdict(outcome, sentence, named, (part,))
