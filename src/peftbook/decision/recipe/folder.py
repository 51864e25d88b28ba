"""The folder of a recipe: settings, scripts, rows, how to serve, and the model card; whole or not at all."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from peftbook.core import specs
from peftbook.core.base_models import in_folder
from peftbook.core.folders import check_free
from peftbook.decision.own_metrics import Metric
from peftbook.decision.recipe.choice import LORA, TrainingRecipe
from peftbook.decision.recipe.stages import GENERATIONS
from peftbook.evidence.literature import published
from peftbook.tasks import TaskData, TaskExample

FILES = Path(__file__).resolve().parent / "files"
SCRIPTS = ("common.py", "train.py", "evaluate.py")
SETTINGS = "recipe.yaml"
PAGES = ("README.md", "serve.md")
PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")
QUANTISING = "bitsandbytes"
OLDEST = {"transformers": "5.16.1"}  # vLLM 0.33 asks for transformers>=5.16.1,<5.21 and torch==2.14, which hold beside
CHECKPOINTS = 10  # of a training
GROUPED = 500  # steps an epoch, from which rows are grouped by length: transformers sorts them within 50 steps
MARGIN = 0.02  # of a share, below which a difference does not matter: the book's own
COMMENTS = {
    "stage": "what it learns from: sft, answers; dpo, preference pairs; grpo, a reward; train.py is for this one",
    "model": "a hub id or a folder",
    "revision": "branch, tag or commit of the hub",
    "quantised": "whether the frozen base is in 4 bits (NF4) instead of 16",
    "attention": "how attention is computed: sdpa, eager, flash_attention_2",
    "rank": "of the adapter",
    "alpha": "the adapter's change is scaled by alpha / rank",
    "targets": "matrices that get an adapter",
    "micro_batch": "rows at a time on each card; halve it where memory runs out, and double accumulation",
    "accumulation": "micro-batches before each step; several cards share them",
    "checkpointing": "whether activations are computed again in the backward pass: less memory, more time",
    "max_length": "tokens of a row; longer ones are left out, none is cut",
    "epochs": "passes over the training rows, at most",
    "learning_rate": "README.md says where it is from; try a third of it and three times it",
    "schedule": "of the learning rate, as transformers calls it",
    "warmup": "share of the steps in which the rate rises",
    "checkpoints": "over the training; each is judged on the validation rows, and the best one is kept",
    "max_new_tokens": "of an answer that is written",
    "metrics": "your own, as --metric declares them; the first decides, and rewards in grpo; without, ROUGE-L decides",
    "margin": "differences below it do not matter; a metric of your own has one itself",
    "every_answer": "whether rows are chats whose every answer has a loss",
    "group_by_length": "batches of rows of like length: less padding; with few rows the batches are too much alike",
    "beta": "how far the model is held to the untuned one; larger is closer",
    "loss": "[sigmoid, sft] also trains on the chosen answers: take it where rewards/chosen falls below 0 in the log",
    "generations": "answers to each prompt, which are compared with each other; they divide micro_batch · accumulation",
    "predicted_peak_bytes": "of tensors, as computed; train.py prints what was measured",
}


def settings_of(recipe: TrainingRecipe, source: str, revision: str, metrics: Sequence[Metric]) -> dict[str, object]:
    """What the scripts read. source: where the model is loaded from."""
    setup, stage = recipe.setup, recipe.stage
    found: dict[str, object] = {
        "stage": stage.name,
        "model": source,
        "revision": revision or "main",
        "quantised": bool(setup.quantised),
        "attention": setup.attention,
        "rank": setup.rank,
        "alpha": LORA.alpha,  # type: ignore[attr-defined]
        "targets": [*recipe.modules],
        "micro_batch": recipe.micro_batch,
        "accumulation": recipe.accumulation,
        "checkpointing": setup.checkpointing,
        "max_length": recipe.max_length,
        "epochs": stage.epochs,
        "learning_rate": recipe.learning_rate,
        "schedule": stage.schedule,
        "warmup": stage.warmup,
        "checkpoints": CHECKPOINTS,
        "max_new_tokens": recipe.max_new_tokens,
        "metrics": [json.loads(metric.text()) for metric in metrics],
        "margin": MARGIN,
    }
    own: dict[str, dict[str, object]] = {
        "sft": {
            "every_answer": recipe.every_answer,
            "group_by_length": recipe.micro_batch > 1 and recipe.steps >= GROUPED * stage.epochs,
        },
        "dpo": {"beta": float(published("rafailov2023-beta").value), "loss": ["sigmoid"]},
        "grpo": {"generations": GENERATIONS},
    }
    return found | own[stage.name] | {"predicted_peak_bytes": round(recipe.peak)}


def commented(settings: dict[str, object]) -> str:
    """The settings as YAML, each below what it does."""
    import yaml

    lines = ["# What train.py and evaluate.py read. Change a value here; both keep to it."]
    for name, value in settings.items():
        flow = None if isinstance(value, list) else False
        said = yaml.safe_dump({name: value}, default_flow_style=flow, allow_unicode=True, width=1000, sort_keys=False)
        lines += [f"\n# {COMMENTS[name]}", said.strip()]
    return "\n".join(lines) + "\n"


def write_folder(
    out: Path,
    recipe: TrainingRecipe,
    task: TaskData,
    model: specs.Model,
    source: str,
    data_name: str,
    command: str,
    data_licence: str = "",
    metrics: Sequence[Metric] = (),
) -> None:
    """Write the scripts with what they read. Raises InputError where the folder is there."""
    from jinja2 import Environment, StrictUndefined

    check_free(out)
    settings = settings_of(recipe, source, model.revision if source == model.name else "", metrics)
    facts = {
        "name": Path(model.name).name if in_folder(model) else model.name,
        "source": shlex.quote(source),
        "at_once": at_once(recipe),
        "served_rank": served_rank(recipe.setup.rank),
        "context": served_context(recipe),
        "data": data_name,
        "data_licence": data_licence,
        "command": command,
    }
    pages = Environment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=in_a_table)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".peftbook-") as folder:
        work = Path(folder)
        work.chmod(0o755)
        (work / SETTINGS).write_text(commented(settings), encoding="utf-8")
        (work / "requirements.txt").write_text(requirements(recipe), encoding="utf-8")
        for name in SCRIPTS:
            source_name = f"train_{recipe.stage.name}.py" if name == "train.py" else name
            shutil.copyfile(FILES / source_name, work / name)
        for name in PAGES:
            page = pages.from_string((FILES / name).read_text(encoding="utf-8"))
            text = page.render(facts, recipe=recipe, stage=recipe.stage, settings=settings, task=task)
            (work / name).write_text(text, encoding="utf-8")
        (work / "data").mkdir()
        for split, examples in task.splits.items():
            lines = "".join(json.dumps(row_of(task, one), ensure_ascii=False) + "\n" for one in examples)
            (work / "data" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        work.replace(out)


def row_of(task: TaskData, example: TaskExample) -> dict[str, object]:
    """A row as TRL reads it: turns before the answer, and the answer."""
    answer = [{"role": "assistant", "content": example.target}]
    row: dict[str, object] = {"id": example.id, "prompt": task.messages(example), "completion": answer}
    if example.rejected:
        row["rejected"] = [{"role": "assistant", "content": example.rejected}]
    return row | ({"group": example.group} if example.group else {})


def requirements(recipe: TrainingRecipe) -> str:
    """The packages, from what the scripts are tested with up to the next major version."""
    return "".join(f"{name}{bounds(name)}\n" for name in (*PACKAGES, *[QUANTISING] * bool(recipe.setup.quantised)))


def bounds(name: str) -> str:
    """Versions of a package; none where it is not here. What is local to a build is left out."""
    try:
        here = version(name).partition("+")[0]
    except ModuleNotFoundError:
        return ""
    major = int(here.partition(".")[0])
    return f">={OLDEST.get(name, here)},<{major + 1}" if major else f">={here},<1"


def in_a_table(value: object) -> str:
    """A text that breaks no table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


def at_once(recipe: TrainingRecipe) -> str:
    """How often a micro-batch comes before a step, where it is not once."""
    return f", {recipe.accumulation} times before each step" if recipe.accumulation > 1 else " a step"


def served_context(recipe: TrainingRecipe) -> int:
    """Tokens of the longest row and its answer, up to a power of two, and no more than the model has positions."""
    whole = max(2048, 2 ** (recipe.max_length + recipe.max_new_tokens - 1).bit_length())
    return min(whole, recipe.context or whole)


def served_rank(rank: int) -> int:
    """The smallest of vLLM's values of --max-lora-rank that holds a rank."""
    return next(size for size in (1, 8, 16, 32, 64, 128, 256, 320, 512) if size >= rank)
