"""Train an adapter on the rows in data/ with TRL and peft, by the settings in recipe.json.

    python train.py                                             # on a GPU; without one on the CPU, for a trial
    python train.py --learning-rate 5e-5 --out adapter-low      # another rate: compare the validation losses
    python train.py --resume                                    # after a stop, with the options of before

It needs the packages in requirements.txt and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one card: on more the Trainer would split each batch

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

HERE = Path(__file__).resolve().parent
RECIPE = json.loads((HERE / "recipe.json").read_text(encoding="utf-8"))
TEMPLATE = {"enable_thinking": False}  # for the templates that know it: answers without a chain of thought


def main(argv: list[str] | None = None) -> None:
    """Train, keep the checkpoint with the lowest validation loss, and say what it took."""
    args = parser().parse_args(argv)
    if args.out.exists():
        raise SystemExit(f"{args.out} exists: name a new one with --out, or move it away.")
    checkpoints = checkpoints_of(args.out)
    if args.resume and not any(checkpoints.glob("checkpoint-*")):
        raise SystemExit(f"{checkpoints} has no checkpoint: leave --resume out, or name the --out of before.")
    if not args.resume:
        shutil.rmtree(checkpoints, ignore_errors=True)  # of a run of this name that was given up
    tokenizer = load_tokenizer()
    trainer = trainer_of(load_model(), tokenizer, args)
    trainer.train(resume_from_checkpoint=args.resume or None)
    trainer.save_model(str(args.out))
    (args.out / "README.md").write_bytes((HERE / "README.md").read_bytes())  # the card travels with the adapter
    print(f"Validation loss {trainer.state.best_metric:.4f} nats a token; the adapter is in {args.out}")
    if torch.cuda.is_available():
        measured, predicted = torch.cuda.max_memory_allocated() / 2**30, RECIPE["predicted_peak_bytes"] / 2**30
        print(f"Tensors at the peak: {measured:.2f} GiB; predicted {predicted:.2f} GiB")


def parser() -> argparse.ArgumentParser:
    """What may be changed without editing recipe.json."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--learning-rate", type=float, default=RECIPE["learning_rate"])
    options.add_argument("--epochs", type=float, default=RECIPE["epochs"])
    options.add_argument("--max-steps", type=int, default=-1, help="end after so many, for a trial")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=HERE / "adapter")
    options.add_argument("--resume", action="store_true", help="from the last checkpoint of this --out")
    return options


def checkpoints_of(out: Path) -> Path:
    """Beside the adapter that comes of them."""
    return out.with_name(f"{out.name}-checkpoints")


def load_tokenizer() -> AutoTokenizer:
    """The model's own; where it has no token for padding, the end of a text serves, which no loss sees."""
    tokenizer = AutoTokenizer.from_pretrained(RECIPE["model"], revision=RECIPE["revision"])
    if tokenizer.chat_template is None:
        raise SystemExit(f"{RECIPE['model']} has no chat template: take its instruct version.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
        device_map={"": "cuda:0" if torch.cuda.is_available() else "cpu"},
    )


def read_rows(split: str) -> list[dict]:
    """The rows of a split as they were written: no reader of tables takes an answer like 2024-05-01 for a date."""
    lines = (HERE / "data" / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def rows_of(split: str, tokenizer: AutoTokenizer) -> Dataset:
    """Each row as the trainer reads it. Longer rows are left out: an answer that is cut teaches to stop midway."""
    template = marking_template(tokenizer)

    def fits(row: dict) -> bool:
        turns = row["prompt"] + row["completion"]
        text = tokenizer.apply_chat_template(turns, tokenize=False, chat_template=template, **TEMPLATE)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= RECIPE["max_length"]

    def given(row: dict) -> dict:
        if not RECIPE["every_answer"]:
            return {name: row[name] for name in ("prompt", "completion")} | {"chat_template_kwargs": TEMPLATE}
        turns = row["prompt"] + row["completion"]
        return {"messages": turns, "chat_template_kwargs": TEMPLATE} if template else labelled(turns, tokenizer)

    rows = read_rows(split)
    kept = [given(row) for row in rows if fits(row)]
    print(f"{split}: {len(kept):,} rows, {len(rows) - len(kept):,} longer than {RECIPE['max_length']} tokens left out")
    if not kept:
        raise SystemExit(
            f"No row of {split} has at most {RECIPE['max_length']} tokens: raise max_length in recipe.json."
        )
    return Dataset.from_list(kept)


def marking_template(tokenizer: AutoTokenizer) -> str | None:
    """The template that marks the answers of a chat for the loss: the model's own, or TRL's for it; None for neither.

    Where rows have one answer it is the model's own, and needs no marks.
    """
    if not RECIPE["every_answer"] or has_generation_markers(tokenizer.chat_template):
        return tokenizer.chat_template
    try:
        return get_training_chat_template(tokenizer)
    except ValueError:
        return None


def labelled(turns: list[dict], tokenizer: AutoTokenizer) -> dict:
    """Token ids of a chat, and labels on each answer with its end of turn, found by rendering turn by turn."""

    def render(count: int, asking: bool = False) -> str:
        return tokenizer.apply_chat_template(turns[:count], add_generation_prompt=asking, tokenize=False, **TEMPLATE)

    whole, spans = render(len(turns)), []
    for at in (place for place, turn in enumerate(turns) if turn["role"] == "assistant"):
        before, after = render(at, asking=True) if at else "", render(at + 1)
        if not (whole.startswith(after) and after.startswith(before)):
            raise SystemExit(
                f"The chat template of {RECIPE['model']} has no generation marks, TRL has none for it, and it writes "
                "an answer otherwise when turns follow: put {% generation %} around it, or give rows of one answer."
            )
        spans.append((len(before), len(after)))
    found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    graded = [any(low <= start < high for low, high in spans) for start, _ in found["offset_mapping"]]
    labels = [token if yes else -100 for token, yes in zip(found["input_ids"], graded, strict=True)]
    return {"input_ids": found["input_ids"], "labels": labels}


def trainer_of(model: AutoModelForCausalLM, tokenizer: AutoTokenizer, args: argparse.Namespace) -> SFTTrainer:
    """LoRA on the matrices that recipe.json names, with the loss on the answers alone."""
    marked = RECIPE["every_answer"] and marking_template(tokenizer) is not None
    if RECIPE["every_answer"]:
        how = "marks of the chat template, or of TRL's for it" if marked else "rendering turn by turn, without marks"
        print(f"The loss is on every answer of a chat, found by {how}")
    adapter = LoraConfig(
        r=RECIPE["rank"],
        lora_alpha=RECIPE["alpha"],
        target_modules=RECIPE["targets"],
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    settings = SFTConfig(
        output_dir=str(checkpoints_of(args.out)),
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=RECIPE["micro_batch"],
        per_device_eval_batch_size=RECIPE["micro_batch"],
        gradient_accumulation_steps=RECIPE["accumulation"],
        gradient_checkpointing=RECIPE["checkpointing"],
        max_length=RECIPE["max_length"],
        completion_only_loss=not RECIPE["every_answer"],
        assistant_only_loss=marked,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=RECIPE["warmup"],
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=compute_dtype() is torch.bfloat16,
        fp16=compute_dtype() is torch.float16,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=10,
        seed=args.seed,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=rows_of("train", tokenizer),
        eval_dataset=rows_of("validation", tokenizer),
        processing_class=tokenizer,
        peft_config=adapter,
    )
    for weight in trainer.model.parameters():
        if weight.requires_grad:  # TRL makes adapters over 4 bits bfloat16, where small updates round to nothing
            weight.data = weight.data.float()
    return trainer


if __name__ == "__main__":
    main()
