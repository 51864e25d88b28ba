"""Train an adapter on the preference pairs in data/ with TRL and peft (DPO), by the settings in recipe.yaml.

    python train.py                                             # on a GPU; without one on the CPU, for a trial
    python train.py --learning-rate 2e-6 --out adapter-low      # another rate: compare the validation losses
    python train.py --resume                                    # after a stop, with the options of before
    accelerate launch --num_processes 4 train.py                # on four cards, which share the pairs of a step

It needs the packages in requirements.txt and nothing else. The model without its adapter is the reference, so that no
second copy of the weights is held. In the log, rewards/accuracies is the share of pairs whose chosen answer gains more
than the rejected one over the reference, and rewards/chosen the gain of the chosen one, times beta.
"""

from __future__ import annotations

import argparse

from common import (
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
from trl import DPOConfig, DPOTrainer


def main(argv: list[str] | None = None) -> None:
    """Train on the pairs, and say whether the chosen answers became less likely."""
    trainer = train(trainer_of, __doc__, argv)
    name, best = "eval_rewards/chosen", trainer.state.best_global_step
    chosen = next(entry[name] for entry in trainer.state.log_history if name in entry and entry["step"] == best)
    if trainer.is_world_process_zero() and round(chosen, 2) < 0:
        print(
            f"The chosen answers became less likely than before (rewards/chosen {chosen:.2f} on the validation rows). "
            "Where their wording matters, write loss: [sigmoid, sft] in recipe.yaml and train again."
        )


def trainer_of(model: AutoModelForCausalLM, tokenizer: AutoTokenizer, args: argparse.Namespace) -> DPOTrainer:
    """LoRA, held to the model without it."""
    settings = DPOConfig(
        **shared_settings(args),
        max_length=RECIPE["max_length"],
        beta=float(RECIPE["beta"]),
        loss_type=RECIPE["loss"],
    )
    trainer = DPOTrainer(
        model=model,
        ref_model=None,  # with peft_config: the same model, the adapter switched off
        args=settings,
        train_dataset=rows_of("train", tokenizer),
        eval_dataset=rows_of("validation", tokenizer),
        processing_class=tokenizer,
        peft_config=adapter(),
    )
    return in_float32(trainer)


def rows_of(split: str, tokenizer: AutoTokenizer) -> Dataset:
    """Each pair as the trainer reads it; its length is that of the longer answer."""

    def given(row: dict) -> dict:
        pair = {"prompt": row["prompt"], "chosen": row["completion"], "rejected": row["rejected"]}
        return pair | {"chat_template_kwargs": TEMPLATE}

    rows = read_rows(split)
    lengths = [
        max(len(tokens_of(row["prompt"] + row[name], tokenizer)) for name in ("completion", "rejected")) for row in rows
    ]
    return Dataset.from_list([given(row) for row in those_that_fit(split, rows, lengths)])


if __name__ == "__main__":
    main()
