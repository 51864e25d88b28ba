"""What a page needs to train in the browser: engine, weights and data, each a classic script that is loaded when asked.

A page opened from a disk may not fetch, but it may load scripts; so all of it comes in scripts that fill the object
`peftbookLive`. They are written at the end of a build from what is committed: the engine in `book/assets/live`, the
weights of the small Llama, the rows of its task, and the records of the study `live`; and the engine for a graphics
processor, which only a browser that has one asks for. The place on a page, with its controls, is made by `js/live.js`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftbook.core import specs
from peftbook.core.folders import PACKAGE
from peftbook.core.records import Record, Store, default_store
from peftbook.core.stamp import inputs_hash, is_fresh, write_stamp
from peftbook.memory import shape_from_config
from peftbook.studies import live
from peftbook.tasks import TaskData
from peftbook.views.html import fill, json_script
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
CONFIG = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "rms_norm_eps",
)  # fmt: skip
RANKS = (1, 2, 4, 8, 16)
ALPHAS = (8, 16, 32, 64)
BATCHES = (1, 2, 4, 8, 16)
STEPS = (20, 40, 60, 80, *live.LENGTHS)
ROOM = 64  # tokens of a reader's own message with its answer, at least


def train_here(first: str = "lora", together: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> Shown:
    """The place where a reader trains, with all of its settings.

    first: the arm of the study `live` that is chosen at the beginning.  together: of each further button its name, and
    what the runs that it trains one after another have in place of the settings above.
    """
    return placed(controls(default_store(), first) | {"together": together or {}})


def train_at_once() -> Shown:
    """The small form: the default alone.

    Nothing is loaded before its button is pressed, not even the script (`js/book.js`, which every page has, does that).
    """
    return placed(controls(default_store(), "lora") | {"together": {}}, small=True)


def placed(numbers: dict[str, Any], small: bool = False) -> Shown:
    """The element of a page: what it shows before a training, and the numbers for its script."""
    first, arms, sizes = numbers["first"], numbers["arms"], numbers["bytes"]
    arm = arms[first["method"]]
    loads = (sizes["engine"] + sizes["data"] + sizes[arm["base"]]) / 1e6
    without = "A page in a browser with scripts has controls here that train the small Llama while you watch."
    html = fill(
        "live.html",
        small=small,
        first=first,
        selects=() if small else selects(numbers),
        folder=FOLDER,
        numbers=json_script(numbers),
        messages=live.messages(),
        rows=live.ROWS,
        together=numbers["together"],
        arm=arm,
        whole=arms["full"],
        loads=loads,
        choice=chosen_how(default_store()),
        without=without,
    )
    return Shown(html if small else f'{html}<script defer src="../_static/js/live.js"></script>', without)


def chosen_how(store: Store) -> str:
    """How the default was chosen, and what the other rates are worth with as many steps."""
    shares, (steps, rate) = live.choices(store), live.default(store)
    others = [
        f"{100 * share:.0f} % at {at:g}" for (count, at), share in shares.items() if count == steps and at != rate
    ]
    return (
        f"LoRA begins with rate {rate:g} and about {steps} steps. Of {len(shares)} pairs this one got the "
        f"most of {live.ROWS} validation messages right: {100 * shares[steps, rate]:.0f} %, mean of "
        f"{len(live.CHOICE_SEEDS)} seeds. With as many steps it was {' and '.join(others)}."
    )


def selects(numbers: dict[str, Any]) -> Iterator[tuple[str, str, list[tuple[Any, Any]]]]:
    """Of each setting its name, its label, and values with their texts."""
    arms = numbers["arms"]
    yield "method", "Method", [(name, arm["label"]) for name, arm in arms.items()]
    yield "rate", "Rate", [(rate, rate) for rate in arms[numbers["first"]["method"]]["grid"]]
    lists = {"rank": RANKS, "alpha": ALPHAS, "targets": numbers["targets"], "steps": STEPS, "batch": BATCHES}
    labels = {"alpha": "α", "targets": "Matrices"}
    for name, values in (lists | {"seed": live.DEFAULT_SEEDS}).items():
        yield name, labels.get(name, name.capitalize()), [(value, value) for value in values]


def controls(store: Store, first: str) -> dict[str, Any]:
    """What a reader may choose, what each choice costs, and which choices have records."""
    from peftbook.training.models import SMALL_FOLDER

    shape = shape_from_config(json.loads((SMALL_FOLDER / "config.json").read_text(encoding="utf-8")))
    sides = {name.removesuffix("_proj"): both for name, both in shape.linears.items()}
    arms = {name: described(arm) | {"trained": arm.method.parameters(shape)} for name, arm in live.ARMS.items()}
    steps, rate = live.default(store)
    arms["lora"] |= {"steps": steps, "rate": rate}
    arm = arms[first]
    return {
        "first": {
            "method": first, "rate": arm["rate"], "steps": arm["steps"], "rank": max(RANKS), "alpha": 2 * max(RANKS),
            "targets": "all", "batch": live.BATCH, "seed": live.DEFAULT_SEEDS[0],
        },
        "arms": arms,
        "targets": {"all": list(sides), "q and v": ["q", "v"], "attention": ["q", "k", "v", "o"]},
        "batch": live.BATCH,
        "seeds": live.DEFAULT_SEEDS,
        "sides": sides,
        "layers": shape.layers,
        "bytes": {name: len(script.encode()) for name, script in made(store)},
        "recorded": list(recorded(store)),
        "rule": {"ends": live.ENDS, "first": live.FIRST_MARGIN, "last": live.LAST_MARGIN},
    }  # fmt: skip


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
    known = [f"{run.key} {run in store}" for run in live.runs(store)]
    stamp, inputs = folder / STAMP, inputs_hash(files, specs.SMALL_REVISION, *known)
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
    tests = task.splits["test"][: live.ROWS]
    shown = [replace(tests[0], input=one["text"], target=one["label"]) for one in live.messages()]
    asked = [
        [{"target": one.target, "ids": encode_prompt(tokenizer, task, one)} for one in each] for each in (shown, tests)
    ]
    longest = max(
        *(length - 1 for length in lengths), *(len(one["ids"]) + live.LIMIT - 1 for each in asked for one in each)
    )
    return {
        "task": {
            "config": {name: config[name] for name in CONFIG} | {"rope_theta": config["rope_parameters"]["rope_theta"]},
            "rows": [{"ids": row.ids, "start": row.start} for row in rows],
            "length": max(longest, ROOM),
            "end": tokenizer.eos_token_id,
            "most": live.budget(1.0).max_grad_norm,
            "warmup": live.budget(1.0).warmup,
        },
        "levels": nf4_levels().tolist(),
        "plans": {
            seed: batch_plan(lengths, live.BATCH, max(live.LENGTHS.values()), seed) for seed in live.DEFAULT_SEEDS
        },
        "lengths": {
            steps: {seed: len(batch_plan(lengths, live.BATCH, tokens, seed)) for seed in live.DEFAULT_SEEDS}
            for steps, tokens in live.LENGTHS.items()
        },
        "starts": {
            seed: common_tokens(tokenizer, config["vocab_size"], live.PROMPT, seed).tolist()
            for seed in live.DEFAULT_SEEDS
        },
        "questions": asked[0],
        "tests": asked[1],
        "limit": live.LIMIT,
        "tokens": tokenizer.convert_ids_to_tokens(range(config["vocab_size"])),
        "frame": frame(tokenizer, task),
        "arms": {name: described(arm) for name, arm in live.ARMS.items()},
        "curves": {key: list(record.curve["train_loss_nats"]) for key, record in recorded(store).items()},
        "right": {key: sum(map(float, record.per_example["exact_match"])) for key, record in recorded(store).items()},
    }


def frame(tokenizer: Any, task: TaskData) -> tuple[list[int], list[int]]:
    """The token ids before a message and behind it."""
    from peftbook.training.encode import encode_prompt

    (mark,) = tokenizer.encode("?")
    ids = encode_prompt(tokenizer, task, replace(task.splits["test"][0], input="?"))
    at = ids.index(mark)
    return ids[:at], ids[at + 1 :]


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
    grid = [float(f"{min(arm.rates) * 2.0 ** (at - 1):.3g}") for at in range(7)]
    settings = {"grid": grid, "rate": arm.rates[0], "steps": min(live.LENGTHS)}
    return {"label": arm.label, "base": arm.base, "choice": choice} | settings


def recorded(store: Store) -> dict[str, Record]:
    """The records that a page can repeat, by method, rate, steps and seed."""
    steps, rate = live.default(store)
    probes = {
        f"{name} {rate} 100 {seed}": live.probe(name, rate, seed)
        for name, arm in live.ARMS.items()
        for rate in arm.rates
        for seed in live.SEEDS
    } | {f"lora {rate} {steps} {probe.seed}": probe for probe in live.default_probes(store)}
    return {key: record for key, probe in probes.items() if (record := store.get(probe)) is not None}


def write_scripts(app: Any, error: Exception | None) -> None:
    """At the end of a build of the site."""
    if error is None and app.builder.name == "html":
        write(Path(app.outdir) / FOLDER, default_store())


def setup(app: Any) -> None:
    """Connect to the end of the build."""
    app.connect("build-finished", write_scripts)
