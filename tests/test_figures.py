"""Figures: the numbers they draw obey laws, their texts are readable, and equal records give equal bytes."""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes
import numpy as np
import pytest
import torch
from fake_records import fill_store
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import LoadFlags
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text
from peft import LoraConfig, get_peft_model
from peft.utils import constants
from scipy import stats as oracle
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peftbook import tasks
from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Missing, Record, Store, default_store
from peftbook.evidence import metrics, stats
from peftbook.evidence.results import study_quantities
from peftbook.memory import SHAPES, Configuration, training_step
from peftbook.memory.time_model import Curve, ProductLaw, Rates, step_seconds
from peftbook.methods import arm_looks
from peftbook.runtime.processes import run_child
from peftbook.scratch.capacity import free_numbers
from peftbook.scratch.codebooks import expected_error
from peftbook.scratch.forgetting import energy_rank
from peftbook.studies import (
    NAMES,
    activations,
    benchmark,
    codebooks,
    faults,
    forgetting,
    frontier,
    get_study,
    learning_rate,
    memory,
    merging,
    prompt_design,
    reward_rank,
    subspace,
)
from peftbook.training.encode import encode_turns
from peftbook.training.models import prepare_embedded
from peftbook.training.probes import combining, elsewhere
from peftbook.training.probes.coverage import simulated
from peftbook.views import figures
from peftbook.views.figures import (
    bits,
    costs,
    data,
    evidence,
    four_bits,
    lora,
    machines,
    measuring,
    methods,
    parts,
    prompt,
    quantisation,
    retention,
    shipping,
    style,
    updates,
    vectors,
)

FROM_RECORDS = [name for name in figures.FIGURES if figures.from_records(name)]


@dataclass(frozen=True)
class Drawn:
    """A figure, drawn once: its file, its width and height in points, its texts with their boxes, and which slant."""

    body: bytes
    size: tuple[float, float]
    texts: tuple[tuple[str, float, tuple[float, float, float, float]], ...]
    slanting: frozenset[str]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Drawn]]:
    """Every figure, from invented records. What one studied in four needs is run when a figure's message says so."""
    store = fill_store(tmp_path_factory.mktemp("records"))
    for at, name in enumerate(NAMES):
        if at % 4:
            follow(name, store)
    found: dict[str, Drawn] = {}
    for name in sorted(figures.FIGURES, key=lambda one: one == "time_by_workers"):  # of all runs that there are: last
        while name not in found:
            try:
                found[name] = drawn_once(name, store)
            except Missing as missing:
                name_of_study = re.search(r"`peftbook run (\w+)`", str(missing))[1]
                assert get_study(name_of_study).missing(store), f"{name_of_study} lacks nothing"
                follow(name_of_study, store)
    return store, found


@pytest.fixture(scope="module")
def store(drawn: tuple[Store, dict[str, Drawn]]) -> Store:
    """The invented records of every figure."""
    return drawn[0]


def drawn_once(name: str, store: Store) -> Drawn:
    """A figure as file, and where the file has its texts. Raises Missing."""
    with style.mode_context("light"):
        figure = figures.draw(name, store)
        body = style.render_svg(lambda: figure)
        shown = visible_texts(figure)
        texts = tuple((text.get_text(), text.get_fontsize(), box) for text, box in shown.items())
        slanting = frozenset(text.get_text() for text in shown if text.get_rotation() % 90)
        return Drawn(body, (figure.bbox.width, figure.bbox.height), texts, slanting)


def follow(name: str, store: Store) -> None:
    """What `peftbook run NAME` would do, with invented records, but for probes that no figure draws."""
    study = get_study(name)
    while missing := [run for run in study.missing(store) if isinstance(run, specs.Run) or run.measure in PROBES]:
        for run in missing:
            store.save(invented(run))


def invented(run: specs.Run | specs.Probe) -> Record:
    """An invented record; equal specs give equal numbers."""
    rng = np.random.default_rng(int(run.key[:12], 16))
    found = PROBES[run.measure](run, rng) if isinstance(run, specs.Probe) else invented_run(run, rng)
    minutes = rng.integers(1, 9)
    times = {"started": "2026-01-01T10:00:00", "finished": f"2026-01-01T10:{minutes:02}:00"}
    return Record(key=run.key, spec=run, provenance=times, **found)


def invented_step_peaks(probe: specs.Probe, rng: np.random.Generator) -> dict:
    """Peaks near the predicted ones."""
    found = [beyond_state(text) for text in probe.words("configurations")]
    return {"per_example": {"peak_bytes": (np.array(found) * (1 + rng.normal(0, 0.02, len(found)))).tolist()}}


@functools.cache
def beyond_state(text: str) -> float:
    """The predicted peak of a configuration, which several probes measure."""
    return activations.beyond_state(Configuration.parse(text))


LAWS, CURVES = (dict.fromkeys(("bf16", "fp32"), one) for one in (ProductLaw(1e-11, 1e-10), Curve((1.0,), (1e-9,))))
RATES = Rates(LAWS, LAWS, dict.fromkeys(LAWS, (1e-11, 1e-11)), CURVES, CURVES, 1e-10, 1e-9, 1e-5)


@functools.cache
def seconds_of(text: str) -> float:
    """Of a step of a configuration, on a machine on which only operations and bytes take time."""
    one = Configuration.parse(text)
    return float(sum(step_seconds(one.shape, one.setup, RATES).values()))


def invented_steps(probe: specs.Probe, rng: np.random.Generator) -> dict:
    """Seconds near those of that machine."""
    seconds = [seconds_of(text) for text in probe.words("configurations")]
    return {
        "measurements": {"calibration_seconds": 5.0},
        "per_example": {"step_seconds": (np.array(seconds) * (1 + rng.normal(0, 0.1, len(seconds)))).tolist()},
        "metrics_info": {"rates": RATES.as_json()},
    }


BEST = {"full": 6e-5, "lora": 5e-4, "qlora": 5e-4, "adapter": 8e-4, "norm": 3e-3, "ia3": 1e-2, "prefix": 0.02,
        "prompt": 0.03, "vera": 0.01, "peft": 5e-4}  # fmt: skip
LEVEL = {"untuned": 2.6, "full": 1.31, "lora": 1.33, "qlora": 1.36, "adapter": 1.34, "norm": 1.4, "ia3": 1.42,
         "prefix": 1.5, "prompt": 1.75, "vera": 1.41, "peft": 1.31}  # fmt: skip


def invented_run(run: specs.Run, rng: np.random.Generator) -> dict:
    """Losses and scores whose means follow the method, its rate, its size and the data."""
    method, examples = run.method, len(tasks.test_groups(run.task.name, run.evaluation.n_loss)) or 12  # a group each
    level = LEVEL[method.kind] - 0.08 * math.log10(getattr(method, "rank", 1) * getattr(method, "length", 1))
    level -= 0.5 if getattr(method, "shots", 0) else 0
    level += {"nf4": 0.05, "fp4": 0.14, "int4": 0.09}.get(getattr(method, "quant", ""), 0) * (1 if run.budget else 3)
    level += {"random": 0.06, "text": 0.01}.get(getattr(method, "init", ""), 0)
    level += 0.01 * len(getattr(method, "targets", ())) + 1.5 * (run.model.name == specs.SMALL_MODEL)
    if run.budget:
        best = BEST[method.kind] / math.sqrt(getattr(method, "b_rate_ratio", 1))
        level += 0.03 * math.log2(run.budget.learning_rate / best) ** 2
        level += 0.5 * math.exp(-(run.budget.train_examples or 9999) / 300) + rng.normal(0, 0.012)
    shared = np.random.default_rng(5)  # test examples are shared by all runs
    tokens = shared.integers(20, 60, examples)
    nats = tokens * (level + shared.normal(0, 0.15, examples) + rng.normal(0, 0.02, examples))
    trained = method.parameters(SHAPES["smollm2-135m"]) or 1000
    measured = {"loss_nats": float(nats.sum() / tokens.sum()), "trainable_parameters": trained}
    per_example = {"loss_nats": nats.tolist(), "label_tokens": tokens.astype(float).tolist()}
    if run.evaluation.n_generate:
        rouge = np.clip(0.8 - 0.16 * level + rng.normal(0, 0.02, examples), 0, 1)
        counted = {f"bleu_total_{n}": [21.0 - n] * examples for n in (1, 2, 3, 4)}
        counted |= {f"bleu_matched_{n}": np.round((21 - n) * rouge**n).tolist() for n in (1, 2, 3, 4)}
        counted |= {"bleu_length": [20.0] * examples, "bleu_reference_length": [20.0] * examples}
        if run.task.name == "sql":  # scored by what comes back alone
            answered = (rng.random(examples) < rouge).astype(float)
            per_example |= {"execution_match": answered.tolist()}
            measured |= {"execution_match": float(answered.mean())}
        else:
            per_example |= {"rougeL": rouge.tolist()}
            measured |= {"rougeL": float(rouge.mean())}
        if run.task.name == "e2e":  # several references
            per_example |= counted
            measured |= {"bleu": metrics.bleu(counted)}
    curve = {"train_loss_nats": (level + (5 - level) * np.exp(-np.arange(40) / 8)).tolist()} if run.budget else {}
    return {"measurements": measured, "per_example": per_example, "curve": curve}


def test_invented_runs_have_no_column_that_real_ones_lack():
    """A figure that reads one would be drawn here and fail once its study has run."""
    real = {
        record.spec.task.name: record
        for record in default_store().all()
        if isinstance(record.spec, specs.Run) and record.spec.evaluation.n_generate and not record.failure
    }
    assert {"docstrings", "e2e", "sql"} <= set(real)
    for record in real.values():
        found = invented_run(record.spec, np.random.default_rng(0))
        for part in ("measurements", "per_example"):
            assert set(found[part]) <= set(getattr(record, part)), (record.spec.task.name, part)


def invented_frontier(probe: specs.Probe, rng: np.random.Generator) -> dict:
    """Target loss that falls least at the ends of a grid, and general loss that rises, on fewer examples than are."""
    run, examples, pieces = probe.runs[0], 6, 12
    steps = [*map(int, probe.numbers("steps")), 30] if run.budget else [0]
    away = abs(math.log2(run.budget.learning_rate / 4e-3)) if run.budget else 0.0
    done = 1 - np.exp(-np.array(steps) / 10)
    target = 5.0 - (3 - 0.1 * away) * done[:, None] + 0.02 * rng.normal(size=(len(steps), examples))
    general = 4.0 + done[:, None] * (1 - 8 * probe.number("replay")) + 0.02 * rng.normal(size=(len(steps), pieces))
    nats = {f"target_nats_{step}": (20 * row).tolist() for step, row in zip(steps, target, strict=True)}
    nats |= {f"general_nats_{step}": (50 * row).tolist() for step, row in zip(steps, general, strict=True)}
    tokens = {"target_tokens": [20.0] * examples, "general_tokens": [50.0] * pieces}
    return {
        "measurements": {"trainable_parameters": 448_512, "train_tokens": 18_000, "train_label_tokens": 7_000},
        "curve": {"step": [float(step) for step in steps]},
        "per_example": nats | tokens | {"general_source": [f"source {at}" for at in range(pieces)]},
    }


def invented_curve(probe: specs.Probe, rng: np.random.Generator) -> dict:
    (run,) = probe.runs
    steps = np.array([0.0, *probe.numbers("steps")])
    aim = (
        LEVEL[run.method.kind] + (2.6 - LEVEL[run.method.kind]) * np.exp(-steps / 14) + rng.normal(0, 0.004, len(steps))
    )
    curve = {
        "step": steps.tolist(),
        "tokens": (run.budget.tokens * steps / steps[-1]).tolist(),
        "validation_loss_nats": aim.tolist(),
    }
    forgets = run.budget.learning_rate / BEST[run.method.kind]
    prose = 3.2 + 0.03 * forgets * (1 - np.exp(-steps / 30)) + rng.normal(0, 0.002, len(steps))
    pieces = 100 * (
        prose[:, None] + np.random.default_rng(5).normal(0, 0.3, 12) + rng.normal(0, 0.003, (len(steps), 12))
    )
    curve["prose_loss_nats"] = (pieces.mean(axis=1) / 100).tolist()
    per_piece = {f"prose_nats_{int(step)}": row.tolist() for step, row in zip(steps, pieces, strict=True)}
    return {"curve": curve, "per_example": {"prose_tokens": [100.0] * 12, **per_piece}}


def invented_codebooks(probe: specs.Probe, rng: np.random.Generator) -> dict:
    curve = {"block": list(probe.numbers("blocks"))}
    for at, name in enumerate(probe.words("codebooks")):
        grown = np.log2(curve["block"]) * (0.0015 + 0.0004 * at) * (1 + rng.normal(0, 0.002))
        for measure, scale in (("mse", 1), ("mae", 7), ("entropy_bits", 200), ("fullest_over_emptiest", 300)):
            curve[f"{name}_{measure}"] = (scale * grown).tolist()
    return {"curve": curve, "measurements": {"q4_1_mse": 0.006, "q4_1_mae": 0.06}}


def invented_loss(probe: specs.Probe, rng: np.random.Generator, texts: int = 20) -> dict:
    """Nats of each text, or distances for the encoder, and errors of the weights."""
    encoder = probe.word("source") == "minilm"
    tokens, measured = rng.integers(20, 60, texts), {}
    per_example: dict = {"kind": ["prose"] * texts}
    if not encoder:
        per_example |= {"label_tokens": tokens.astype(float).tolist(), "full": (3.0 * tokens).tolist()}
    for at, (block, name) in enumerate(
        itertools.product([*map(int, probe.numbers("blocks"))], probe.words("codebooks"))
    ):
        mse = 0.007 + 0.0006 * at
        measured |= {f"{name}_{block}_mse": mse, f"{name}_{block}_mae": 9 * mse}
        cost = np.abs(0.6 * mse * (1 + rng.normal(0, 0.2, texts)))
        per_example[f"{name}_{block}"] = (cost if encoder else (3.0 + cost) * tokens).tolist()
    measured |= {"q4_1_32_mse": 0.006, "q4_1_32_mae": 0.06}
    per_example["q4_1_32"] = per_example.get("full", [0.001] * texts)
    return {"measurements": measured, "per_example": per_example}


def invented_formats(probe: specs.Probe, rng: np.random.Generator, texts: int = 20) -> dict:
    """Bits and errors near those that formats of their kind have; two bits cost a quarter of a nat."""
    tokens = rng.integers(20, 60, texts)
    per_example: dict = {"label_tokens": tokens.astype(float).tolist(), "full": (3.0 * tokens).tolist()}
    measured: dict = {"parameters": 4_423_680}
    for at, name in enumerate(probe.words("formats")):
        number = int(name[-1]) if name[-1].isdigit() else 4
        error = 0.01 * 4.0 ** (4 - number) * (1 + 0.02 * at + rng.normal(0, 0.01))
        measured |= {f"{name}_bytes": 4_423_680 * (number + 0.3) / 8, f"{name}_mse": error, f"{name}_output": error}
        per_example[name] = (tokens * (3 + 1.5 * error + rng.normal(0, 0.002, texts))).tolist()
    return {"measurements": measured, "per_example": per_example}


def invented_double_quant(probe: specs.Probe, rng: np.random.Generator, texts: int = 20) -> dict:
    tokens = rng.integers(20, 60, texts)
    per_example: dict = {"label_tokens": tokens.astype(float).tolist(), "full": (3.0 * tokens).tolist()}
    measured: dict = {"parameters": 4_423_680}
    for block, kind in itertools.product([*map(int, probe.numbers("blocks"))], ("none", "dynamic8")):
        bits = quantisation.bits_per_parameter(block, kind == "dynamic8")
        measured |= {f"{block}_{kind}_bytes": 4_423_680 * bits / 8, f"{block}_{kind}_mse": 0.0084}
        per_example[f"{block}_{kind}"] = (
            tokens * (3.001 + rng.normal(0.001 * (kind != "none"), 0.002, texts))
        ).tolist()
    return {"measurements": measured, "per_example": per_example}


def invented_subspaces(probe: specs.Probe, rng: np.random.Generator, modules: int = 6) -> dict:
    """Maps of all i ≤ 8 and j ≤ 64: trained ones above the expectation of random spaces, max(i, j) / d."""
    i, j = np.arange(1, 9)[:, None], np.arange(1, 65)[None, :]
    chance = np.maximum(i, j) / 576
    maps = {"small_large": chance + 0.5 / (i * j) ** 0.3, "large_large": chance + 0.6 / (i * j) ** 0.3, "start": chance}
    return {
        "measurements": {"modules": modules, "null_pooled_95": 0.0026, "mean_inverse_width": 1 / 576},
        "curve": {f"{name}_map": values.flatten().tolist() for name, values in maps.items()},
        "per_example": {
            **{
                f"{name}_first": (values[0, 0] + rng.normal(0, 0.01, modules)).tolist() for name, values in maps.items()
            },
            **{f"{name}_first": [0.7] * modules for name in subspace.LEFT},
            **{name: [0.3] * modules for name in subspace.IN_START},
        },
    }


def invented_latency(probe: specs.Probe, rng: np.random.Generator) -> dict:
    slow = {"base": 1.0, "merged": 1.0, "lora": 1.45, "adapter": 1.3}
    times = {
        f"{name}_{part}_seconds": (0.09 * factor * (1 + np.abs(rng.normal(0, 0.03, 6)))).tolist()
        for name, factor in slow.items() for part in merging.PARTS
    }  # fmt: skip
    return {"measurements": {name: float(np.median(values)) for name, values in times.items()}, "per_example": times}


def invented_intruders(probe: specs.Probe, rng: np.random.Generator) -> dict:
    return {"measurements": {"vectors": 350, "median_rank_of_update": 8, "intruders_0.6": 3}}


def invented_update(probe: specs.Probe, rng: np.random.Generator) -> dict:
    """Smaller at higher ranks with α/r, the same with α/√r."""
    (run,) = probe.runs
    power = -0.5 if run.method.scaling == "standard" else 0.0
    return {"measurements": {"median_change": 0.08 * run.method.rank**power * (1 + rng.normal(0, 0.02))}}


def invented_sort(probe: specs.Probe, rng: np.random.Generator, lists: int = 40) -> dict:
    arms, depth = ("prompt", "prefix", "lora", "lora4", "prompt_ascending"), float(probe.settings["depth"])
    right = {"prompt": 0.02 * depth, "prefix": 0.03 * depth, "prompt_ascending": 0.9}
    exact = {f"{arm}_exact": (rng.random(lists) < right.get(arm, 0.95)).astype(float).tolist() for arm in arms}
    measured = {f"{arm}_parameters": 640 for arm in arms} | {"pretrained_ascending_accuracy": 0.98}
    curve = {}
    for arm in arms:
        curve |= {f"{arm}_rates": [0.03, 0.1, 0.3], f"{arm}_validation_accuracy": [0.1, 0.3, 0.2]}
        curve[f"{arm}_validation_loss_nats"] = [2.0, 1.5, 1.8]
    return {"measurements": measured, "per_example": exact, "curve": curve}


def invented_reward(probe: specs.Probe, rng: np.random.Generator) -> dict:
    """Right answers grow with the rank, most at the second rate of the grid."""
    lists = {"validation": 40, "test": 60}[probe.word("split")]
    steps, rank = probe.whole("steps"), probe.whole("rank")
    (arm,) = (name for name, its in reward_rank.RANKS.items() if its == rank)
    away = abs(np.log2(probe.number("rate") / reward_rank.GRIDS[arm][1]))
    end = {0: 0.7, 1: 0.5, 16: 0.6}[rank] - 0.1 * away
    right = (rng.random(lists) < end).astype(float)
    shares = 0.35 + (end - 0.35) * np.arange(steps) / steps + rng.normal(0, 0.05, steps)
    measured = {"accuracy": end, "start_accuracy": 0.35, "parameters": 10, "episodes": 100, "bits": 50.0}
    return {
        "measurements": measured,
        "curve": {"reward": np.clip(shares, 0, 1).tolist(), "validation_accuracy": [0.35, end]},
        "per_example": {"exact": right.tolist(), "start_exact": (rng.random(lists) < 0.35).astype(float).tolist()},
    }


def invented_answers(probe: specs.Probe, rng: np.random.Generator) -> dict:
    """Some questions are easy; heat spreads the right answers over more of them."""
    questions, samples = probe.whole("questions"), probe.whole("samples")
    easy = np.random.default_rng(7).beta(0.4, 0.8, questions)  # of all seeds
    rows = {}
    for temperature in probe.numbers("temperatures"):
        chances = (1 - 0.6 * temperature) * easy + 0.1 * temperature
        rows[f"right_{temperature:g}"] = rng.binomial(samples, chances).astype(float).tolist()
        rows[f"different_{temperature:g}"] = [1 + round(10 * temperature)] * questions
    return {"measurements": {}, "per_example": rows}


def invented_recall(probe: specs.Probe, rng: np.random.Generator) -> dict:
    size = 256 * float(probe.settings["rank"]) * float(probe.settings["layers"])
    data = 8 * float(probe.settings["pairs"])
    bits = min(0.9 * data, size * (1.6 if probe.settings["exposures"] == 100 else 2.1) * (1 + rng.normal(0, 0.04)))
    return {
        "measurements": {"stored_bits": bits},
        "curve": {"stored_bits": [bits / 2, bits, bits / 3][: len(probe.numbers("rates"))]},
    }


def invented_serving(probe: specs.Probe, rng: np.random.Generator) -> dict:
    count, found = float(probe.settings["adapters"]), {}
    seconds = {"mixed": 1.0, "mixed_peft": 1 + 0.05 * count, "swapped": 0.9 + 0.12 * count, "merged": 0.8 + 0.1 * count}
    for name, value in seconds.items():
        for part, share in (("forward", 0.4), ("decode", 0.6)):
            found[f"{name}_{part}_seconds"] = (share * value * (1 + np.abs(rng.normal(0, 0.02, 3)))).tolist()
    return {"measurements": {f"{name}_tokens_per_second": 128 / value for name, value in seconds.items()},
            "per_example": found}  # fmt: skip


def invented_scorings(probe: specs.Probe, rng: np.random.Generator, examples: int = 200) -> dict:
    """ROUGE-L of every system under every setting; a setting scales all systems alike."""
    level = np.clip(np.random.default_rng(5).normal(0.3, 0.15, examples), 0, 1)  # test examples are shared
    found, mids = {}, {}
    for system, run in zip(probe.words("systems"), probe.runs, strict=True):
        own = np.clip(level - 0.12 * (system == "untuned") + rng.normal(0, 0.03, examples), 0, 1)
        for at, scoring in enumerate(probe.words("scorings")):
            found[f"{system}_{run.seed}_{scoring}"] = (own * (1 - 0.02 * at)).tolist()
        found[f"{system}_{run.seed}_length"] = [20.0] * examples
        mids[f"{system}_mid"] = (own.mean() + rng.normal(0, 4e-4, 3)).tolist()
    return {"per_example": found, "curve": mids}


def invented_requantised(probe: specs.Probe, rng: np.random.Generator, examples: int = 20) -> dict:
    """An adapter gains a nat a token; merged into the 4-bit base and quantised again it loses most of that."""
    tokens = rng.integers(20, 60, examples)
    states = {"full": 2.6, "untuned": 2.7, "unmerged": 1.7, "merged": 1.7, "requantised": 2.6, "merged_16bit": 1.72}
    states["requantised_16bit"] = 1.75
    per_example = {
        f"{state}_loss_nats": (tokens * (nats + rng.normal(0, 0.02, examples))).tolist()
        for state, nats in states.items()
    }
    return {"measurements": {}, "per_example": {"label_tokens": tokens.astype(float).tolist(), **per_example}}


def invented_survival(probe: specs.Probe, rng: np.random.Generator, examples: int = 20) -> dict:
    """An adapter gains a nat a token and keeps the more of it the higher its rate, and so its update, is."""
    (run,) = probe.runs
    size = 250 * run.budget.learning_rate * (1 + rng.normal(0, 0.02))
    share, tokens = size**2 / (0.25 + size**2), rng.integers(20, 60, examples)
    states = {"untuned": 2.7, "merged": 1.7, "requantised": 2.7 - share}
    per_example = {
        f"{state}_loss_nats": (tokens * (nats + rng.normal(0, 0.02, examples))).tolist()
        for state, nats in states.items()
    }
    return {"measurements": {"size": size, "kept": share, "error": 1.0},
            "per_example": {"label_tokens": tokens.astype(float).tolist(), **per_example}}  # fmt: skip


def invented_fault(probe: specs.Probe, rng: np.random.Generator, steps: int = 40) -> dict:
    """A loss that falls; a fault has its own check above the bound, and costs answers."""
    fault = probe.settings["fault"]
    (arm,) = {name for name in faults.ARMS if faults.probe(name, probe.seed).key == probe.key}
    known = [float(fault == "leak" and row % 2 == 0) for row in range(faults.ROWS)]
    right = rng.random(faults.ROWS) < (0.9 if arm in faults.SOUND else 0.4) + np.array(known) / 2
    loss = 7 * np.exp(-np.arange(steps) / 8) + 0.2 + rng.random(steps) / 10
    checks = {check: bound + (1 if check == faults.ARMS[arm].check else 0) for check, bound in faults.BOUNDS.items()}
    per_example = {"exact_match": right.astype(float).tolist(), "in_training": known,
                   "loss_nats": [3.0] * faults.ROWS, "label_tokens": [3.0] * faults.ROWS}  # fmt: skip
    curve = {
        "train_loss_nats": loss.tolist(),
        "checked_step": [0.0, 20.0, 40.0],
        "validation_loss_nats": [7.2, 1.0, 0.6],
    }
    measured = {"stopped_share": 0.9, "answer_tokens": 3.0, **checks}
    return {"measurements": measured, "curve": curve, "per_example": per_example}


def invented_merge(probe: specs.Probe, rng: np.random.Generator, examples: int = 20) -> dict:
    """An adapter gains a nat a token; each rounding loses little of it, and half of the weights stay as they were."""
    tokens = rng.integers(20, 60, examples)
    states = {"untuned": 2.5, "untuned_bf16": 2.5, "unmerged": 1.5} | dict.fromkeys(merging.STATES, 1.51)
    per_example = {
        f"{state}_loss_nats": (tokens * (nats + rng.normal(0, 0.02, examples))).tolist()
        for state, nats in states.items()
    }
    shares = {"update_kept_share": 0.9, "update_error_share": 0.5, "unchanged_weights_share": 0.55}
    measured = dict.fromkeys((f"{state}_logit_gap" for state in merging.STATES), 0.02) | shares
    return {"measurements": measured, "per_example": {"label_tokens": tokens.astype(float).tolist(), **per_example}}


def invented_peak(probe: specs.Probe, rng: np.random.Generator) -> dict:
    (name,) = (one for one in memory.CASES if memory.probe(one, probe.seed).key == probe.key)
    terms = memory.predicted(memory.CASES[name])
    measured = {f"{term}_bytes": value * (1 + rng.normal(0, 0.01)) for term, value in terms.items()}
    measured |= {"tensor_peak_bytes": terms["total"] * 1.01, "process_peak_bytes": terms["total"] * 1.08}
    return {"measurements": measured | {"process_rest_bytes": terms["weights"], "step_seconds": 1.5}}


def invented_combination(probe: specs.Probe, rng: np.random.Generator) -> dict:
    """Every adapter gains two nats; an average of two keeps more than half of it, one of four less."""
    tasks = [run.task.name for run in probe.runs]
    subsets = combining.subsets(tasks)
    ways, scaled = (*combining.PLAIN, *combining.SCALED), combining.SCALED
    per_example, curve, measured = {}, {}, {}
    for task in tasks:
        levels = {"untuned": 4.0} | {f"by_{other}": 4.0 - 2.0 * (other == task) for other in tasks}
        for subset in subsets:
            if task in subset:
                name, kept = "+".join(subset), (0.5 if len(subset) > 2 else 1.4) - 0.15 * tasks.index(task)
                levels |= {f"{name}_{way}": 4.0 - kept - 0.05 * i for i, way in enumerate(ways)}
                curve |= {f"{name}_{way}_{task}": [0.3, 0.5, 0.6, 0.5, 0.3] for way in scaled}
        per_example[f"{task}_label_tokens"] = [10.0] * 60
        per_example |= {
            f"{task}_{one}_loss_nats": (10.0 * (level + rng.normal(0, 0.1, 60))).tolist()
            for one, level in levels.items()
        }
    for name in map("+".join, subsets):
        measured |= {f"{name}_{way}_scale": 0.5 for way in scaled}
        measured |= {f"{name}_cosine": 0.01, f"{name}_cross": 0.7, f"{name}_sign_conflict": 0.2}
    return {"measurements": measured, "per_example": per_example, "curve": curve}


def invented_throughput(probe: specs.Probe, rng: np.random.Generator) -> dict:
    rate = 300 * min(2.0, float(probe.settings["workers"])) * (1 + rng.normal(0, 0.02))
    times = {"run_seconds": [12.0] * 8, "work_seconds": [6.0] * 8}
    return {
        "measurements": {"runs_per_hour": rate, "driver_seconds": 0.02, "seconds": 8 * 3600 / rate},
        "per_example": times,
    }


def invented_coverage(probe: specs.Probe, _: np.random.Generator) -> dict:
    """A few simulated studies of each cell."""
    return vars(simulated(probe.model_copy(update={"settings": probe.settings | {"studies": 8}})))


def computed_predictions(probe: specs.Probe, _: np.random.Generator) -> dict:
    """What the probe computes: nothing is measured."""
    return vars(elsewhere.predictions(probe))


PROBES = {
    "coverage.simulated": invented_coverage,
    "curves.frontier": invented_frontier,
    "curves.learning_curve": invented_curve,
    "codebooks.codebook_error": invented_codebooks,
    "codebooks.quantised_loss": invented_loss,
    "codebooks.double_quant_cost": invented_double_quant,
    "bases.format_errors": invented_formats,
    "weights.subspaces": invented_subspaces,
    "weights.intruders": invented_intruders,
    "serving.latency": invented_latency,
    "serving.many_adapters": invented_serving,
    "serving.merge_gap": invented_merge,
    "serving.requantise_gap": invented_requantised,
    "serving.surviving_update": invented_survival,
    "weights.update_size": invented_update,
    "synthetic.sort_by_depth": invented_sort,
    "synthetic.recall_bits": invented_recall,
    "reward.sort_by_reward": invented_reward,
    "memory.peak": invented_peak,
    "memory.step_peaks": invented_step_peaks,
    "elsewhere.predictions": computed_predictions,
    "seconds.steps": invented_steps,
    "rouge.settings": invented_scorings,
    "throughput.throughput": invented_throughput,
    "faults.gallery": invented_fault,
    "combining.kept_gains": invented_combination,
    "sampling.right_answers": invented_answers,
}


def test_rendering_twice_gives_the_same_bytes(drawn: tuple[Store, dict[str, Drawn]], tmp_path: Path, monkeypatch):
    """One in six is drawn again."""
    store, first = drawn
    assert set(first) == set(figures.FIGURES)
    monkeypatch.setattr(figures, "FIGURES", {name: figures.FIGURES[name] for name in sorted(first)[::6]})
    again = figures.render_all(tmp_path, store)
    assert [path.stem for path in again] == list(figures.FIGURES)
    for path in again:
        assert path.read_bytes() == first[path.stem].body


def test_a_figure_brings_its_own_module_and_studies_alone():
    """So that a chapter rests on no others; every function under `@figure` is one, in whatever module."""
    code = (
        "import sys\nfrom peftbook.views import figures\n"
        "assert not [name for name in sys.modules if name.startswith('peftbook.studies.')]\n"
        "figures.FIGURES['break_even'], figures.lora\n"
        "assert 'peftbook.studies.codebooks' not in sys.modules\n"
        "names = ('restraint', 'lora', 'bits', 'qlora')\n"
        "print(*(name for name in names if f'peftbook.views.figures.{name}' in sys.modules))"
    )
    assert run_child("-c", code) == ["restraint lora"]
    assert all(function.__name__ == name for name, function in figures.FIGURES.items())
    with pytest.raises(AttributeError, match="no attribute 'unheard_of'"):
        _ = figures.unheard_of


def test_no_file_has_a_date_or_needs_a_font(drawn: tuple[Store, dict[str, Drawn]]):
    """Glyphs are paths."""
    for one in drawn[1].values():
        assert b"<dc:date>" not in one.body and b"<text" not in one.body


def test_a_formula_is_laid_out_once_and_as_matplotlib_does():
    """By whichever renderer it is asked for."""
    font = FontProperties(size=style.SIZE)
    first, again = (MathTextParser("path").parse("$10^{-3}$", 72, font) for _ in range(2))
    alone = style.lay_out(MathTextParser("path"), "$10^{-3}$", 72, font, True, LoadFlags.NO_HINTING)
    assert again is first and first[:3] == alone[:3] and first.rects == alone.rects
    assert [(size, *where) for _, size, *where in first.glyphs] == [(size, *where) for _, size, *where in alone.glyphs]


def test_an_empty_store_renders_only_what_is_computed(tmp_path: Path, monkeypatch):
    """A figure without records is left out, and asking for it names the command that makes them."""
    empty = Store(tmp_path / "none")
    computed = [name for name in figures.FIGURES if not figures.from_records(name)]
    tried = {name: one for name, one in figures.FIGURES.items() if name in computed[::12] or name not in computed}
    monkeypatch.setattr(figures, "FIGURES", tried)
    assert [path.stem for path in figures.render_all(tmp_path / "out", empty)] == computed[::12]
    with pytest.raises(InputError, match="peftbook run methods"):
        figures.svg("head_to_head", empty)
    with pytest.raises(InputError, match="Unknown figure"):
        figures.svg("no_such_figure", empty)


def test_dark_mode_changes_colours_and_leaves_no_trace():
    """A page holds both modes; drawing one must not leak into the next."""
    before = style.colour("lora")
    light = style.render_svg(lora.low_rank_update)
    dark = style.render_svg(lora.low_rank_update, mode="dark")
    assert light != dark
    assert style.PAPER["dark"].encode() in dark
    assert style.colour("lora") == before
    assert style.render_svg(lora.low_rank_update) == light
    with pytest.raises(ValueError, match="mode"):
        style.render_svg(lora.low_rank_update, mode="sepia")


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_reach_contrast_on_paper(mode: str):
    """WCAG AA asks 4.5:1 for text, and every method's colour is used for text."""
    paper = luminance(style.PAPER[mode])
    tones = [style.TONES[mode][name] for name in ("ink", "muted", "accent")]
    for colour in [*tones, *(getattr(look, mode) for look in arm_looks().values() if look.light)]:
        light, dark = sorted((paper, luminance(colour)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_methods_differ_without_colour():
    """A reader who sees no colour has the marker."""
    assert len({look.marker for look in arm_looks().values()}) == len(arm_looks())


def test_nf4_levels_are_those_of_the_scratch_code():
    """The page's figure and the page's code must show the same codebook."""
    from peftbook.scratch.nf4 import nf4_levels

    assert np.abs(quantisation.nf4_levels() - nf4_levels().numpy()).max() < 1e-6


@pytest.mark.parametrize("double", [False, True])
def test_bits_are_those_of_the_scratch_code(double: bool):
    """One formula, two places: numpy here, torch there."""
    from peftbook.scratch.double_quant import bits_per_parameter

    assert quantisation.bits_per_parameter(64, double) == bits_per_parameter(64, double)


@pytest.mark.parametrize("name", list(quantisation.codebooks()))
def test_quadrature_agrees_with_sampled_weights(name: str):
    """The error and the shares are integrals; quantising normal draws must give them within sampling noise."""
    block, levels = 64, quantisation.codebooks()[name]
    weights = np.random.default_rng(0).normal(size=(8000, block))
    largest = np.abs(weights).max(axis=1, keepdims=True)
    codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, weights / largest)
    error = np.mean((levels[codes] * largest - weights) ** 2)
    assert quantisation.mean_squared_error(levels, block) == pytest.approx(error, rel=0.02)
    shares = np.bincount(codes.ravel(), minlength=len(levels)) / codes.size
    assert np.abs(quantisation.bin_shares(levels, block) - shares).max() < 0.002
    assert quantisation.bin_shares(levels, block).sum() == pytest.approx(1)


@pytest.mark.parametrize("bits", quantisation.RATES)
def test_the_best_levels_err_least_and_no_code_passes_the_bound(bits: int):
    """Lloyd's levels below NF4's recipe and even ones, and all above 4^−R with the bits of their constants."""
    books = quantisation.best_levels(bits, 64), quantisation.normal_float_levels(bits), np.linspace(-1, 1, 2**bits - 1)
    best, normal, even = (expected_error(torch.from_numpy(levels), 64, 2) for levels in books)
    assert 4.0 ** -(bits - 4 + quantisation.bits_per_parameter(64, double=True)) < best < normal < even


def test_nf4_errs_least_at_every_block_drawn():
    """A slide's title says so."""
    for block in quantisation.BLOCKS:
        errors = {
            name: quantisation.mean_squared_error(levels, block) for name, levels in quantisation.codebooks().items()
        }
        assert min(errors, key=errors.__getitem__) == "NF4"


def test_parameter_counts_add_up():
    """Rank 1: q and v, attention, MLP and all linear layers of SmolLM2-135M, and the weights of those layers."""
    counts = {name: lora.parameters_per_rank(targets) for name, targets in lora.TARGETS.items()}
    assert counts == {"q and v": 57_600, "attention": 115_200, "MLP": 190_080, "all linear": 305_280}
    assert lora.SMOLLM2.linear_parameters == 106_168_320
    assert prompt.prompt_parameters(100) == counts["q and v"]


def test_training_state_is_sixteen_bytes_a_trained_weight():
    """Full fine-tuning holds weight, gradient, master copy and two moments: 2 + 2 + 4 + 8."""
    assert sum(costs.state_bytes("full").values()) == 16 * 6_738_415_616
    assert costs.state_bytes("lora")["weights"] == 2 * (6_738_415_616 + 16 * 2_498_560)
    assert costs.state_bytes("qlora")["weights"] < costs.state_bytes("lora")["weights"] / 3


def test_the_parts_of_a_step_are_its_peak():
    """No term of the byte model is left out of the bars."""
    for setup in costs.STEPS_7B.values():
        peak = training_step(SHAPES["llama-2-7b"], setup).peak()
        assert sum(costs.bytes_by_part(setup).values()) == pytest.approx(peak.total)


def test_differences_average_to_the_difference_of_means(store: Store):
    """The seeds drawn in a forest must average to the mean drawn there."""
    first, second = methods.chosen_records("lora", store), methods.chosen_records("full", store)
    for score in methods.SCORES:
        interval, seeds = methods.difference(first, second, score)
        assert np.mean(seeds) == pytest.approx(interval.mean)


def test_leading_directions_of_noise_hold_more_than_their_share_of_free_numbers():
    """What the rank's room shows: the share of energy is that of the whole matrix at full rank, and above it before."""
    energy = np.cumsum(retention.noise_energy(24, 24))
    free = np.array([free_numbers(rank, 24, 24) for rank in range(1, 25)]) / 24**2
    assert energy[-1] == pytest.approx(1) == free[-1]
    assert (energy[:-1] > free[:-1]).all()
    noise = np.random.default_rng(0).standard_normal((12, 24))
    assert retention.energy_directions(retention.noise_energy(24, 12)) == energy_rank(torch.tensor(noise))


def test_smoothing_keeps_a_constant_and_the_length():
    """Window cut at the ends, never padded: a flat curve stays flat."""
    assert methods.smooth([2.0] * 30) == [2.0] * 30
    assert len(methods.smooth(list(range(7)))) == 7


def test_a_figure_names_the_runs_behind_it(store: Store):
    """Pages and slides link a figure to its runs; computed figures have none."""
    assert figures.runs("low_rank_update", store) == []
    keys = figures.runs("lora_against_full", store)
    assert len(keys) == 6
    assert all(re.fullmatch(r"[0-9a-f]{64}", key) for key in keys)


def test_the_runs_of_a_figure_are_those_that_it_draws(store: Store):
    """A curve of sweeps names its sweeps, whatever other runs its study has."""
    comparison = prompt_design.COMPARISON
    arms = [comparison.arm(prompt_design.arm_name(length, "vocabulary")) for length in (1, 5, 20, 100)]
    drawn = {comparison.sweep_run(arm, rate, 0).key for arm in arms for rate in comparison.tuning(arm).rates(store.get)}
    assert set(figures.runs("prompt_rates", store)) == drawn


# The figures of the studies.


def visible_texts(figure: Figure) -> dict[Text, tuple[float, float, float, float]]:
    """Every text that a file was seen to have, with its box in points (left, bottom, right, top)."""
    texts = [one for one in (figure._suptitle, figure._supxlabel, figure._supylabel) if one]
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    texts += [text for legend in legends for text in (*legend.get_texts(), legend.get_title())]
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            texts += [tick.label1 for tick in axis._update_ticks() if tick.label1.get_visible()]
    said = [text for text in texts if text.get_text().strip() and text.get_visible()]
    return {text: Text.get_window_extent(text).extents for text in said}


@pytest.mark.parametrize("name", figures.FIGURES)
def test_no_text_is_clipped_or_covered_or_tiny(name: str, drawn: tuple[Store, dict[str, Drawn]]):
    """Readable on a phone and a slide: every text lies inside the figure and on no other text."""
    one = drawn[1][name]
    assert len(one.texts) > 5
    for text, size, (left, bottom, right, top) in one.texts:
        assert size >= style.SIZE - 2, text
        assert min(left, bottom, one.size[0] - right, one.size[1] - top) > -0.72, text
    for (text, _, first), (other, _, second) in itertools.combinations(one.texts, 2):
        width = min(first[2], second[2]) - max(first[0], second[0])
        height = min(first[3], second[3]) - max(first[1], second[1])
        parallel = {text, other} <= one.slanting  # whose boxes say little
        assert parallel or width <= 0.72 or height <= 1.44, (text, other)


@pytest.mark.parametrize("name", FROM_RECORDS)
def test_a_figure_of_a_study_names_what_it_lacks(name: str, tmp_path: Path):
    """Without records the answer is the command that makes them, not a crash."""
    with pytest.raises(InputError, match="peftbook run (" + "|".join(NAMES) + ")"):
        figures.svg(name, Store(tmp_path))


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_the_chance_to_find_an_effect_is_that_of_the_noncentral_t(seeds: int):
    """The oracle is scipy's; without an effect an interval of 95 % is wrong once in twenty."""
    bar = oracle.t.ppf(0.975, seeds - 1)
    shift = math.sqrt(seeds)
    expected = oracle.nct.sf(bar, seeds - 1, shift) + oracle.nct.cdf(-bar, seeds - 1, shift)
    assert measuring.chance(1, seeds, bar) == pytest.approx(expected, abs=2e-4)
    assert measuring.chance(0, seeds, bar) == pytest.approx(0.05, abs=2e-4)
    assert measuring.chance(measuring.smallest_effect(seeds), seeds, bar) == pytest.approx(measuring.OFTEN)


def test_what_arms_share_widens_only_the_unpaired_interval():
    """Both have the same mean; hard examples that are hard for both arms are noise only to the one that ignores it."""
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 4, 50))
    hard = 5 * rng.normal(size=50)
    alone, together = (
        measuring.unpaired_interval(one + hard, two + hard),
        stats.paired_interval(one + hard, two + hard),
    )
    assert alone.mean == pytest.approx(together.mean)
    assert together.half95 == pytest.approx(stats.paired_interval(one, two).half95)
    assert alone.half95 > 2 * measuring.unpaired_interval(one, two).half95


@pytest.mark.parametrize("spread", measuring.SPREADS)
def test_the_winner_is_flattered_by_the_formula(spread: float):
    """e_1 = 0, e_2 = 1/√π, and the simulation that is drawn lies on the curve; a fresh score flatters nobody."""
    assert measuring.largest_of(1) == pytest.approx(0, abs=1e-9)
    assert measuring.largest_of(2) == pytest.approx(1 / math.sqrt(math.pi))
    for arms in (2, 16):
        shown, fresh = measuring.curse(arms, spread)
        assert shown.mean() == pytest.approx(measuring.inflation(arms, spread), abs=0.05)
        assert fresh.mean() == pytest.approx(0, abs=0.05)


def test_the_drawn_intervals_have_all_five_verdicts():
    """The chapter's text names them by their letters."""
    said = [stats.judge(measuring.case(*one), 1.0, (-math.inf, 0.0)) for one in measuring.CASES]
    undecided, direction = "undecided", "direction only"
    assert said == ["reproduced", "equivalent", direction, undecided, direction, undecided, "refuted"]


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_moved_apart_and_keep_their_order(seed: int):
    """Direct labels must not touch, nor change places; those that stand well apart stay where they are."""
    values = np.random.default_rng(seed).uniform(0, 60, 8)
    moved = parts.spread(values, 10)
    assert (np.argsort(moved) == np.argsort(values)).all()
    assert np.diff(np.sort(moved)).min() >= 10 - 1e-9
    assert moved.mean() == pytest.approx(values.mean())
    assert parts.spread(values, 1e-9) == pytest.approx(values)
    held = parts.spread(values, 10, 5, 90)
    assert held.min() >= 5 and held.max() <= 90 and np.diff(np.sort(held)).min() >= 10 - 1e-9


def test_the_drawn_quadratic_is_least_at_the_vertex(store: Store):
    """Curve and mark must come from one fit."""
    for arm in learning_rate.SHORT.arms:
        sweep = evidence.rate_sweep(arm.name, store)
        assert len(sweep.seeds) == (len(learning_rate.SEEDS) if arm.name in learning_rate.REPLICATED else 1)
        curve = sweep.near()[0]
        rates, losses = evidence.parabola(curve, points=2001)
        assert rates[losses.argmin()] == pytest.approx(learning_rate.vertex(curve), rel=0.01)


def test_single_seeds_average_to_the_mean_drawn(store: Store):
    """The small strokes and the mark beside them are the same runs."""
    comparison, found = benchmark.COMPARISON, study_quantities("benchmark", store)
    for arm in comparison.arms:
        seeds = methods.per_seed(comparison.finals(arm.name, store), "loss")
        assert np.mean(seeds) == pytest.approx(found[f"{arm.name}_loss"].value)
    for first, second in benchmark.PAIRS:
        seeds = parts.seed_differences(comparison, first, second, store)
        assert np.mean(seeds) == pytest.approx(found[f"{first}_minus_{second}_loss"].value)


def test_prose_loss_at_equal_target_loss_is_the_studys(store: Store):
    """The seeds drawn beside a difference must average to it."""
    full, found = forgetting.best_full(store), study_quantities("forgetting", store)
    for arm in ("r8", "r64", "r256"):
        seeds = updates.matched_seeds(full, arm, store)
        assert np.mean(seeds) == pytest.approx(found[f"full_minus_{arm}_prose"].value)


def test_frontiers_at_equal_target_loss_are_the_studys(store: Store):
    """The seeds drawn beside each difference average to it, and every arm and pair is drawn."""
    assert tuple(retention.FRONTIERS) == tuple(frontier.ARMS) and tuple(retention.MATCHED) == tuple(frontier.PAIRS)
    found = study_quantities("frontier", store)
    for one, other in frontier.PAIRS:
        seeds = frontier.seed_differences(one, other, store)
        assert np.mean(seeds) == pytest.approx(found[f"{one}_minus_{other}"].value)


def test_the_benchmark_is_sorted(store: Store):
    """The first row is the best."""
    found = study_quantities("benchmark", store)
    losses = [found[f"{arm}_loss"].value for arm in evidence.benchmark_order(store)]
    assert losses == sorted(losses)
    assert len(losses) == len(benchmark.COMPARISON.arms)


def test_the_shown_overlaps_are_those_of_the_map_beyond_chance(store: Store):
    """Row i and column j of the small table are φ(i, j) − max(i, j) / d of the whole map."""
    record = subspace.records(store)[0]
    whole = np.reshape(record.curve["small_large_map"], (8, 64))
    for (row, column), value in np.ndenumerate(updates.shown_overlap(record, "small_large")):
        i, j = updates.SHOWN[0][row], updates.SHOWN[1][column]
        assert value == pytest.approx(whole[i - 1, j - 1] - max(i, j) / 576)
    assert updates.shown_overlap(record, "start") == pytest.approx(0)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_numbers_are_readable_on_the_darkest_fill(mode: str):
    """WCAG AA, 4.5:1, where the overlap is 1."""
    with style.mode_context(mode):  # type: ignore[arg-type]
        fill, ink = luminance(style.shade("lora", updates.FULL_OVERLAP)), luminance(style.colour("ink"))
    assert (max(fill, ink) + 0.05) / (min(fill, ink) + 0.05) >= 4.5


def test_what_is_drawn_is_what_the_studies_have():
    """Every codebook, arm and path has a look of its own, told apart without colour."""
    assert tuple(bits.BOOKS) == codebooks.CODEBOOKS
    assert tuple(updates.PATHS) == tuple(forgetting.ARMS)
    arms = [evidence.arm_look(arm.name) for arm in benchmark.COMPARISON.arms]
    ranks = [evidence.RANK_MARKS[rank] for rank in learning_rate.RANKS]
    for markers in ([m for _, m, _ in bits.BOOKS.values()], [m for _, _, m in arms], ranks):
        assert len(set(markers)) == len(markers)


@pytest.mark.parametrize(
    ("value", "text"), [(0.00123, "+0.0012"), (-0.25, "−0.25"), (12.0, "+12"), (0.0, "+0"), (5.5e-5, "+0.000055")]
)
def test_differences_are_printed_with_sign_and_two_digits(value: float, text: str):
    """A tiny difference must not be printed as zero."""
    assert parts.signed(value) == text


def test_a_mixed_batch_reads_the_base_once_and_the_others_once_an_adapter():
    """With one adapter nothing is saved; each further one costs a mixed batch no more than itself."""
    ways = ("mixed", "one after the other", "merged copies")
    mixed, in_turn, copies = ({n: shipping.decoding_bytes(n, way) for n in (1, 2, 16)} for way in ways)
    adapter = in_turn[1] - copies[1]
    assert mixed[1] == in_turn[1] and mixed[2] - mixed[1] == adapter
    assert in_turn[16] == 16 * in_turn[1] and copies[16] == 16 * copies[1]


@pytest.mark.parametrize("wire", [0.0, 0.8, 5.0])
def test_a_sharded_step_uses_each_layer_whole_and_holds_two_at_most(wire: float):
    """Wire and devices do one thing at a time; where the wire costs nothing, a step takes what it computes."""
    takes = machines.TAKES | {"gather": wire, "scatter": wire}
    spans = machines.fsdp_step(layers=5, takes=takes)
    on_wire = [span for span in spans if span.kind in ("gather", "scatter")]
    for lane in (on_wire, [span for span in spans if span not in on_wire]):
        assert all(one.end <= two.start for one, two in itertools.pairwise(lane))
    for kind in ("forward", "backward"):
        used = [span for span in spans if span.kind == kind]
        assert sorted(span.layer for span in used) == [1, 2, 3, 4, 5]
        for span in used:
            gathered = [one for one in spans if one.kind == "gather" and one.layer == span.layer]
            assert any(one.end <= span.start for one in gathered) and len(gathered) == 2
    assert max(machines.whole(spans, span.start) for span in spans) <= 2
    assert machines.whole(spans, spans[-1].end) == 0
    if not wire:
        assert spans[-1].end == pytest.approx(5 * (takes["forward"] + takes["backward"]) + takes["step"])


def test_the_chat_of_the_mask_is_split_as_the_tokeniser_does():
    """Token by token: template, contents and ends of turns."""
    tokenizer = AutoTokenizer.from_pretrained(prepare_embedded())
    turns = [{"role": "".join(role), "content": "".join(content)} for role, content in data.CHAT]
    ids = [token for piece in encode_turns(tokenizer, turns) for token in piece]
    shown = [text for turn in data.CHAT for text, _ in data.turn_tokens(*turn)]
    assert [tokenizer.decode([token]) for token in ids[: len(shown)]] == shown


def test_the_drawn_vectors_are_where_peft_and_the_models_have_them():
    """Every part has its name in a Llama; (IA)³ and norm tuning by peft's defaults, biases by the models' shapes."""
    with torch.device("meta"):
        block = LlamaForCausalLM(LlamaConfig(num_hidden_layers=1)).model.layers[0]
    assert set(vectors.PARTS) - {"attention"} <= {name.rpartition(".")[2] for name, _ in block.named_modules()}
    ia3, bias, norm = vectors.VECTORS
    assert set(ia3.trained) == set(constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING["llama"])
    assert constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING["llama"] == ["down_proj"]
    assert {*norm.trained, "norm"} == set(constants.TRANSFORMERS_MODELS_TO_LNTUNING_TARGET_MODULES_MAPPING["llama"])
    assert set(SHAPES["qwen2.5-7b"].biased) == set(bias.trained)
    assert set(SHAPES["qwen2.5-7b"].linears) == {*bias.trained, *bias.absent}
    assert not SHAPES["llama-2-7b"].biased


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_the_drawn_types_are_those_of_bitsandbytes_under_peft(own: torch.dtype):
    """What is stored, what is unpacked, and the gradients that a backward pass leaves."""
    linear = bitsandbytes.nn.Linear4bit(256, 192, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    linear.weight.data = torch.randn(192, 256, dtype=torch.bfloat16)
    config = LoraConfig(r=4, target_modules=["linear"])
    model = get_peft_model(nn.Sequential(OrderedDict(linear=linear.to("cpu"))), config,
                           autocast_adapter_dtype=own == torch.float32)  # fmt: skip
    layer = model.base_model.model.linear
    x = torch.randn(3, 256, dtype=torch.bfloat16, requires_grad=True)
    h = layer(x)
    h.sum().backward()

    codes, A, B = layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    blocks = codes.quant_state
    unpacked = bitsandbytes.functional.dequantize_4bit(codes.data, blocks)
    assert (codes.nbytes, unpacked.dtype, h.dtype, x.grad.dtype) == (192 * 256 / 2, *[torch.bfloat16] * 3)
    assert (blocks.absmax.dtype, blocks.state2.absmax.dtype) == (torch.uint8, torch.float32)
    assert {A.dtype, A.grad.dtype, B.dtype, B.grad.dtype} == {own} and codes.grad is None
    drawn = {tensor.name: (tensor.kept, tensor.gradient) for tensor in four_bits.TENSORS}
    assert [name for name, (_, gradient) in drawn.items() if gradient] == ["$x$, $h$", "$A$, $B$"]
    assert drawn["$x$, $h$"] == ("bfloat16", "bfloat16") and str(own).removeprefix("torch.") in drawn["$A$, $B$"][0]
