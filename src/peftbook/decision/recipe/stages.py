"""Stages: what a training learns from, answers, preference pairs or a reward, and what that asks of its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from peftbook.core.errors import InputError
from peftbook.core.specs import Budget
from peftbook.decision.own_metrics import Metric, own_scores
from peftbook.evidence.literature import published
from peftbook.memory import DecoderShape, read_shape
from peftbook.studies.chosen_rates import learning_rate_for
from peftbook.tasks import TaskData

BATCH: int = Budget.model_fields["batch_size"].default  # the records' own: a rate belongs to a batch
WARMUP: float = Budget.model_fields["warmup"].default
SWEEP = 3.0  # between the rates that are worth trying
GENERATIONS = 4  # answers to a prompt in a step of GRPO
CHECKED = 2000  # targets that a metric is tried on
COMPLETION = 512  # tokens that such an answer may have at least: TRL's default
ANSWER = "the answer, its end of turn included"
SWEPT = {  # LoRA's best rate on Tulu 3 in batches of 128: tinker_cookbook/hyperparam_utils.py, read at 02face348b50
    **dict.fromkeys(
        ("Llama-3.1-8B", "Llama-3.1-8B-Instruct", "Llama-3.1-70B", "Llama-3.3-70B-Instruct", "Qwen3-32B"), 3e-4
    ),
    **dict.fromkeys(("Llama-3.2-1B", "Llama-3.2-3B", "Qwen3-4B-Instruct-2507", "Qwen3-8B", "Qwen3-30B-A3B"), 1e-3),
    "gpt-oss-20b": 1e-4,
    "gpt-oss-120b": 3e-4,
}


@dataclass(frozen=True)
class Stage:
    """A way to train. epochs: passes at most, the best checkpoint is kept.  schedule, warmup: of the learning rate.

    rows: of a step, counted as the trainer does; of GRPO each answer is one.  judged: by what checkpoints are compared.
    loss: what the model learns from, in words.
    """

    name: str
    trainer: str
    epochs: float
    schedule: str
    warmup: float
    rows: int
    judged: str
    loss: str


STAGES = {
    stage.name: stage
    for stage in (
        Stage("sft", "SFTTrainer", 3.0, "constant_with_warmup", WARMUP, BATCH, "validation loss", ANSWER),
        Stage("dpo", "DPOTrainer", 1.0, "cosine", 0.1, BATCH, "validation loss", "the chosen answer against the other"),
        Stage(
            "grpo", "GRPOTrainer", 1.0, "constant_with_warmup", WARMUP, BATCH * GENERATIONS, "validation reward",
            "the model's own answers, weighted by their rewards",
        ),
    )
}  # fmt: skip


def choose_stage(asked: str, task: TaskData, metrics: Sequence[Metric]) -> tuple[Stage, TaskData, str]:
    """The stage, its rows, and why it was taken where nobody asked for one.

    asked: its name, or nothing. Raises InputError for rows that it cannot learn from and for a metric by which a target
    is no right answer.
    """
    pairs = any(example.rejected for examples in task.splits.values() for example in examples)
    name = asked or ("dpo" if pairs else "sft")
    if pairs or name == "dpo":
        task = preference_pairs(task) if name == "dpo" else chosen_alone(task)
    if name == "grpo" and not metrics:
        raise InputError("Stage grpo needs a reward: declare one, as in --metric total=number:rel=0.01.")
    targets = [example.target for examples in task.splits.values() for example in examples][:CHECKED]
    for metric in metrics:
        own_scores(metric, [targets], targets)
    why = "The rows are preference pairs: the stage is DPO, which learns from both answers (sft: from the chosen one)."
    return STAGES[name], task, why if name == "dpo" and not asked else ""


def preference_pairs(task: TaskData) -> TaskData:
    """The rows whose rejected answer differs from the chosen one. Raises InputError where a split has none."""
    splits = {
        name: tuple(one for one in examples if one.rejected.strip() and one.rejected != one.target)
        for name, examples in task.splits.items()
    }
    if empty := next((name for name, examples in splits.items() if not examples), ""):
        raise InputError(
            f"Stage dpo needs preference pairs, and no {empty} row has a `rejected` answer that differs from the "
            "chosen one: give rows with prompt, chosen and rejected, or --stage sft."
        )
    return replace(task, splits=splits)


def chosen_alone(task: TaskData) -> TaskData:
    """The rows without what was rejected."""
    splits = {name: tuple(replace(one, rejected="") for one in examples) for name, examples in task.splits.items()}
    return replace(task, splits=splits)


# --- rates ----------------------------------------------------------------------------------------------------


def rate_for(shape: DecoderShape, name: str = "", stage: str = "sft") -> tuple[float, str]:
    """LoRA's learning rate for a model of this shape and hub id, to two digits, and what it rests on."""
    if stage == "sft":
        return rate_of_answers(shape, name)
    rate = float(published(f"trl-{stage}-lora-rate").value)
    if stage == "dpo":
        beside = (
            f"TRL's example of DPO with LoRA; its guide says about {published('trl-dpo-guide-rate')}, the Alignment "
            f"Handbook has {published('alignmenthandbook-dpo-rate')} for zephyr-7b-dpo-qlora, and DPO's authors train "
            f"all weights with {published('rafailov2023-rate')}"
        )
    else:
        full, ratio = (float(published(key).value) for key in ("trl-grpo-full-rate", "schulman2025-rate-ratio"))
        beside = (
            f"TRL's guide to GRPO with LoRA; its default for all weights is {full:g}, and LoRA's best is {ratio:g} "
            f"times theirs in the fit of Schulman et al. 2025, which gives {full * ratio:.1e}"
        )
    return rate, (
        f"{beside}. None is ours: no run here has tuned this stage. Try {rate / SWEEP:.1e} and {rate * SWEEP:.1e} too, "
        "and take the best on the validation rows"
    )


def rate_of_answers(shape: DecoderShape, name: str) -> tuple[float, str]:
    """SFT's rate, from the records' own, and the other numbers that people take.

        rate = recorded rate · (recorded width / width)^p

    p is fitted by Schulman et al. (2025) for two families; for another one the more careful of the two is taken.
    """
    recorded, width = learning_rate_for("lora"), read_shape("smollm2-135m").hidden
    family = "qwen" if shape.family.startswith("qwen") else "llama"
    power = float(published(f"schulman2025-rate-exponent-{family}").value)
    rate = float(f"{recorded * (width / shape.hidden) ** power:.1e}")
    own = (
        ""
        if shape.family.startswith(("qwen", "llama")) or not shape.family
        else f", the more careful of two families, as none is fitted for {shape.family}"
    )
    swept = SWEPT.get(name.rpartition("/")[2])
    table = f"{swept:g} for this model" if swept else f"{min(SWEPT.values()):g} to {max(SWEPT.values()):g} for others"
    return rate, (
        f"{recorded:g} was best at width {width} (methods.lora_best_rate: SmolLM2-135M, docstrings, batches of "
        f"{BATCH}), times ({width}/{shape.hidden})^{power:g} by the fit of Schulman et al. 2025{own}. The authors' "
        f"table has {table}, in batches of 128; the usual default is {published('trl-sft-lora-rate')} (TRL's example). "
        "Ours is taken because the best rate moves with the batch, and it was found with this recipe's. It is an "
        f"extrapolation: try {rate / SWEEP:.1e} and {rate * SWEEP:.1e} too, and take the lowest validation loss"
    )
