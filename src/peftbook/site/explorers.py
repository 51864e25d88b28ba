"""Interactive figures: a chapter's figure with the numbers that its page lets the reader change.

explore("memory", figures.fit.memory_by_length, name="fit-explorer", alt="…", caption="…")

What is shown without scripts, in print and in a downloaded notebook is the figure itself. The script `explorers.js`
reads the numbers beside it and puts controls and a drawing in its place; it fetches nothing.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from peftbook.figures.costs import PARTS
from peftbook.memory import SHAPES, Setup, training_step
from peftbook.memory.step import Step, as_list
from peftbook.scratch.codebooks import codebook
from peftbook.site.display import Shown, show

ROWS = (1, 2, 4, 8, 16)
TOKENS = tuple(range(64, 4097, 64))
RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MODELS = {"smollm2-135m": "SmolLM2-135M", "llama-2-7b": "Llama-2-7B", "llama-2-70b": "Llama-2-70B"}
METHODS = {"Full": Setup(method="full"), "LoRA": Setup(), "QLoRA": Setup(quantised="nf4")}
CODEBOOKS = {"NF4": "nf4", "FP4 of bitsandbytes": "fp4", "INT4": "int4"}
BLOCK = 32


def explore(
    kind: str, figure: Callable[..., Any], *args: Any, name: str, alt: str, caption: str, **options: Any
) -> Shown:
    """The figure as `show` has it, with the numbers of an explorer: memory, quantiser or rank."""
    shown = show(figure, *args, name=name, alt=alt, caption=caption, **options)
    numbers = json.dumps(KINDS[kind](), separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")
    html = shown.html.replace("<figure ", f'<figure data-explorer="{kind}" ', 1)
    html = html.replace("<figcaption>", f'<script type="application/json">{numbers}</script><figcaption>', 1)
    return Shown(f'{html}<script type="module" src="../_static/js/explorers.js"></script>', shown.text)


def memory_numbers() -> dict[str, Any]:
    """The byte model's terms for three models and three methods, with and without checkpointing.

    Of the moments of a step only those that are the largest one for some choice of rows, tokens and rank are there.
    """
    steps: dict[str, dict[str, Any]] = {}
    for model, method, again, rows in itertools.product(MODELS, METHODS, (False, True), (1, 2)):
        setup = replace(METHODS[method], checkpointing=again, batch=rows, seq=TOKENS[0])
        step = training_step(SHAPES[model], setup)
        key = f"{method}{', checkpointed' * again}{', one row' * (rows == 1)}"
        steps.setdefault(MODELS[model], {})[key] = {
            "state": {term: as_list(size) for term, size in step.state.items()},
            "moments": largest_somewhere(step, [count for count in ROWS if (count > 1) == (rows > 1)]),
        }
    return {
        "steps": steps,
        "symbols": {label: SHAPES[model].symbols for model, label in MODELS.items()},
        "methods": list(METHODS),
        "rows": ROWS,
        "tokens": TOKENS,
        "ranks": RANKS,
        "parts": {part: names for part, (names, *_) in PARTS.items()},
    }


def largest_somewhere(step: Step, rows: Sequence[int]) -> list[dict[str, list[list[Any]]]]:
    """The moments that are the largest for some of the rows, tokens and ranks that the reader can choose."""
    choices = np.array(list(itertools.product(rows, TOKENS, RANKS)), dtype=float).T
    values = {**step.symbols, **dict(zip("bsr", choices, strict=True))} | {"t": choices[1], "k": choices[1]}
    ones = np.ones(choices.shape[1])
    columns = [math.prod((values[symbol] for symbol in symbols), start=ones) for _, symbols in step.moments.columns]
    largest = sorted(set((step.moments.table @ np.array(columns)).argmax(axis=0).tolist()))
    return [{kind: as_list(size) for kind, size in step.moments.by_kind(index).items()} for index in largest]


def quantiser_numbers() -> dict[str, Any]:
    """A block of weights, drawn once, and the levels of three codebooks."""
    weights = np.random.default_rng(4).normal(size=BLOCK)
    levels = {label: [round(float(level), 7) for level in codebook(name)] for label, name in CODEBOOKS.items()}
    return {"weights": [round(float(level), 3) for level in weights], "levels": levels}


def rank_numbers() -> dict[str, Any]:
    """(inputs, outputs) of the matrices of a layer, how many layers, and all parameters, of three models."""
    models = {
        label: {"linears": SHAPES[name].linears, "layers": SHAPES[name].layers, "parameters": SHAPES[name].parameters}
        for name, label in MODELS.items()
    }
    return {"models": models, "targets": {"all": list(SHAPES["llama-2-7b"].linears), "q and v": ["q_proj", "v_proj"]}}


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "memory": memory_numbers,
    "quantiser": quantiser_numbers,
    "rank": rank_numbers,
}
