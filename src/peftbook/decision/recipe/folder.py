"""The folder of a recipe: settings, scripts, rows, how to serve, and the model card; whole or not at all."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from string import Template

from peftbook.core import specs
from peftbook.core.base_models import in_folder
from peftbook.core.folders import check_free
from peftbook.decision.recipe.choice import LORA, WARMUP, TrainingRecipe
from peftbook.tasks import TaskData, TaskExample

FILES = Path(__file__).resolve().parent / "files"
SCRIPTS = ("train.py", "evaluate.py")
PAGES = ("README.md", "serve.md")
PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate")
QUANTISING = "bitsandbytes"
MARGIN = 0.02  # of a share, below which a difference does not matter: the book's own


def settings_of(recipe: TrainingRecipe, source: str, revision: str) -> dict[str, object]:
    """What the scripts read. source: where the model is loaded from."""
    setup = recipe.setup
    return {
        "model": source,
        "revision": revision or "main",
        "quantised": bool(setup.quantised),
        "attention": setup.attention,
        "rank": setup.rank,
        "alpha": LORA.alpha,  # type: ignore[attr-defined]
        "targets": recipe.modules,
        "micro_batch": recipe.micro_batch,
        "accumulation": recipe.accumulation,
        "checkpointing": setup.checkpointing,
        "max_length": recipe.max_length,
        "every_answer": recipe.every_answer,
        "epochs": recipe.epochs,
        "learning_rate": recipe.learning_rate,
        "warmup": WARMUP,
        "max_new_tokens": recipe.max_new_tokens,
        "margin": MARGIN,
        "predicted_peak_bytes": round(recipe.peak),
    }


def write_folder(
    out: Path,
    recipe: TrainingRecipe,
    task: TaskData,
    model: specs.Model,
    source: str,
    data_name: str,
    command: str,
    data_licence: str = "",
) -> None:
    """Write the scripts with what they read. Raises InputError where the folder is there."""
    check_free(out)
    settings = settings_of(recipe, source, model.revision if source == model.name else "")
    words = words_of(recipe, settings, task, model, source, data_name, command, data_licence)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".peftbook-") as folder:
        work = Path(folder)
        work.chmod(0o755)
        (work / "recipe.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        (work / "requirements.txt").write_text(requirements(recipe), encoding="utf-8")
        for name in SCRIPTS:
            shutil.copyfile(FILES / name, work / name)
        for name in PAGES:
            text = Template((FILES / name).read_text(encoding="utf-8")).substitute(escaped(words))
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
    return row | ({"group": example.group} if example.group else {})


def requirements(recipe: TrainingRecipe) -> str:
    """The packages with the versions that are here, or none where one is not."""
    names = [*PACKAGES, QUANTISING] if recipe.setup.quantised else [*PACKAGES]
    return "".join(f"{name}{least(name)}\n" for name in names)


def least(name: str) -> str:
    """`>=` the installed version without what is local to its build."""
    try:
        return f">={version(name).partition('+')[0]}"
    except ModuleNotFoundError:
        return ""


def words_of(
    recipe: TrainingRecipe,
    settings: dict[str, object],
    task: TaskData,
    model: specs.Model,
    source: str,
    data_name: str,
    command: str,
    data_licence: str,
) -> dict[str, str]:
    """What the pages say of a recipe."""
    low, high = (f"{size / 2**30:.1f}" for size in recipe.band)
    counts = {name: f"{len(rows):,}" for name, rows in task.splits.items()}
    return {
        "model": Path(model.name).name if in_folder(model) else model.name,
        "base_model": Path(model.name).name if in_folder(model) else model.name,
        "source": shlex.quote(source),
        "method": recipe.label,
        "why": f"{recipe.label}. {recipe.why}",
        "rank": str(settings["rank"]),
        "alpha": f"{settings['alpha']:g}",
        "targets": ", ".join(recipe.modules),
        "rate": f"{recipe.learning_rate:g}",
        "rate_reason": recipe.rate_reason,
        "batch": f"{recipe.micro_batch} rows{at_once(recipe)}",
        "max_length": str(recipe.max_length),
        "loss": "every answer of a chat" if recipe.every_answer else "the answer",
        "epochs": f"{recipe.epochs:g}",
        "steps": f"{recipe.steps:,}",
        "peak": f"{recipe.peak / 2**30:.1f}",
        "band": f"{low} to {high}",
        "base": "4 bits (NF4, double quantisation)" if settings["quantised"] else "bfloat16",
        "data": data_name,
        "data_sha256": task.data_sha256,
        "data_licence": data_licence or "not said: add it before you publish",
        "train_rows": counts["train"],
        "validation_rows": counts["validation"],
        "test_rows": counts["test"],
        "left_out": f"{recipe.left_out:,}",
        "instruction": "the input alone" if task.instruction == "{input}" else task.instruction,
        "weights": f"{2 * recipe.parameters / 2**30:.0f}",
        "command": command,
        "served_rank": str(served_rank(recipe.setup.rank)),
        "context": str(served_context(recipe)),
    }


def escaped(words: dict[str, str]) -> dict[str, str]:
    """Texts that break no table."""
    return {name: text.replace("|", "\\|").replace("\n", " ") for name, text in words.items()}


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
