"""What the scripts share: the recipe, the options and checkpoints of a training, the base model, and the rows."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

if "LOCAL_RANK" not in os.environ:  # not started by `accelerate launch`
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one card: on more the Trainer would split each batch

import datasets
import torch
import transformers
import yaml
from huggingface_hub.errors import HfHubHTTPError
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer

datasets.disable_progress_bars()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()  # of loading; the training's own stays
warnings.filterwarnings("ignore", category=FutureWarning)  # among the libraries themselves

HERE = Path(__file__).resolve().parent
PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))  # `accelerate launch` starts one for each card
RANK, LOCAL_RANK = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
TEMPLATE = {"enable_thinking": False}  # for the templates that know it: answers without a chain of thought
REPORTERS = {"tensorboard": "tensorboard", "wandb": "wandb"}  # and their packages


class Recipe(dict):
    """The settings in recipe.yaml."""

    def __missing__(self, name: str):
        raise SystemExit(f"recipe.yaml has no {name}: put it back, or have `peftbook recipe` write the folder again.")


def read_recipe() -> Recipe:
    """What recipe.yaml says."""
    try:
        said = yaml.safe_load((HERE / "recipe.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SystemExit(f"recipe.yaml is no YAML ({' '.join(str(error).split())}): correct it.") from None
    if not isinstance(said, dict):
        raise SystemExit("recipe.yaml has no settings: have `peftbook recipe` write the folder again.")
    return Recipe(said)


RECIPE = read_recipe()


# --- a training -----------------------------------------------------------------------------------------------


def parser(text: str | None) -> argparse.ArgumentParser:
    """What may be changed without editing recipe.yaml."""
    options = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--learning-rate", type=float, default=RECIPE["learning_rate"])
    options.add_argument("--epochs", type=float, default=RECIPE["epochs"])
    options.add_argument("--max-steps", type=int, default=-1, help="end after so many, for a trial")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=HERE / "adapter")
    options.add_argument("--resume", action="store_true", help="from the last checkpoint of this --out")
    options.add_argument("--report-to", choices=("none", *REPORTERS), default="none")
    return options


def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is loaded, and clear the checkpoints of a run that was given up."""
    if args.out.exists():
        raise SystemExit(f"{args.out} exists: name a new one with --out, or move it away.")
    if args.resume and last_checkpoint(args.out) is None:
        raise SystemExit(
            f"{checkpoints_of(args.out)} has no checkpoint: leave --resume out, or name the --out of before."
        )
    if args.report_to != "none" and importlib.util.find_spec(REPORTERS[args.report_to]) is None:
        raise SystemExit(f"--report-to {args.report_to} needs a package: pip install {REPORTERS[args.report_to]}")
    if RECIPE["checkpoints"] < 2:
        raise SystemExit(f"checkpoints: {RECIPE['checkpoints']} in recipe.yaml leaves no choice: give 2 or more.")
    if RECIPE["accumulation"] % PROCESSES:
        raise SystemExit(
            f"accumulation: {RECIPE['accumulation']} in recipe.yaml cannot be shared by {PROCESSES} cards: make it a "
            f"multiple of {PROCESSES}, and micro_batch smaller by as much, so that a step has as many rows as before."
        )
    answers = RECIPE["micro_batch"] * RECIPE["accumulation"]
    if answers % RECIPE.get("generations", 1):
        raise SystemExit(
            f"generations: {RECIPE['generations']} in recipe.yaml do not divide the {answers} answers of a step "
            "(micro_batch · accumulation): choose a divisor."
        )
    if not args.resume and RANK == 0:
        shutil.rmtree(checkpoints_of(args.out), ignore_errors=True)


def checkpoints_of(out: Path) -> Path:
    """Beside the adapter that comes of them."""
    return out.with_name(f"{out.name}-checkpoints")


def last_checkpoint(out: Path) -> Path | None:
    """The last one that is whole: its trainer_state.json is written last."""
    whole = [path.parent for path in checkpoints_of(out).glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def shared_settings(args: argparse.Namespace, best: str = "eval_loss") -> dict:
    """The trainer's settings that are the same in every stage. best: by what checkpoints are compared."""
    return {
        "output_dir": str(checkpoints_of(args.out)),
        "num_train_epochs": args.epochs,
        "max_steps": args.max_steps,
        "per_device_train_batch_size": RECIPE["micro_batch"],
        "per_device_eval_batch_size": RECIPE["micro_batch"],
        "gradient_accumulation_steps": RECIPE["accumulation"] // PROCESSES,
        "gradient_checkpointing": RECIPE["checkpointing"],
        "learning_rate": args.learning_rate,
        "lr_scheduler_type": RECIPE["schedule"],
        "warmup_steps": RECIPE["warmup"],
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": compute_dtype() is torch.bfloat16,
        "fp16": compute_dtype() is torch.float16,
        "eval_strategy": "steps",
        "eval_steps": 1 / RECIPE["checkpoints"],  # below 1: a share of all steps
        "save_strategy": "steps",
        "save_steps": 1 / RECIPE["checkpoints"],
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": best,
        "greater_is_better": best != "eval_loss",
        "logging_steps": 10,
        "seed": args.seed,
        "report_to": args.report_to,
        "use_cpu": not torch.cuda.is_available(),
    }


def adapter() -> LoraConfig:
    """LoRA on the matrices that recipe.yaml names."""
    return LoraConfig(
        r=RECIPE["rank"],
        lora_alpha=RECIPE["alpha"],
        target_modules=RECIPE["targets"],
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def in_float32(trainer: Trainer) -> Trainer:
    """The trainer with its adapter in float32: TRL makes one over 4 bits bfloat16, where small updates round to 0."""
    for weight in trainer.model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return trainer


def train(trainer_of: Callable[..., Trainer], text: str | None, argv: list[str] | None) -> Trainer:
    """Train, keep the best checkpoint, and say what it took. The adapter's folder is there once it is whole.

    trainer_of: makes the stage's trainer of model, tokenizer and options.  text: describes the script.
    """
    args = parser(text).parse_args(argv)
    check(args)
    tokenizer = load_tokenizer()
    trainer = trainer_of(load_model(), tokenizer, args)
    trainer.train(resume_from_checkpoint=str(last_checkpoint(args.out)) if args.resume else None)
    part = args.out.with_name(f"{args.out.name}-part")
    trainer.save_model(str(part))
    if not trainer.is_world_process_zero():
        return trainer
    shutil.copyfile(HERE / "README.md", part / "README.md")  # the card travels with the adapter
    part.rename(args.out)
    name = trainer.args.metric_for_best_model.removeprefix("eval_")
    print(f"Best validation {name}: {trainer.state.best_metric:.4f}; the adapter is in {args.out}")
    if torch.cuda.is_available():
        measured, predicted = torch.cuda.max_memory_allocated() / 2**30, RECIPE["predicted_peak_bytes"] / 2**30
        print(f"Tensors at the peak: {measured:.2f} GiB; predicted {predicted:.2f} GiB")
    return trainer


# --- the base model -------------------------------------------------------------------------------------------


def load_tokenizer() -> AutoTokenizer:
    """The model's own; where it has no token for padding, the end of a text serves, which no loss sees."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(RECIPE["model"], revision=RECIPE["revision"])
    except OSError as error:
        if (status := status_of(error)) in (401, 403):
            raise SystemExit(
                f"The hub refuses {RECIPE['model']} ({status}): accept its terms at "
                f"https://huggingface.co/{RECIPE['model']}, then run `hf auth login`."
            ) from None
        raise
    if tokenizer.chat_template is None:
        raise SystemExit(f"{RECIPE['model']} has no chat template: take its instruct version.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def status_of(error: BaseException | None) -> int | None:
    """The hub's answer behind an error, or None."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__ or error.__context__
    return None if error is None else error.response.status_code


def compute_dtype() -> torch.dtype:
    """bfloat16; on a card that has no instructions for it (before Ampere, as the T4) float16 with scaled losses."""
    lacking = torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.float16 if lacking else torch.bfloat16


def load_model() -> AutoModelForCausalLM:
    """The frozen base, in two bytes a weight or in 4 bits (NF4 with doubly quantised constants)."""
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype(),
    )
    return AutoModelForCausalLM.from_pretrained(
        RECIPE["model"],
        revision=RECIPE["revision"],
        dtype=compute_dtype(),
        attn_implementation=RECIPE["attention"],
        quantization_config=four_bits if RECIPE["quantised"] else None,
        device_map={"": f"cuda:{LOCAL_RANK}" if torch.cuda.is_available() else "cpu"},
    )


# --- rows -----------------------------------------------------------------------------------------------------


def read_rows(split: str) -> list[dict]:
    """The rows of a split as they were written: no reader of tables takes an answer like 2024-05-01 for a date."""
    lines = (HERE / "data" / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def tokens_of(turns: list[dict], tokenizer: AutoTokenizer, **template) -> list[int]:
    """A chat as the model reads it."""
    text = tokenizer.apply_chat_template(turns, tokenize=False, **TEMPLATE, **template)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def those_that_fit(split: str, rows: list[dict], lengths: list[int]) -> list[dict]:
    """The rows of up to max_length tokens. Longer ones are left out: an answer that is cut teaches to stop midway."""
    kept = [row for row, length in zip(rows, lengths, strict=True) if length <= RECIPE["max_length"]]
    if RANK == 0:
        print(
            f"{split}: {len(kept):,} rows, {len(rows) - len(kept):,} longer than {RECIPE['max_length']} tokens left out"
        )
    if not kept:
        raise SystemExit(
            f"No row of {split} has at most {RECIPE['max_length']} tokens: raise max_length in recipe.yaml."
        )
    return kept
