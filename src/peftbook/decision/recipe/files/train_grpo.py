"""Train an adapter on the model's own answers with TRL and peft (GRPO): the first metric in recipe.yaml rewards them.

    python train.py                                             # on a GPU; without one on the CPU, for a trial
    python train.py --learning-rate 3e-6 --out adapter-low      # another rate: compare the validation rewards
    python train.py --resume                                    # after a stop, with the options of before
    accelerate launch --num_processes 4 train.py                # on four cards, which share the answers of a step

It needs peftbook beside the packages in requirements.txt: the reward is the very metric that evaluate.py scores with.
In the log, reward is the mean of all answers, and frac_reward_zero_std the share of prompts whose answers all earned
the same, from which nothing is learnt: where that stays near 1, the task is too easy or too hard for this model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

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
from trl import GRPOConfig, GRPOTrainer

from peftbook.decision.own_metrics import declared
from peftbook.decision.own_metrics.kinds import scorer


def main(argv: list[str] | None = None) -> None:
    """Train on rewarded answers."""
    train(trainer_of, __doc__, argv)


def trainer_of(model: AutoModelForCausalLM, tokenizer: AutoTokenizer, args: argparse.Namespace) -> GRPOTrainer:
    """LoRA; answers to one prompt are compared with each other, and no reference model is held (beta is 0)."""
    settings = GRPOConfig(
        **shared_settings(args, best="eval_reward"),
        num_generations=RECIPE["generations"],
        num_generations_eval=1,
        max_completion_length=RECIPE["max_new_tokens"],
        chat_template_kwargs=TEMPLATE,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward(),
        args=settings,
        train_dataset=rows_of("train", tokenizer),
        eval_dataset=rows_of("validation", tokenizer),
        processing_class=tokenizer,
        peft_config=adapter(),
    )
    return in_float32(trainer)


def reward() -> Callable[..., list[float]]:
    """The first metric as TRL asks for it: what each answer scores against its row's target, 0–1."""
    metric = declared(RECIPE["metrics"][0])
    score = scorer(metric)

    def by_metric(completions: list[list[dict]], target: list[str], **others: object) -> list[float]:
        return [score(turns[0]["content"].strip(), right) for turns, right in zip(completions, target, strict=True)]

    by_metric.__name__ = metric.name  # in the log
    return by_metric


def rows_of(split: str, tokenizer: AutoTokenizer) -> Dataset:
    """Each prompt with its target; its length is that with the longest answer that may be written."""
    rows = read_rows(split)
    asked = [tokens_of(row["prompt"], tokenizer, add_generation_prompt=True) for row in rows]
    kept = those_that_fit(split, rows, [len(tokens) + RECIPE["max_new_tokens"] for tokens in asked])
    return Dataset.from_list([{"prompt": row["prompt"], "target": row["completion"][0]["content"]} for row in kept])


if __name__ == "__main__":
    main()
