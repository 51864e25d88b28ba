"""Train an adapter on the rows in data/ with TRL and peft, by the settings in recipe.yaml.

    python train.py                                             # on a GPU; without one on the CPU, for a trial
    python train.py --learning-rate 5e-5 --out adapter-low      # another rate: compare the validation losses
    python train.py --resume                                    # after a stop, with the options of before
    accelerate launch --num_processes 4 train.py                # on four cards, which share the rows of a step

It needs the packages in requirements.txt and nothing else.
"""

from __future__ import annotations

import argparse

from common import (
    RANK,
    RECIPE,
    TEMPLATE,
    adapter,
    in_float32,
    read_rows,
    shared_settings,
    those_that_fit,
    tokens_of,
    train,
)
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template, has_generation_markers


def main(argv: list[str] | None = None) -> None:
    """Train on the answers."""
    train(trainer_of, __doc__, argv)


def trainer_of(model: AutoModelForCausalLM, tokenizer: AutoTokenizer, args: argparse.Namespace) -> SFTTrainer:
    """LoRA with the loss on the answers alone."""
    marked = RECIPE["every_answer"] and marking_template(tokenizer) is not None
    if RECIPE["every_answer"] and RANK == 0:
        how = "marks of the chat template, or of TRL's for it" if marked else "rendering turn by turn, without marks"
        print(f"The loss is on every answer of a chat, found by {how}")
    settings = SFTConfig(
        **shared_settings(args),
        max_length=RECIPE["max_length"],
        completion_only_loss=not RECIPE["every_answer"],
        assistant_only_loss=marked,
        train_sampling_strategy="group_by_length" if RECIPE["group_by_length"] else "random",
    )
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=rows_of("train", tokenizer),
        eval_dataset=rows_of("validation", tokenizer),
        processing_class=tokenizer,
        peft_config=adapter(),
    )
    return in_float32(trainer)


def rows_of(split: str, tokenizer: AutoTokenizer) -> Dataset:
    """Each row as the trainer reads it."""
    template = marking_template(tokenizer)

    def given(row: dict) -> dict:
        if not RECIPE["every_answer"]:
            return {name: row[name] for name in ("prompt", "completion")} | {"chat_template_kwargs": TEMPLATE}
        turns = row["prompt"] + row["completion"]
        return {"messages": turns, "chat_template_kwargs": TEMPLATE} if template else labelled(turns, tokenizer)

    rows = read_rows(split)
    chats = [row["prompt"] + row["completion"] for row in rows]
    lengths = [len(tokens_of(turns, tokenizer, chat_template=template)) for turns in chats]
    return Dataset.from_list([given(row) for row in those_that_fit(split, rows, lengths)])


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


if __name__ == "__main__":
    main()
