"""Does the error of the weights predict the loss? Every codebook and block size on one model, both errors measured.

Written before the runs. The model that decides is the small Llama, whose float32 weights never were on a grid. The
MiniLM encoder (error: cosine distance of embeddings) stands beside it; SmolLM2, whose weights come from a 4-bit file,
is a row of its own that decides nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from peftbook import metrics, specs
from peftbook.records import Record, Store
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.codebooks import CODEBOOKS, ENCODER_SHA256

__all__ = ["BLOCKS", "ORDER", "STUDIES", "probe", "text_interval"]

BLOCKS = (32, 64, 256, 1024)
CONFOUNDED_BLOCKS = (64,)
BLOCK = 64
SOURCES = ("small", "minilm", "smollm2")
TEXTS = {"small": 100, "minilm": 200, "smollm2": 40}
ORDER = ("nf4", "e3m0", "e2m1", "int4")  # Table 2 of Dettmers et al. 2023, best first
LABELS = {"nf4": "NF4", "e3m0": "E3M0", "e2m1": "E2M1", "int4": "Int4"}
THRESHOLD = 0.8  # of Spearman's rank correlation
MARGIN = 0.005  # nats per token
DRAWS = 1000


def probe(source: str) -> specs.Probe:
    """The measurement of one model."""
    settings: dict = {"source": source, "codebooks": CODEBOOKS, "blocks": BLOCKS, "texts": TEXTS[source]}
    if source == "smollm2":
        settings["blocks"] = CONFOUNDED_BLOCKS
    if source == "minilm":
        settings["encoder_sha256"] = ENCODER_SHA256
    model = specs.Model(name=specs.SMALL_MODEL, revision=specs.SMALL_REVISION) if source == "small" else specs.Model()
    return specs.Probe(measure="codebooks.quantised_loss", settings=settings, model=model)


def runs(store: Store) -> list[specs.Probe]:
    """The model that decides, the encoder, the confounded one."""
    return [probe(source) for source in SOURCES]


def cells(record: Record) -> list[tuple[str, int]]:
    """Codebook and block size of every quantised copy."""
    assert isinstance(record.spec, specs.Probe)
    return [(name, int(block)) for block in record.spec.numbers("blocks") for name in CODEBOOKS]


def weights_of(record: Record) -> list[float] | None:
    """Label tokens of the texts; None where a text's error is not a sum over tokens."""
    found = record.per_example.get("label_tokens")
    return None if found is None else [float(value) for value in found]


def task_error(record: Record, name: str) -> list[float]:
    """Each text's error with a quantised copy, or with the model as it is (`full`; 0 for the encoder)."""
    if name not in record.per_example:
        return [0.0] * len(record.per_example["kind"])
    return [float(value) for value in record.per_example[name]]


def text_interval(first: Sequence[float], second: Sequence[float], weights: Sequence[float] | None) -> metrics.Interval:
    """first − second of one model, paired over texts: normal intervals from the bootstrap over texts.

    There is nothing random but the choice of texts, so no seed enters.
    """
    found = metrics.paired_interval([list(first)], [list(second)], weights)
    error = found.example_se
    return metrics.Interval(found.mean, 1.960 * error, 1.645 * error, 0.0, error, 1, found.examples)


def correlation(record: Record, measure: str = "mse", blocks: Sequence[int] | None = None) -> metrics.Interval:
    """Spearman's rank correlation of weight error and task error over codebooks × blocks, with a bootstrap interval.

    Codebooks, each with all its block sizes, and texts are drawn with replacement; the interval runs between the
    percentiles of the draws, so its middle (`mean`) need not be the correlation of the data.
    """
    chosen = [cell for cell in cells(record) if blocks is None or cell[1] in blocks]
    names = list(dict.fromkeys(name for name, _ in chosen))
    error = np.array([float(record.measurements[f"{name}_{block}_{measure}"] or 0) for name, block in chosen])
    task = np.array([task_error(record, f"{name}_{block}") for name, block in chosen])  # (cells, texts)
    weight = np.array(weights_of(record) or np.ones(task.shape[1]))
    rows = {name: [at for at, cell in enumerate(chosen) if cell[0] == name] for name in names}
    rng = np.random.default_rng(20260101)
    draws = []
    for _ in range(DRAWS):
        texts = rng.integers(task.shape[1], size=task.shape[1])
        picked = [at for name in rng.integers(len(names), size=len(names)) for at in rows[names[name]]]
        draws.append(spearman(error[picked], (task[:, texts].sum(axis=1) / weight[texts].sum())[picked]))
    low95, low90, high90, high95 = np.nanquantile(draws, [0.025, 0.05, 0.95, 0.975])
    middle, examples = float(low95 + high95) / 2, task.shape[1]
    return metrics.Interval(
        middle, float(high95 - low95) / 2, float(high90 - low90) / 2, 0.0, float(np.nanstd(draws)), 1, examples
    )  # fmt: skip


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of the ranks; not a number where one side is constant."""
    ranks = [stats.rankdata(one) for one in (first, second)]
    if min(np.ptp(one) for one in ranks) == 0:
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def point(record: Record, measure: str = "mse", blocks: Sequence[int] | None = None) -> float:
    """The rank correlation of the data themselves."""
    chosen = [cell for cell in cells(record) if blocks is None or cell[1] in blocks]
    error = [float(record.measurements[f"{name}_{block}_{measure}"] or 0) for name, block in chosen]
    return spearman(np.array(error), np.array([math.fsum(task_error(record, f"{n}_{b}")) for n, b in chosen]))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each model: correlations, and for every codebook the error of its weights and what its use costs."""
    out: dict[str, Quantity] = {}
    for source in SOURCES:
        if (record := store.get(probe(source))) is None:
            continue
        keys, weights = (record.key,), weights_of(record)
        unit = "nats per token" if weights else ""
        for name, block in [*cells(record), ("q4_1", 32)]:
            cost = text_interval(task_error(record, f"{name}_{block}"), task_error(record, "full"), weights)
            out[f"{source}_{name}_{block}_cost"] = Quantity(
                cost.mean, unit, keys, cost.low, cost.high, 1, cost.examples, 4
            )  # fmt: skip
            for measure in ("mse", "mae"):
                value = float(record.measurements[f"{name}_{block}_{measure}"] or 0)
                out[f"{source}_{name}_{block}_{measure}"] = Quantity(value, "", keys, seeds=1, digits=5)
        if weights:
            loss = math.fsum(task_error(record, "full")) / math.fsum(weights)
            out[f"{source}_full_loss"] = Quantity(loss, unit, keys, seeds=1, n=len(weights), digits=3)
        for label, blocks in (("", None), (f"_{BLOCK}", (BLOCK,))):
            for measure in ("mse", "mae"):
                interval = correlation(record, measure, blocks)
                out[f"{source}_correlation_{measure}{label}"] = Quantity(
                    point(record, measure, blocks), "", keys, interval.low, interval.high, 1, interval.examples, 2
                )
        out |= order_quantities(source, record)
    return out


def order_quantities(source: str, record: Record) -> dict[str, Quantity]:
    """Differences of neighbours in Table 2's order at block 64: below zero where the table's order holds."""
    out = {}
    for better, worse in itertools.pairwise(ORDER):
        found = neighbours(record, better, worse)
        out[f"{source}_{better}_minus_{worse}"] = Quantity(
            found.mean, "nats per token" if weights_of(record) else "", (record.key,), found.low, found.high, 1,
            found.examples, 4,
        )  # fmt: skip
    return out


def neighbours(record: Record, better: str, worse: str) -> metrics.Interval:
    """Task error of `better` − `worse` at block 64."""
    first, second = (task_error(record, f"{name}_{BLOCK}") for name in (better, worse))
    return text_interval(first, second, weights_of(record))


def correlation_verdict(store: Store) -> Verdict:
    """Is the rank correlation on the small Llama above the threshold?"""
    if (record := store.get(probe("small"))) is None:
        return Verdict("not yet run", "The measurement of the small Llama is not there.")
    interval = correlation(record)
    sentence = (
        f"Over {len(cells(record))} codebooks and block sizes the rank correlation of squared weight error and loss is "
        f"{point(record):.2f} (95 % interval {interval.low:.2f} to {interval.high:.2f}; threshold {THRESHOLD}); at "
        f"block {BLOCK} alone it is {point(record, blocks=(BLOCK,)):.2f}."
    )
    return Verdict(metrics.judge(interval, 0.0, (THRESHOLD, math.inf)), sentence, ("small_correlation_mse",))


def order_verdict(store: Store) -> Verdict:
    """Does Table 2's order hold on the small Llama? Reproduced if all three differences agree, refuted if one does not.

    The claim needs all three, which makes "reproduced" strict as it is; "refuted" by any one of three is taken at the
    99.2 % interval (Bonferroni).
    """
    if (record := store.get(probe("small"))) is None:
        return Verdict("not yet run", "The measurement of the small Llama is not there.")
    pairs = list(itertools.pairwise(ORDER))
    outcomes, said = [], []
    for better, worse in pairs:
        found = neighbours(record, better, worse)
        wider = metrics.Interval(found.mean, 2.394 * found.example_se, found.half90, 0.0, found.example_se, 1, 0)
        if metrics.judge(wider, MARGIN, (-math.inf, 0.0)) == "refuted":
            outcomes.append("refuted")
        else:
            outcomes.append(metrics.judge(found, MARGIN, (-math.inf, 0.0)))
        said.append(f"{LABELS[better]} − {LABELS[worse]} {found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})")
    sentence = "; ".join(said) + f" nats per token at block {BLOCK} (margin {MARGIN})."
    if "refuted" in outcomes:
        outcome = "refuted"
    elif set(outcomes) == {"reproduced"}:
        outcome = "reproduced"
    else:
        outcome = "undecided"
    return Verdict(outcome, sentence, tuple(f"small_{better}_minus_{worse}" for better, worse in pairs))


def study(name: str, title: str, claim: str, refuted_if: str, verdict) -> Study:
    """One claim on the shared measurements."""
    return Study(
        name=name,
        title=title,
        claim=claim,
        source="dettmers2023, Table 2",
        refuted_if=refuted_if,
        does_not_show="One model of 5M parameters without the outlier features of large ones, quantised after training "
        "and not tuned; intervals are over texts and codebooks, not over models.",
        chapter="book/qlora",
        runs=runs,
        quantities=quantities,
        verdict=verdict,
    )


STUDIES = {
    one.name: one
    for one in (
        study(
            "weight_error",
            "Does weight error predict perplexity?",
            "A codebook with the smaller weight error gives the smaller loss.",
            f"the rank correlation of squared weight error and loss over codebooks × block sizes is below {THRESHOLD} "
            "(the whole 95 % bootstrap interval).",
            correlation_verdict,
        ),
        study(
            "weight_error_order",
            "Does the order of the 4-bit types hold?",
            "Perplexity rises in the order NF4, FP4 (E3M0), FP4 (E2M1), Int4.",
            f"one neighbour in this order is worse than the next by more than {MARGIN} nats per token at block {BLOCK} "
            "(the whole interval, corrected for three comparisons).",
            order_verdict,
        ),
    )
}
