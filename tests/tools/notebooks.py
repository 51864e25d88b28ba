"""What unslothai/notebooks set and print of memory, for the judgement of `fit` in `studies/memory_elsewhere.py`.

    python tests/tools/notebooks.py settings REPOSITORY            # tests/notebooks/settings.jsonl, outputs unopened
    python tests/tools/notebooks.py outcomes REPOSITORY learned    # tests/notebooks/learned.jsonl
    python tests/tools/notebooks.py predict                        # tests/notebooks/predictions.jsonl
    python tests/tools/notebooks.py outcomes REPOSITORY judged     # tests/notebooks/judged.jsonl, once
    python tests/tools/notebooks.py rows                           # printed: rows of data/memory_elsewhere.toml

REPOSITORY is a git directory of https://github.com/unslothai/notebooks that holds COMMIT. A notebook counts if one of
its code cells prints `max_memory_reserved`; the copies for other machines (AMD-, Kaggle-, HuggingFace Course-) are one
with the notebook whose name they carry. The parity of the name's SHA-256 says its half: of the even half outputs were
read to learn from, of the odd one not until the predictions were committed. The judgement is by the rule of
`memory_elsewhere_again`; which outputs count (`counted`) was committed with the predictions.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

COMMIT = "bdda2efc7ad5ae129ea63cd2065d23c391406283"
FOLDER = Path(__file__).parents[1] / "notebooks"
HALVES = ("learned", "judged")
COPY = re.compile(r"^(AMD-|Kaggle-|HuggingFace Course-)")
ARGUMENTS = re.compile(r"(Config|TrainingArguments)$")
# The arguments that the memory of a step can depend on, by the call that has them
LOADING = ("model_name", "max_seq_length", "dtype", "load_in_4bit", "load_in_8bit", "load_in_16bit", "load_in_fp8",
           "full_finetuning", "fast_inference", "gpu_memory_utilization", "qat_scheme")  # fmt: skip
ADAPTING = ("r", "target_modules", "modules_to_save", "lora_dropout", "use_gradient_checkpointing", "qat_scheme",
            "finetune_vision_layers", "finetune_language_layers", "finetune_attention_modules",
            "finetune_mlp_modules")  # fmt: skip
TRAINING = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "num_train_epochs", "optim",
            "max_length", "max_seq_length", "packing", "gradient_checkpointing", "num_generations",
            "max_prompt_length", "max_completion_length", "beta", "embedding_learning_rate")  # fmt: skip
PRINTED = {
    "card": re.compile(r"^GPU = (.+?)\. Max memory = [\d.]+ GB\.", re.M),
    "memory": re.compile(r"^GPU = .+?\. Max memory = ([\d.]+) GB\.", re.M),
    "before": re.compile(r"^([\d.]+) GB of memory reserved\.", re.M),
    "peak": re.compile(r"^Peak reserved memory = ([\d.]+) GB\.", re.M),
}
# Models whose shape `fit` has, by the ids that cells load. Of those that see, the text part alone is counted
MODELS = {
    "unsloth/Qwen2.5-Coder-7B-Instruct-bnb-4bit": "qwen2.5-7b", "unsloth/Qwen2.5-7B": "qwen2.5-7b",
    "unsloth/Qwen2.5-Coder-14B-Instruct": "qwen2.5-14b", "unsloth/Qwen2-7B": "qwen2.5-7b",
    "unsloth/Qwen3-14B": "qwen3-14b", "unsloth/Qwen3-14B-Base-unsloth-bnb-4bit": "qwen3-14b",
    "unsloth/Qwen3-32B": "qwen3-32b", "unsloth/Qwen3-4B-Instruct-2507": "qwen3-4b",
    "unsloth/Qwen3-4B-Thinking-2507": "qwen3-4b", "unsloth/Qwen3-0.6B": "qwen3-0.6b",
    "unsloth/codegemma-7b-bnb-4bit": "gemma-7b", "unsloth/gemma-2-2b": "gemma-2-2b",
    "unsloth/gemma-2-9b": "gemma-2-9b", "unsloth/functiongemma-270m-it": "gemma-3-270m",
    "unsloth/gemma-3-270m-it": "gemma-3-270m", "unsloth/gemma-3-4b-it": "gemma-3-4b",
    "unsloth/gemma-3-27b-it": "gemma-3-27b", "unsloth/Llama-3.1-8B": "llama-3.1-8b",
    "unsloth/Llama-3.2-1B-Instruct": "llama-3.2-1b", "unsloth/Llama-3.2-3B-Instruct": "llama-3.2-3b",
    "unsloth/Llama-3.3-70B-Instruct": "llama-3.1-70b", "unsloth/llama-3-8b-bnb-4bit": "llama-3-8b",
    "unsloth/llama-3-8b-Instruct-bnb-4bit": "llama-3-8b", "unsloth/tinyllama-bnb-4bit": "tinyllama-1.1b",
    "unsloth/Magistral-Small-2509-unsloth-bnb-4bit": "mistral-small-24b", "unsloth/Phi-4": "phi-4",
    "unsloth/mistral-7b-v0.3": "mistral-7b-v0.3", "unsloth/mistral-7b-instruct-v0.3-bnb-4bit": "mistral-7b-v0.3",
    "unsloth/Phi-3.5-mini-instruct": "phi-3-mini-128k",
}  # fmt: skip
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# What the learned half taught, the last change before the predictions: where a length is only a limit, Alpaca's longest
# row is reached (1,304 tokens, as LitGPT counts them); and most notebooks ran when Unsloth still made the logits whole
ALPACA, LONGEST = re.compile("alpaca-cleaned"), 1304
LOGITS = "in_place"


def repository_names(repository: Path) -> list[str]:
    """The paths of the commit's notebooks."""
    listing = ["git", "-C", str(repository), "ls-tree", "-rz", "--name-only", COMMIT]
    found = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split("\0")
    return [path for path in found if path.endswith(".ipynb")]


def notebook(repository: Path, path: str) -> dict[str, Any]:
    """A notebook of the commit."""
    shown = subprocess.run(["git", "-C", str(repository), "show", f"{COMMIT}:{path}"], capture_output=True, check=True)
    read: dict[str, Any] = json.loads(shown.stdout)
    return read


def name_of(path: str) -> str:
    """The name that a notebook shares with its copies."""
    return COPY.sub("", Path(path).stem)


def plain_first(path: str) -> tuple[bool, bool, str]:
    """The order of copies: the one in nb/ that carries the plain name, the others there, those elsewhere."""
    return not path.startswith("nb/"), Path(path).stem != name_of(path), path


def half_of(name: str) -> str:
    """learned for an even SHA-256 of the name, judged for an odd one."""
    return HALVES[hashlib.sha256(name.encode()).digest()[-1] % 2]


def trees(read: dict[str, Any]) -> Iterable[ast.Module]:
    """The code cells that are Python, shell lines taken out; outputs are never looked at."""
    for cell in read["cells"]:
        if cell["cell_type"] == "code":
            source = "\n".join(re.sub(r"^(\s*)[!%].*", r"\1pass", line) for line in "".join(cell["source"]).split("\n"))
            try:
                yield ast.parse(source)
            except SyntaxError:
                continue


def plain(node: ast.expr, known: dict[str, Any]) -> Any:
    """The value of a constant, a list of them or a name that was given one before; else its source."""
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def settings(read: dict[str, Any]) -> dict[str, Any]:
    """What the cells set: the model's loading, the adapter, the training, the trainer and the data; first calls win."""
    known: dict[str, Any] = {}
    found: dict[str, Any] = {"datasets": []}

    def take(part: str, call: ast.Call, wanted: Iterable[str]) -> None:
        given = {one.arg: plain(one.value, known) for one in call.keywords if one.arg in wanted}
        if part == "loading" and call.args and "model_name" not in given:
            given["model_name"] = plain(call.args[0], known)
        found.setdefault(part, given)

    for node in (node for tree in trees(read) for node in ast.walk(tree)):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            known.setdefault(node.targets[0].id, plain(node.value, known))
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rsplit(".", 1)[-1]
        if last == "from_pretrained" and called.startswith("Fast"):
            take("loading", node, LOADING)
        elif last == "get_peft_model":
            take("adapting", node, ADAPTING)
        elif ARGUMENTS.search(last) and any(one.arg == TRAINING[0] for one in node.keywords):
            take("training", node, TRAINING)
        elif called == last and last.endswith("Trainer") and "trainer" not in found:
            found["trainer"] = last
            take("trainer_arguments", node, TRAINING)
        elif last == "load_dataset" and node.args:
            found["datasets"].append(plain(node.args[0], known))
        elif last == "train_on_responses_only":
            found["responses_only"] = True
    return found


def with_peaks(repository: Path) -> list[dict[str, Any]]:
    """A row for each notebook with a peak, from the copy that carries its plain name where there is one."""
    copies: dict[str, list[str]] = {}
    for path in repository_names(repository):
        copies.setdefault(name_of(path), []).append(path)
    made = []
    for name, paths in sorted(copies.items()):
        paths.sort(key=plain_first)
        read = notebook(repository, paths[0])
        if any("max_memory_reserved" in ast.unparse(tree) for tree in trees(read)):
            made.append({"name": name, "half": half_of(name), "path": paths[0], **settings(read)})
    return made


def printed(read: dict[str, Any]) -> dict[str, Any] | None:
    """What a notebook's outputs say of memory, in GiB; None if they print no peak."""
    outputs = [output for cell in read["cells"] for output in cell.get("outputs", ())]
    text = "\n".join("".join(output.get("text", "")) for output in outputs)
    found = {name: pattern.search(text) for name, pattern in PRINTED.items()}
    if not found["peak"]:
        return None
    return {name: match and (match[1] if name == "card" else float(match[1])) for name, match in found.items()}


def outcomes(repository: Path, half: str) -> list[dict[str, Any]]:
    """A row for each different output of a half's notebooks and their copies, which may have run on other cards."""
    names = {row["name"] for row in read_rows("settings") if row["half"] == half}
    rows: dict[str, dict[str, Any]] = {}
    for path in sorted(repository_names(repository), key=plain_first):
        if (name := name_of(path)) in names and (found := printed(notebook(repository, path))):
            rows.setdefault(json.dumps([name, found]), {"name": name, "path": path} | found)
    return sorted(rows.values(), key=lambda row: row["name"])


def asked(row: dict[str, Any]) -> dict[str, Any] | None:
    """A notebook as a setting of Unsloth's stack; None for what `fit` does not cover.

    Covered: supervised training of a text model whose shape it has, all of whose adapted layers are text, without
    quantisation-aware training. A length is the limit that the cells set.
    """
    loading, adapting, training = (row.get(part, {}) for part in ("loading", "adapting", "training"))
    model = MODELS.get(loading.get("model_name"))
    if model is None or row.get("trainer") not in ("SFTTrainer", "UnslothTrainer"):
        return None
    if adapting.get("finetune_vision_layers") or loading.get("full_finetuning") or "qat_scheme" in loading | adapting:
        return None
    targets = adapting.get("target_modules", SEVEN)
    seq = (row.get("trainer_arguments", {}) | training).get("max_length") or loading["max_seq_length"]
    short = any(ALPACA.search(name) for name in row["datasets"]) and not row["trainer_arguments"].get("packing")
    given = {
        "method": "lora", "rank": adapting["r"], "targets": [name for name in targets if name in SEVEN],
        "batch": training["per_device_train_batch_size"], "seq": min(seq, LONGEST) if short else seq,
        "optimiser": training["optim"].replace("adamw_torch", "adamw_foreach"), "logits": LOGITS,
        "accumulated": training["gradient_accumulation_steps"] > 1,
        "checkpointing": adapting.get("use_gradient_checkpointing", "unsloth") is not False,
        "dropout": bool(adapting.get("lora_dropout")),
    }  # fmt: skip
    if loading.get("load_in_4bit"):
        given["quantised"] = "nf4"
    if saved := [name for name in targets if name in ("embed_tokens", "lm_head")]:
        given |= {"saved": saved, "saved_dtype": "fp32"}
    return {"name": row["name"], "half": row["half"], "model": model, "settings": given}


def predictions() -> list[dict[str, Any]]:
    """Bytes that torch's allocator holds at most, of every notebook of either half that `fit` covers."""
    from peftbook.memory import Configuration, read_shape
    from peftbook.memory.fit import BESIDE
    from peftbook.memory.stacks import setup_in

    made = []
    for row in filter(None, map(asked, read_rows("settings"))):
        said = {name: tuple(one) if isinstance(one, list) else one for name, one in row["settings"].items()}
        peak = Configuration(read_shape(row["model"]), setup_in("unsloth", **said)[0]).step.peak().total
        made.append(row | {"bytes": round(peak + BESIDE["reserved"].beside(peak))})
    return made


def counted(half: str) -> list[dict[str, Any]]:
    """The predictions of a half with the figure that each is held against, one for a notebook.

    Of different outputs of one notebook the first path's counts. None counts whose peak is what was reserved before the
    training, nor one that notebooks of two models print alike to the last digit: it was copied with the cells.
    """
    outputs: dict[str, dict[str, Any]] = {}
    for row in read_rows(half):
        outputs.setdefault(row["name"], row)
    models = {row["name"]: row["loading"].get("model_name") for row in read_rows("settings") if "loading" in row}
    printers: dict[tuple[float, float], set[str]] = {}
    for row in read_rows(half):
        printers.setdefault((row["before"], row["peak"]), set()).add(models[row["name"]])
    made = []
    for row in read_rows("predictions"):
        found = outputs.get(row["name"])
        if row["half"] != half or found is None or found["peak"] == found["before"]:
            continue
        if len(printers[found["before"], found["peak"]]) == 1:
            made.append(row | {name: found[name] for name in ("path", "card", "before", "peak")})
    return made


def toml_row(row: dict[str, Any]) -> str:
    """A counted row as the table of published figures has it."""
    source = f"https://github.com/unslothai/notebooks/blob/{COMMIT}/{quote(row['path'])}"
    fields = {
        "name": "unsloth_" + re.sub(r"\W+", "_", row["name"]).strip("_").lower(), "part": "notebooks",
        "source": source, "says": f"Peak reserved memory = {row['peak']} GB.", "measured": row["peak"], "unit": "GiB",
        "of": "reserved", "stack": "unsloth", "model": row["model"],
    }  # fmt: skip
    given = ", ".join(f"{name} = {json.dumps(value)}" for name, value in row["settings"].items())
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    length = "Alpaca's longest row" if row["settings"]["seq"] == LONGEST else "a limit that short rows do not reach"
    note = f"{row['card']}; {row['before']} GB were reserved before the training. The length is {length}."
    return "\n".join(["[[row]]", *lines, f"settings = {{ {given} }}", f"note = {json.dumps(note)}", ""])


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a file of the folder."""
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    if what == "rows":
        sys.exit(print("\n".join(map(toml_row, counted("judged")))))
    rows = {
        "settings": lambda: with_peaks(Path(rest[0])),
        "outcomes": lambda: outcomes(Path(rest[0]), rest[1]),
        "predict": predictions,
    }[what]()
    name = {"settings": "settings", "predict": "predictions"}.get(what) or rest[1]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
