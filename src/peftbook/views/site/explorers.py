"""Interactive figures: a chapter's figure with the numbers that its page lets the reader change.

explore("rank", figures.lora.low_rank_update, name="rank-explorer", alt="…", caption="…")

What is shown without scripts, in print and in a downloaded notebook is the figure itself. The script `explorers.js`
reads the numbers beside it and puts controls and a drawing in its place; it fetches nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from peftbook.memory import SHAPES
from peftbook.scratch.codebooks import codebook
from peftbook.views.site.display import Shown, show

MODELS = {"smollm2-135m": "SmolLM2-135M", "llama-2-7b": "Llama-2-7B", "llama-2-70b": "Llama-2-70B"}
CODEBOOKS = {"NF4": "nf4", "FP4 of bitsandbytes": "fp4", "INT4": "int4"}
BLOCK = 32


def explore(
    kind: str, figure: Callable[..., Any], *args: Any, name: str, alt: str, caption: str, **options: Any
) -> Shown:
    """The figure as `show` has it, with the numbers of an explorer: quantiser or rank."""
    shown = show(figure, *args, name=name, alt=alt, caption=caption, **options)
    return shown.with_numbers(
        KINDS[kind](), f'data-explorer="{kind}"', 'type="module" src="../_static/js/explorers.js"'
    )


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
    "quantiser": quantiser_numbers,
    "rank": rank_numbers,
}
