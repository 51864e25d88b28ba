"""Does the error of the weights predict the loss? Every codebook and block size on one model, both errors measured.

Written before the runs. The model that decides is the small Llama, whose float32 weights never were on a grid. The
MiniLM encoder (error: cosine distance of embeddings) stands beside it as a second witness; SmolLM2, whose weights come
from a 4-bit file, is a row of its own that decides nothing.

Copies of the small Llama with its units in another order compute the same function but round other weights together, so
that their spread is that of rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import scipy

from peftbook.core import specs
from peftbook.core.records import Missing, Record, Store
from peftbook.evidence import resampling, stats
from peftbook.evidence.comparison import keys_of
from peftbook.evidence.planning import judge_claim
from peftbook.studies import BLIND, Quantity, Verdict, gathered, study
from peftbook.studies.codebooks import CODEBOOKS, ENCODER_SHA256

BLOCKS = (32, 64, 256, 1024)
CONFOUNDED_BLOCKS = (64,)
BLOCK = 64
COPY_BLOCKS = (64, 256)
SEEDS = (0, 1, 2, 3, 4)  # 0: the small Llama as it comes; the others: copies of it
SOURCES = ("small", "minilm", "smollm2")
TEXTS = {"small": 100, "minilm": 200, "smollm2": 40}
ORDER = ("nf4", "e3m0", "e2m1", "int4")  # Table 2 of Dettmers et al. 2023, best first
LABELS = {"nf4": "NF4", "e3m0": "E3M0", "e2m1": "E2M1", "int4": "Int4"}
THRESHOLD = 0.8  # of Spearman's rank correlation
MARGIN = 0.005  # nats per token: a quarter of what counts after tuning, since nothing is tuned here
DRAWS = 1000
SPLITS = 200
PARTS = {"pooled": COPY_BLOCKS, "64": (64,), "256": (256,)}  # where the correlation decides: blocks by name


def probe(source: str, seed: int = 0) -> specs.Probe:
    """The measurement of one model; seeds above 0 are copies of the small Llama, at fewer block sizes."""
    settings: dict = {"source": source, "codebooks": CODEBOOKS, "blocks": BLOCKS, "texts": TEXTS[source]}
    if source == "smollm2":
        settings["blocks"] = CONFOUNDED_BLOCKS
    if source == "minilm":
        settings["encoder_sha256"] = ENCODER_SHA256
    if seed:
        settings["blocks"] = COPY_BLOCKS
    model = specs.SMALL_LLAMA if source == "small" else specs.Model()
    return specs.Probe(measure="codebooks.quantised_loss", settings=settings, model=model, seed=seed)


def probes(source: str) -> list[specs.Probe]:
    """The measurements of one model and its copies."""
    return [probe(source, seed) for seed in (SEEDS if source == "small" else SEEDS[:1])]


def runs(store: Store) -> list[specs.Probe]:
    """The model that decides with its copies, the encoder, the confounded one."""
    return [one for source in SOURCES for one in probes(source)]


def records(source: str, store: Store) -> list[Record]:
    """The model's record and, once all of them are there, those of its copies. Raises Missing without the first."""
    first = [store.need(probe(source))]
    with suppress(Missing):
        return store.need_all(probes(source))
    return first


def cells(record: Record) -> list[tuple[str, int]]:
    """Codebook and block size of every quantised copy."""
    assert isinstance(record.spec, specs.Probe)
    return [(name, int(block)) for block in record.spec.numbers("blocks") for name in CODEBOOKS]


def weights_of(record: Record) -> list[float] | None:
    """Label tokens of the texts; None where a text's error is not a sum over tokens."""
    found = record.per_example.get("label_tokens")
    return None if found is None else [float(value) for value in found]


def task_error(record: Record, name: str) -> np.ndarray:
    """Each text's error with a quantised copy, or with the model as it is (`full`; 0 for the encoder)."""
    if name not in record.per_example:
        return np.zeros(len(record.per_example["kind"]))
    return np.array(record.per_example[name], dtype=float)


def chosen_cells(found: Sequence[Record], blocks: Sequence[int] | None) -> list[tuple[str, int]]:
    """The quantised copies of the first record at these block sizes, or at all."""
    return [cell for cell in cells(found[0]) if blocks is None or cell[1] in blocks]


def weight_errors(found: Sequence[Record], chosen: Sequence[tuple[str, int]], measure: str) -> np.ndarray:
    """Weight error, (cells,), mean over the records that have the cell."""
    names = [f"{name}_{block}_{measure}" for name, block in chosen]
    return np.array([np.mean([one.measurements[at] for one in found if at in one.measurements]) for at in names])


def task_errors(found: Sequence[Record], chosen: Sequence[tuple[str, int]]) -> np.ndarray:
    """Task error, (records, cells, texts); the first record stands in for a cell that a copy does not have."""
    return np.array(
        [
            [
                task_error(one if (at := f"{name}_{block}") in one.per_example else found[0], at)
                for name, block in chosen
            ]
            for one in found
        ]
    )


def correlation(found: Sequence[Record], measure: str = "mse", blocks: Sequence[int] | None = None) -> stats.Interval:
    """Spearman's rank correlation of weight error and task error over codebooks × blocks, with a bootstrap interval.

    Errors are means over the model and its copies. Codebooks, each with all its block sizes, texts and copies are
    drawn with replacement; the interval runs between the percentiles of the draws, so its middle (`mean`) need not be
    the correlation of the data.
    """
    chosen = chosen_cells(found, blocks)
    names = list(dict.fromkeys(name for name, _ in chosen))
    error, task = weight_errors(found, chosen, measure), task_errors(found, chosen)
    weight = np.array(weights_of(found[0]) or np.ones(task.shape[2]))
    rows = np.array([[at for at, cell in enumerate(chosen) if cell[0] == name] for name in names])
    rng = np.random.default_rng(20260101)
    picks, texts, copies = [], np.empty((DRAWS, len(weight))), np.empty((DRAWS, len(found)))
    for draw in range(DRAWS):
        texts[draw] = np.bincount(rng.integers(len(weight), size=len(weight)), minlength=len(weight))
        picks.append(rows[rng.integers(len(names), size=len(names))].flatten())
        copies[draw] = np.bincount(rng.integers(len(found), size=len(found)), minlength=len(found))
    losses = np.einsum("dr,rcd->dc", copies / len(found), task @ texts.T) / (texts @ weight)[:, None]  # (draws, cells)
    draws = spearman(error[np.array(picks)], np.take_along_axis(losses, np.array(picks), axis=1))
    return resampling.percentile_interval(draws, len(found), task.shape[2])


def ceiling(found: Sequence[Record], blocks: Sequence[int] | None = None) -> float:
    """How well one half of the data predicts the other: no weight error can be asked to predict the task error better.

    Spearman's rank correlation over codebooks × blocks between the task errors of two halves, each of half of the
    copies and half of the texts; mean over random splits. A single record is split by texts alone.
    """
    task = task_errors(found, chosen_cells(found, blocks))
    rng = np.random.default_rng(20260101)
    halves = []
    for _ in range(SPLITS):
        copies, texts = (rng.permutation(size) for size in (len(found), task.shape[2]))
        cut, middle = len(copies) // 2, len(texts) // 2
        one, two = (copies[:cut], copies[cut:]) if cut else (copies, copies)
        halves.append([task[one][:, :, texts[:middle]], task[two][:, :, texts[middle:]]])
    sums = np.array([[part.sum(axis=(0, 2)) for part in pair] for pair in halves])  # (splits, 2, cells)
    return float(np.nanmean(spearman(sums[:, 0], sums[:, 1])))


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the ranks along the last axis; not a number where one side is constant."""
    one, two = (
        ranks - ranks.mean(axis=-1, keepdims=True)
        for ranks in (scipy.stats.rankdata(side, axis=-1) for side in (first, second))
    )
    size = np.sqrt((one**2).sum(axis=-1) * (two**2).sum(axis=-1))
    return np.divide((one * two).sum(axis=-1), size, out=np.full_like(size, np.nan), where=size > 0)


def point(found: Sequence[Record], measure: str = "mse", blocks: Sequence[int] | None = None) -> float:
    """The rank correlation of the data themselves."""
    chosen = chosen_cells(found, blocks)
    return float(spearman(weight_errors(found, chosen, measure), task_errors(found, chosen).sum(axis=(0, 2))))


def cost(found: Sequence[Record], first: str, second: str = "full") -> stats.Interval:
    """Task error of one state minus another's, paired over texts: over the copies that have both, as over seeds."""
    have = [one for one in found if first in one.per_example] or list(found[:1])
    one, two = (np.array([task_error(record, name) for record in have]) for name in (first, second))
    return stats.score_interval(one - two, weights_of(found[0]))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each model: correlations, and for every codebook the error of its weights and what its use costs."""

    def of(source: str) -> dict[str, Quantity]:
        found = records(source, store)
        return cost_quantities(source, found) | correlation_quantities(source, found)

    return gathered(of, SOURCES)


def cost_quantities(source: str, found: Sequence[Record]) -> dict[str, Quantity]:
    """For every codebook the error of its weights and what its use costs; neighbours in the order of Table 2."""
    out: dict[str, Quantity] = {}
    keys, weights = keys_of(found), weights_of(found[0])
    unit = "nats per token" if weights else ""
    for name, block in [*cells(found[0]), ("q4_1", 32)]:
        added = cost(found, f"{name}_{block}")
        out[f"{source}_{name}_{block}_cost"] = Quantity.of(added, unit, keys, 4)
        for measure in ("mse", "mae"):
            (value,) = weight_errors(found, [(name, block)], measure)
            out[f"{source}_{name}_{block}_{measure}"] = Quantity(float(value), "", keys, seeds=added.seeds, digits=5)
    if weights:
        loss = math.fsum(task_error(found[0], "full")) / math.fsum(weights)
        out[f"{source}_full_loss"] = Quantity(loss, unit, keys[:1], seeds=1, n=len(weights), digits=3)
    for better, worse in itertools.pairwise(ORDER):
        apart = neighbours(found, better, worse)
        out[f"{source}_{better}_minus_{worse}"] = Quantity.of(apart, unit, keys, 4)
    return out


def correlation_quantities(source: str, found: Sequence[Record]) -> dict[str, Quantity]:
    """Correlations over all cells, over the blocks that the copies have and within each of these; how far halves agree.

    A part is left out where the record has not all of its blocks.
    """
    out: dict[str, Quantity] = {}
    at_hand = {block for _, block in cells(found[0])}
    parts = {name: blocks for name, blocks in PARTS.items() if set(blocks) <= at_hand}
    for name, blocks in {"": None, **parts}.items():
        label = f"_{name}" if name else ""
        keys = keys_of(found)
        for measure in ("mse", "mae"):
            interval = correlation(found, measure, blocks)
            out[f"{source}_correlation_{measure}{label}"] = Quantity(
                point(found, measure, blocks), "", keys, interval.low, interval.high, len(found), interval.examples, 2
            )
        out[f"{source}_ceiling{label}"] = Quantity(ceiling(found, blocks), "", keys, seeds=len(found), digits=2)
    return out


def neighbours(found: Sequence[Record], better: str, worse: str) -> stats.Interval:
    """Task error of `better` − `worse` at block 64, over copies and texts."""
    return cost(found, f"{better}_{BLOCK}", f"{worse}_{BLOCK}")


@study("weight_error", runs, quantities)
def correlation_verdict(store: Store) -> Verdict:
    """Is the rank correlation on the small Llama above the threshold, within block sizes and pooled?

    All parts must agree: pooling alone also tests the block size. Where two halves of the data agree less than the
    threshold asks, the loss cannot tell the codebooks apart and nothing is decided.
    """
    found = store.need_all(probes("small"))
    outcomes: dict[str, str] = {}
    said, dull = [], []
    for name, blocks in PARTS.items():
        interval, agreed = correlation(found, "mse", blocks), ceiling(found, blocks)
        where = f"over blocks {' and '.join(map(str, blocks))}" if len(blocks) > 1 else f"at block {name}"
        said.append(
            f"{point(found, 'mse', blocks):.2f} {where} (95 % interval {interval.low:.2f} to {interval.high:.2f}; two "
            f"halves of the data agree to {agreed:.2f})"
        )
        if agreed < THRESHOLD:
            dull.append(where)
        judged = stats.judge(interval, 0.0, (THRESHOLD, math.inf))
        outcomes[where] = "undecided" if agreed < THRESHOLD else judged
    outcome = outcomes[where] if len(set(outcomes.values())) == 1 else "undecided"
    sentence = (
        f"On the small Llama, mean of {len(found)} copies, the rank correlation of squared weight error and loss over "
        f"{len(CODEBOOKS)} codebooks is {', '.join(said)}; threshold {THRESHOLD}"
    )
    if dull:
        sentence += f". This model's loss is too insensitive to tell the codebooks apart {', '.join(dull)}"
    elif outcome == "undecided":
        by_part = ", ".join(f"{one} {where}" for where, one in outcomes.items())
        sentence += f". By part it is {by_part}; {len(CODEBOOKS)} codebooks are few"
    with suppress(Missing):
        witness = records("minilm", store)
        interval = correlation(witness)
        sentence += (
            f". On the MiniLM encoder, whose embeddings are sensitive, it is {point(witness):.2f} "
            f"({interval.low:.2f} to {interval.high:.2f}) over {len(cells(witness[0]))} codebooks and block sizes, "
            f"{point(witness, blocks=(BLOCK,)):.2f} at block {BLOCK}; it decides nothing"
        )
    names = (*(f"small_correlation_mse_{name}" for name in PARTS), *(f"small_ceiling_{name}" for name in PARTS))
    held = BLIND if dull else "codebooks are few" if outcome == "undecided" else ""
    return Verdict(outcome, f"{sentence}.", names, held=held)


@study("weight_error_order", runs, quantities)
def order_verdict(store: Store) -> Verdict:
    """Does Table 2's order hold on the small Llama? Reproduced if all three differences agree, refuted if one does not.

    The claim needs all three, which makes "reproduced" strict as it is; "refuted" by any one of three is taken at the
    98.3 % interval (Bonferroni), and so is a direction against the claim.
    """
    found, pairs = store.need_all(probes("small")), list(itertools.pairwise(ORDER))
    apart = [neighbours(found, *pair) for pair in pairs]
    outcomes, parts = zip(*(judge_claim(one, MARGIN, (-math.inf, 0.0), len(pairs)) for one in apart), strict=True)
    said = [f"{LABELS[better]} − {LABELS[worse]} {one:+.4f}" for (better, worse), one in zip(pairs, apart, strict=True)]
    own = cost(found, f"nf4_{BLOCK}")
    sentence = (
        f"{'; '.join(said)} nats per token at block {BLOCK} (95 % intervals over {len(found)} copies and texts; margin "
        f"{MARGIN}, where NF4 itself costs {own:+.4f})."
    )
    names = (*(f"small_{better}_minus_{worse}" for better, worse in pairs), f"small_nf4_{BLOCK}_cost")
    outcome = stats.together(outcomes)
    turned = [pair for pair, one in zip(pairs, apart, strict=True) if one.mean > one.half(0.05 / len(pairs))]
    if turned and outcome == "undecided":
        wrong = " and ".join(f"{LABELS[better]} is surely worse than {LABELS[worse]}" for better, worse in turned)
        return Verdict(
            "direction only", f"{sentence} Against the claim {wrong}, by less than the margin.", names, parts
        )
    return Verdict(outcome, sentence, names, parts)
