"""Is double quantisation free? Stored bytes and loss with block constants in 32 and in 8 bits.

Written before the runs. The small Llama decides about the loss; SmolLM2, whose weights come from a 4-bit file, is a row
of its own that decides nothing. Bytes are counted from the arrays that are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.evidence import stats
from peftbook.evidence.planning import judge_claim
from peftbook.studies import Quantity, Verdict, gathered, study
from peftbook.studies.weight_error import TEXTS, task_error, weights_of

BLOCKS = (64, 256)
SOURCES = ("small", "smollm2")
# Dettmers et al. 2023, section 3, counts 0.373 bits at block 64; at 256 the same count gives 32/256 − 8/256 − 32/256².
CLAIMED_BITS = {64: 0.373, 256: 0.093}
MARGIN_BITS = 0.005
SHARE = 0.1  # of what NF4 itself costs the model: the margin
MARGIN = 0.00011  # nats per token: that share on the small Llama at block 64, as a figure shades it


def probe(source: str) -> specs.Probe:
    """The measurement of one model."""
    settings: dict = {"source": source, "blocks": BLOCKS, "texts": TEXTS[source]}
    model = specs.SMALL_LLAMA if source == "small" else specs.Model()
    return specs.Probe(measure="codebooks.double_quant_cost", settings=settings, model=model)


def runs(store: Store) -> list[specs.Probe]:
    """The model that decides, then the confounded one."""
    return [probe(source) for source in SOURCES]


def bits(record: Record, block: int, kind: str) -> float:
    """Stored bits for one weight."""
    stored, parameters = record.measurements[f"{block}_{kind}_bytes"], record.measurements["parameters"]
    return 8 * float(stored or 0) / float(parameters or 1)


def saved(record: Record, block: int) -> float:
    """Bits that double quantisation saves for one weight."""
    return bits(record, block, "none") - bits(record, block, "dynamic8")


def costs(record: Record, block: int) -> tuple[stats.Interval, stats.Interval, stats.Interval]:
    """What 8-bit constants add to the loss, what NF4 with constants in 32 bits does, and how far the first is above
    SHARE of the second; paired over texts.

    Free means that the last is below zero: a difference and not a quotient, since NF4's cost may not be far from zero.
    """
    quantised, plain, full = (task_error(record, name) for name in (f"{block}_dynamic8", f"{block}_none", "full"))
    added, own = quantised - plain, plain - full
    one, two, three = (stats.example_interval(nats, weights_of(record)) for nats in (added, own, added - SHARE * own))
    return one, two, three


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each model and block size: bits stored and saved, loss of both kinds against full precision, difference.

    SmolLM2's are confounded and say so.
    """
    return gathered(lambda source: source_quantities(source, store.need(probe(source))), SOURCES)


def source_quantities(source: str, record: Record) -> dict[str, Quantity]:
    """Of one model."""
    keys, weights, out = (record.key,), weights_of(record), dict[str, Quantity]()
    note = "" if source == "small" else "confounded: the weights come from a 4-bit file"
    for block in BLOCKS:
        for kind in ("none", "dynamic8"):
            name, stored = f"{source}_{block}_{kind}", f"{block}_{kind}"
            out[f"{name}_bits"] = Quantity(bits(record, block, kind), "bits", keys, digits=4)
            for measure, unit, digits in (("bytes", "bytes", 0), ("mse", "", 6)):
                value = float(record.measurements[f"{stored}_{measure}"] or 0)
                out[f"{name}_{measure}"] = Quantity(value, unit, keys, digits=digits)
            loss = stats.example_interval(task_error(record, stored) - task_error(record, "full"), weights)
            out[f"{name}_cost"] = Quantity.of(loss, "nats per token", keys, 4, note)
        out[f"{source}_{block}_saved_bits"] = Quantity(saved(record, block), "bits", keys, digits=4)
        added, own, beyond = costs(record, block)
        for name, found in (("cost", added), ("beyond_margin", beyond)):
            out[f"{source}_{block}_{name}"] = Quantity.of(found, "nats per token", keys, 5, note)
        margin = SHARE * own.mean
        out[f"{source}_{block}_margin"] = Quantity(margin, "nats per token", keys, seeds=1, digits=5, note=note)
    return out


@study("double_quant_bits", runs, quantities)
def bits_verdict(store: Store) -> Verdict:
    """Are the bits saved those of the paper's count? A count has no interval: it is inside the margin or it is not."""
    record = store.need(probe("small"))
    found = {block: saved(record, block) for block in BLOCKS}
    agree = all(abs(found[block] - CLAIMED_BITS[block]) <= MARGIN_BITS for block in BLOCKS)
    said = " and ".join(f"{found[block]:.4f} bits at block {block} (count {CLAIMED_BITS[block]})" for block in BLOCKS)
    names = tuple(f"small_{block}_saved_bits" for block in BLOCKS)
    return Verdict("reproduced" if agree else "refuted", f"Stored arrays shrink by {said} for each weight.", names)


@study("double_quant_loss", runs, quantities)
def loss_verdict(store: Store) -> Verdict:
    """Is the loss with 8-bit constants worse by more than a share of NF4's own cost, at either block size?"""
    record, outcomes, parts, said = store.need(probe("small")), set(), [], []
    for block in BLOCKS:
        added, own, beyond = costs(record, block)
        outcome, part = judge_claim(beyond, 0.0, (-math.inf, 0.0))  # the claim holds the margin
        outcomes.add(outcome)
        parts.append(part)
        said.append(
            f"{added.mean:+.5f} nats per token at block {block} (95 % interval {added.low:+.5f} to {added.high:+.5f}; "
            f"NF4 itself costs {own.mean:+.5f}, {own.low:+.5f} to {own.high:+.5f})"
        )
    outcome = stats.together(outcomes)
    sentence = (
        f"With 8-bit constants the loss of the small Llama changes by {' and '.join(said)}; margin {SHARE:.0%} of "
        "NF4's own cost"
    )
    if outcome == "undecided":
        most = max(part.interval.high for part in parts)
        sentence += f", which is too uncertain to be held against: the cost may lie {most:.5f} beyond that share"
    if (other := store.get(probe("smollm2"))) is not None:
        rows = [f"{costs(other, block)[0].mean:+.5f} at block {block}" for block in BLOCKS]
        sentence += f". SmolLM2 ({' and '.join(rows)}) comes from a 4-bit file, is confounded and decides nothing"
    named = (*(f"small_{block}_cost" for block in BLOCKS), *(f"small_{block}_beyond_margin" for block in BLOCKS))
    return Verdict(outcome, f"{sentence}.", named, tuple(parts))
