"""What a page needs to train in the browser: engine, weights and data, each a classic script that is loaded when asked.

A page opened from a disk may not fetch, but it may load scripts; so all of it comes in scripts that fill the object
`peftbookLive`. They are written at the end of a build from what is committed: the engine in `book/assets/live`, the
weights of the small Llama, the rows of its task, and the records of the study `live`; and the engine for a graphics
processor, which only a browser that has one asks for. The place on a page, with its controls, is made by `js/live.js`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from peftbook.core import specs
from peftbook.core.folders import PACKAGE
from peftbook.core.records import Record, Store, default_store
from peftbook.core.stamp import inputs_hash, is_fresh, write_stamp
from peftbook.memory import shape_from_config
from peftbook.studies import live
from peftbook.views.html import json_script
from peftbook.views.site.display import Shown

ENGINE = PACKAGE.parents[1] / "book/assets/live"
MAKERS = ("views/site/live.py", "studies/live.py", "training/live_weights.py", "scratch/rows.py", "scratch/nf4.py")
MODULES = (
    "random.js", "weights.js", "product.js", "loops.js", "arrays.js", "parts.js", "model.js", "methods.js",
    "optimizer.js", "spectrum.js", "trainer.js", "race.js", "worker.js",
)  # fmt: skip
GRAPHICS = ("kernels.js", "webgpu.js")
FOLDER = "live"  # of the site; the style sheet's search for classes would take words of base64 in `_static` for names
STAMP = ".stamp"
QUESTIONS = 4
CONFIG = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "rms_norm_eps",
)  # fmt: skip
RANKS = (1, 2, 4, 8, 16)
ALPHAS = (8, 16, 32, 64)
BATCHES = (1, 2, 4, 8, 16)
STEPS = (20, 40, 60, 80)


def train_here(first: str = "lora") -> Shown:
    """The place where a reader trains: a sentence for who has no scripts, and the numbers that its controls need.

    first: the arm of the study `live` that is chosen at the beginning.
    """
    text = "A page in a browser with scripts has controls here that train the small Llama while you watch."
    html = (
        f'{opened("live", controls(default_store()) | {"chosen": first})}<p class="live-without">{text}</p></div>'
        '<script defer src="../_static/js/live.js"></script>'
    )
    return Shown(html, text)


def train_at_once() -> Shown:
    """The small form: one button that trains by LoRA, with the settings that `train_here` begins with.

    Nothing is loaded before it is pressed, not even the script (`js/book.js`, which every page has, does that).
    """
    numbers = first_setting(controls(default_store()))
    text = "A page in a browser with scripts has a button here that trains the small Llama by LoRA while you watch."
    loads = sum(numbers["bytes"].values()) / 1e6
    html = (
        f'{opened("live live-small", numbers)}<div class="explorer">'
        '<p class="live-buttons"><button type="button" class="live-train">Train LoRA here</button></p>'
        f'<p class="live-cost">Loads {loads:.1f} MB from this site when pressed, and nothing before. '
        'Nothing leaves your machine.</p><p class="explorer-says" role="status"></p></div>'
        f'<p class="live-without">{text}</p></div>'
    )
    return Shown(html, text)


def opened(classes: str, numbers: dict[str, Any]) -> str:
    """The place's first tag, with the numbers for its script."""
    return f'<div class="{classes}" id="train-here" data-live="../{FOLDER}/">{json_script(numbers)}'


def controls(store: Store) -> dict[str, Any]:
    """What a reader may choose, what each choice costs, and which choices have records."""
    from peftbook.training.models import SMALL_FOLDER

    shape = shape_from_config(json.loads((SMALL_FOLDER / "config.json").read_text(encoding="utf-8")))
    sides = {name.removesuffix("_proj"): both for name, both in shape.linears.items()}
    return {
        "chosen": "lora",
        "arms": {name: described(arm) | {"trained": arm.method.parameters(shape)} for name, arm in live.ARMS.items()},
        "ranks": RANKS,
        "alphas": ALPHAS,
        "targets": {"all": list(sides), "q and v": ["q", "v"], "attention": ["q", "k", "v", "o"]},
        "steps": STEPS,
        "batches": BATCHES,
        "batch": live.BATCH,
        "seeds": live.SEEDS,
        "sides": sides,
        "layers": shape.layers,
        "bytes": {name: len(script.encode()) for name, script in made(store)},
        "recorded": recorded(store, lambda record: 1),
        "rule": {"ends": live.ENDS, "first": live.FIRST_MARGIN, "last": live.LAST_MARGIN},
    }


def first_setting(numbers: dict[str, Any]) -> dict[str, Any]:
    """Of what a reader may choose the setting that stands at the beginning, and the bytes that it loads."""
    chosen = numbers["chosen"]
    arm = numbers["arms"][chosen]
    return numbers | {
        "arms": {chosen: arm},
        "ranks": [arm["choice"]["rank"]],
        "alphas": [arm["choice"]["alpha"]],
        "targets": {"all": numbers["targets"]["all"]},
        "steps": [],
        "batches": [live.BATCH],
        "seeds": numbers["seeds"][:1],
        "bytes": {name: numbers["bytes"][name] for name in ("engine", "data", arm["base"])},
        "recorded": {chosen: numbers["recorded"][chosen]},
    }


def bases() -> list[str]:
    """The weights that some method starts from."""
    return sorted({arm.base for arm in live.ARMS.values()})


def made(store: Store) -> Iterator[tuple[str, str]]:
    """Each script by its name."""
    engines = {"engine": engine_source(), "webgpu": graphics_source()}
    contents = {**engines, "data": data(store), **{base: weights(base) for base in bases()}}
    for name, content in contents.items():
        text = json.dumps(content, separators=(",", ":"))
        yield name, f"(globalThis.peftbookLive ??= {{}}).{name} = {text};\n"


def write(folder: Path, store: Store) -> None:
    """Write the scripts, unless they were made from the present engine, weights, code and records."""
    files = [*(ENGINE / name for name in MODULES + GRAPHICS), *(PACKAGE / name for name in MAKERS)]
    recorded = [f"{run.key} {run in store}" for run in live.runs(store)]
    stamp, inputs = folder / STAMP, inputs_hash(files, specs.SMALL_REVISION, *recorded)
    if is_fresh(stamp, inputs):
        return
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    for name, script in made(store):
        (folder / f"{name}.js").write_text(script, encoding="utf-8")
    write_stamp(stamp, inputs)


def engine_source() -> str:
    """The engine as one script for a classic worker."""
    return bundled(MODULES, 'load("worker.js");')


def graphics_source() -> str:
    """What a worker's script begins with where there is a graphics processor."""
    return bundled(GRAPHICS, 'globalThis.peftbookGraphics = load("webgpu.js").graphics;')


def bundled(names: Sequence[str], last: str) -> str:
    """Modules as one script: each a function that `load`, their `require`, runs once; then a last statement."""
    sources = {name: (ENGINE / name).read_text(encoding="utf-8") for name in names}
    bodies = [
        f"{json.dumps(name)}: function (module, exports, require) {{\n{text}\n}}" for name, text in sources.items()
    ]
    return (
        "(() => {\nconst modules = {\n" + ",\n".join(bodies) + "\n};\n"
        "const loaded = {};\n"
        "function load(path) {\n"
        '  const name = path.slice(path.lastIndexOf("/") + 1);\n'
        "  if (!loaded[name]) {\n"
        "    loaded[name] = { exports: {} };\n"
        "    modules[name](loaded[name], loaded[name].exports, load);\n"
        "  }\n"
        "  return loaded[name].exports;\n"
        "}\n"
        f"{last}\n}})();\n"
    )


def weights(base: str) -> dict[str, Any]:
    """The base's bytes as base64, and where its tensors lie in them."""
    from safetensors.torch import load_file

    from peftbook.training.live_weights import BLOCK, stored
    from peftbook.training.models import SMALL_FOLDER

    content, entries = stored(load_file(SMALL_FOLDER / "model.safetensors"), base)
    text = base64.b64encode(content).decode("ascii")
    return {"text": text, "length": len(content), "block": BLOCK, "entries": entries}


def data(store: Store) -> dict[str, Any]:
    """Model, task, batches, starts and the record's curves, as far as there are records."""
    from transformers import AutoTokenizer

    from peftbook.methods.prompt import common_tokens
    from peftbook.scratch.nf4 import nf4_levels
    from peftbook.tasks import get_task
    from peftbook.training.encode import batch_plan, encode_prompt, encode_training
    from peftbook.training.models import SMALL_FOLDER

    tokenizer, task = AutoTokenizer.from_pretrained(SMALL_FOLDER), get_task(live.TASK)
    config = json.loads((SMALL_FOLDER / "config.json").read_text(encoding="utf-8"))
    rows = encode_training(tokenizer, task, live.budget(1.0))
    lengths = [len(row.ids) for row in rows]
    questions = task.splits["test"][:QUESTIONS]
    prompts = [encode_prompt(tokenizer, task, one) for one in questions]
    longest = max(*(length - 1 for length in lengths), *(len(ids) + live.LIMIT - 1 for ids in prompts))
    return {
        "task": {
            "config": {name: config[name] for name in CONFIG} | {"rope_theta": config["rope_parameters"]["rope_theta"]},
            "rows": [{"ids": row.ids, "start": row.start} for row in rows],
            "length": longest,
            "end": tokenizer.eos_token_id,
            "most": live.budget(1.0).max_grad_norm,
            "warmup": live.budget(1.0).warmup,
        },
        "levels": nf4_levels().tolist(),
        "plans": {seed: batch_plan(lengths, live.BATCH, live.TOKENS, seed) for seed in live.SEEDS},
        "starts": {
            seed: common_tokens(tokenizer, config["vocab_size"], live.PROMPT, seed).tolist() for seed in live.SEEDS
        },
        "questions": [
            {"text": one.input, "target": one.target, "ids": ids} for one, ids in zip(questions, prompts, strict=True)
        ],
        "limit": live.LIMIT,
        "tokens": tokenizer.convert_ids_to_tokens(range(config["vocab_size"])),
        "arms": {name: described(arm) for name, arm in live.ARMS.items()},
        "curves": recorded(store, lambda record: list(record.curve["train_loss_nats"])),
        "right": recorded(store, lambda record: (sum(map(float, record.per_example["exact_match"])), live.ROWS)),
    }


def described(arm: live.PageMethod) -> dict[str, Any]:
    """An arm, its method in the engine's words; what a method has no use for is there and says nothing."""
    given = arm.method.model_dump()
    targets = [name.removesuffix("_proj") for name in given.get("targets", ())]
    choice = {
        "method": arm.method.kind,
        "rank": given.get("rank", 1),
        "alpha": given.get("alpha", 1),
        "targets": targets,
    }
    return {"label": arm.label, "base": arm.base, "rates": arm.rates, "choice": choice}


def recorded(store: Store, read: Callable[[Record], Any]) -> dict[str, dict[float, dict[int, Any]]]:
    """What is read of each record there is: arm → rate → seed → value."""
    return {
        name: {
            rate: {
                seed: read(record)
                for seed in live.SEEDS
                if (record := store.get(live.probe(name, rate, seed))) is not None
            }
            for rate in arm.rates
        }
        for name, arm in live.ARMS.items()
    }


def write_scripts(app: Any, error: Exception | None) -> None:
    """At the end of a build of the site."""
    if error is None and app.builder.name == "html":
        write(Path(app.outdir) / FOLDER, default_store())


def setup(app: Any) -> None:
    """Connect to the end of the build."""
    app.connect("build-finished", write_scripts)
