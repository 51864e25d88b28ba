"""`peftbook fit` in a page: the byte model's own code, translated, in a script that is loaded when a reader asks.

    fit_here(figures.fit.memory_by_rows, name="fit-explorer", alt="…", caption="…")

What is shown without scripts, in print and in a downloaded notebook is the figure. With them `js/fit.js` puts controls
in its place, and loads `fit/byte-model.js` once they come into sight: a page opened from a disk may load scripts, but
may not fetch. That file is written at the end of a build from `peftbook.memory.question` (see `site.javascript` for why
it is translated), with what the command would read from the machine: defaults of the installed libraries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peftbook.core.folders import PACKAGE
from peftbook.memory import SHAPES
from peftbook.memory.architecture import FAMILIES
from peftbook.memory.defaults import OMITTED, declared_in, defaults_of
from peftbook.memory.fit import CARDS
from peftbook.memory.names import TARGET_WORDS
from peftbook.memory.question import ON_OFF
from peftbook.memory.setup import CHOICES, OPTIMISERS
from peftbook.memory.stacks import STACKS, Declared
from peftbook.views.site.display import Shown, show
from peftbook.views.site.javascript import script

ENGINE = PACKAGE.parents[1] / "book/assets/live/fit"
FOLDER, FILE = "fit", "byte-model.js"  # of the site
CALLS = (
    "peftbook.memory.question.answer_fields",
    "peftbook.memory.question.Question",
    "peftbook.core.errors.InputError",
)
GIVEN = ("peftbook.memory.shapes.settings_text",)
UNUSED = ("Step.table",)
# Parts of the bar and the terms that they are made of, in the order in which they stand
PARTS = {
    "weights": ("weights", "reference", "quantisation constants", "whole for a while"),
    "adapter": ("adapter",),
    "gradients": ("gradients",),
    "optimiser": ("moments", "paged moments", "projections"),
    "activations": ("embedding", "layer inputs", "norms", "attention", "mlp", "cache", "working"),
    "kept for adapters": ("adapter inputs",),
    "logits, loss": ("logits and loss",),
}
METHODS = {
    "full": "full", "lora": "LoRA", "qlora": "QLoRA", "dora": "DoRA", "lora_fa": "LoRA-FA", "prompt": "soft prompt",
    "prefix": "prefix", "ia3": "(IA)³",
}  # fmt: skip
SWITCHES = {
    "autocast": "Autocast", "dropout": "Dropout", "padding": "Padding", "offloaded": "Offloaded",
    "accumulated": "Accumulated", "wide_norms": "Wide norms", "keeps_inputs": "Keeps inputs",
    "in_backward": "In backward", "host_weights": "Host weights",
}  # fmt: skip
START = {"model": "llama-3.1-8b", "method": "qlora", "memory": "24GB", "stack": "trl", "batch": 1, "seq": 2048}


def fit_here(figure: Callable[..., Any], *args: Any, name: str, alt: str, caption: str) -> Shown:
    """The figure as `show` has it, with what the controls offer."""
    shown = show(figure, *args, name=name, alt=alt, caption=caption)
    return shown.with_numbers(offered(), f'data-fit="../{FOLDER}/{FILE}"', 'defer src="../_static/js/fit.js"')


def offered() -> dict[str, Any]:
    """What a reader can choose from: options of the command by their names, each with its label and its values."""
    same = {"dtype": "Weights", "adapter_dtype": "Adapter", "logits": "Logits"}
    return {
        "start": START,
        "parts": PARTS,
        "first": [
            ["model", "Model", [[name, name] for name in SHAPES]],
            ["method", "Method", [*map(list, METHODS.items())]],
            ["memory", "Card", [[f"{size}GB", f"{size} GB"] for size in CARDS] + BIGGER],
            ["stack", "Library", [[name, stack.title] for name, stack in STACKS.items()]],
            ["batch", "Rows", []],
            ["seq", "Tokens a row", []],
            ["rank", "Rank", []],
            ["targets", "Matrices", [[list(names), word] for word, names in TARGET_WORDS.items() if word != "all"]],
            ["checkpointing", "Checkpoints", ON],
        ],
        "more": [
            ["quant", "Base", [[name, name] for name in ("none", "nf4", "fp4", "int8")]],
            *([name, label, [[one, one] for one in CHOICES[name]]] for name, label in same.items()),
            ["optimiser", "Optimiser", [[name, name] for name in OPTIMISERS]],
            ["attention", "Attention", [[name, name] for name in ("flash_attention_2", "eager")]],
            ["labels", "Labels", [[share, share] for share in ("10%", "25%", "50%")]],
            ["length", "Virtual tokens", []],
            *([name, label, ON] for name, label in SWITCHES.items()),
            ["devices", "Cards", [[count, str(count)] for count in (2, 4, 8)]],  # powers of two divide bytes exactly
        ],
        "means": ON_OFF,
        "unsaid": {"labels": "all positions", "devices": "1"},
    }


BIGGER = [["180GiB", "180 GiB"], ["288GiB", "288 GiB"]]
ON = [[True, "on"], [False, "off"]]


def tables() -> dict[str, dict[str, Any]]:
    """What the command reads from the installed packages, for all that it can ask."""
    declared = list(declarations())
    names = {one.name for one in declared}
    return {
        "peftbook.memory.defaults.defaults_of": {
            family: {name: value for name, value in defaults_of(family).items() if name in OMITTED}
            for family in FAMILIES
        },
        "peftbook.memory.defaults.declared_in": {
            where: {name: value for name, value in declared_in(where).items() if name in names}
            for where in dict.fromkeys(where for one in declared for where in one.classes)
        },
        "importlib.metadata.version": {
            stack.package: installed(stack.package, stack.version) for stack in STACKS.values() if stack.package
        },
    }


def declarations() -> Iterator[Declared]:
    """All defaults that some library declares."""
    for stack in STACKS.values():
        for case in (stack.always, stack.whole, stack.quantised, stack.full):
            yield from (value for value in case.values() if isinstance(value, Declared))


def installed(package: str, known: str) -> str:
    """The version of a package here, or the one that the table of stacks was made from."""
    try:
        return version(package)
    except PackageNotFoundError:
        return known


def engine_source() -> str:
    """The script of the worker: Python's built-ins, the byte model, and how it is asked."""
    python, worker = ((ENGINE / name).read_text(encoding="utf-8") for name in ("python.js", "worker.js"))
    model = script(CALLS, tables(), GIVEN, UNUSED)
    return f"{python}\nconst given = {{}};\nconst model = (() => {{\n{model}\n}})();\n{worker}"


def write(folder: Path) -> None:
    """Write the script that a page loads."""
    folder.mkdir(parents=True, exist_ok=True)
    source = json.dumps(engine_source(), ensure_ascii=False)
    (folder / FILE).write_text(f"globalThis.peftbookByteModel = {source};\n", encoding="utf-8")


def write_script(app: Any, error: Exception | None) -> None:
    """At the end of a build of the site."""
    if error is None and app.builder.name == "html":
        write(Path(app.outdir) / FOLDER)


def setup(app: Any) -> None:
    """Connect to the end of the build."""
    app.connect("build-finished", write_script)
