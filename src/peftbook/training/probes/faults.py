"""Trainings with one fault each: what a user would see of it, and the checks that tell it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.evidence import metrics
from peftbook.scratch import checks
from peftbook.scratch.labels import IGNORE
from peftbook.tasks import TaskData, TaskExample, get_task
from peftbook.training.encode import Encoded, encode_example, encode_plain, encode_prompt
from peftbook.training.execute import Trainee, prepare
from peftbook.training.forward import trainable_state
from peftbook.training.generate import decode_batch
from peftbook.training.loop import Progress, arithmetic, order_of, train
from peftbook.training.merges import lora_layers
from peftbook.training.probes import Findings, positive
from peftbook.training.products import half_products

Any_ = TypeVar("Any_")
Weights = Mapping[str, Tensor]


def same(thing: Any_) -> Any_:
    """What is not at fault."""
    return thing


@dataclass(frozen=True)
class PlantedFault:
    """What a fault does to the task, to a row for training, to the model, or to the prompt that is asked."""

    task: Callable[[TaskData], TaskData] = same
    row: Callable[[Encoded], Encoded] = same
    model: Callable[[nn.Module], nn.Module] = same
    prompt: Callable[[Any, TaskData, TaskExample], list[int]] = encode_prompt


def without_end(row: Encoded) -> Encoded:
    """The end of the turn is no label; as nothing stands behind it, it need not be there."""
    return replace(row, ids=row.ids[:-1])


def whole_row(row: Encoded) -> Encoded:
    """Template and question are graded like the answer; the first token has nothing before it."""
    return replace(row, start=1)


def leaked(task: TaskData) -> TaskData:
    """Every other test row stands before the training rows."""
    return replace(task, splits=task.splits | {"train": task.splits["test"][::2] + task.splits["train"]})


def other_template(tokenizer: Any, task: TaskData, example: TaskExample) -> list[int]:
    """The question in the form of Alpaca's prompts, which this model was not trained with."""
    (turn,) = task.messages(example)
    return encode_plain(tokenizer, f"### Instruction:\n{turn['content']}\n\n### Response:\n")


def template_twice(tokenizer: Any, task: TaskData, example: TaskExample) -> list[int]:
    """A prompt that has its template already, given to what puts a template around it."""
    options = {"add_generation_prompt": True}
    text = tokenizer.apply_chat_template(task.messages(example), tokenize=False, **options)
    return tokenizer.apply_chat_template([{"role": "user", "content": text}], return_dict=False, **options)


FAULTS = {
    "none": PlantedFault(),
    "end_masked": PlantedFault(row=without_end),
    "prompt_graded": PlantedFault(row=whole_row),
    "leak": PlantedFault(task=leaked),
    "bfloat16": PlantedFault(model=lambda model: model.to(torch.bfloat16)),
    "other_template": PlantedFault(prompt=other_template),
    "template_twice": PlantedFault(prompt=template_twice),
}


def gallery(probe: specs.Probe) -> Findings:
    """Train the one run of the probe with its fault, ask it, and take every check of `scratch.checks`.

    settings: fault, one of FAULTS; every, the steps between two losses on the validation split, whose labels have the
    fault that the training rows have, as its user's would.
    measurements: the checks by their names; exact_match, of the first n_generate rows of the split; stopped_share, of
    the answers that end before the limit; answer_tokens, their mean length; loss_nats, on right labels.
    curve: train_loss_nats, gradient_norm and stuck by step; checked_step, validation_loss_nats.
    per_example: of the rows asked: exact_match, answer_tokens, in_training (0 or 1), loss_nats, label_tokens, answer.
    """
    (run,), fault = probe.runs, FAULTS.get(probe.word("fault"))
    (every,) = positive(probe, "every")
    if fault is None or run.budget is None:
        raise InputError(
            f"The probe's fault is {probe.word('fault')!r}: give a run that trains, and one of {[*FAULTS]}."
        )
    task = fault.task(get_task(run.task.name))
    trainee = prepare(run, task)
    fault.model(trainee.model)
    started = {name: value.detach().clone() for name, value in trainable_state(trainee.model).items()}
    rows = [fault.row(row) for row in trainee.encoded]
    examples = task.splits[run.evaluation.split][: run.evaluation.n_generate]
    prompts = [fault.prompt(trainee.tokenizer, task, example) for example in examples]
    with order_of(run, trainee.model):
        curve = follow(trainee, rows, [fault.row(row) for row in encoded(trainee, "validation")], every)
        nats, counts = trainee.losses(encoded(trainee, run.evaluation.split))
    answers = ask(trainee, prompts)
    texts = [trainee.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
    right = metrics.exact_match(texts, [(example.target,) for example in examples])
    known = {example.input for example in task.splits["train"][: run.budget.train_examples or None]}
    lengths = [float(len(ids)) for ids in answers]
    stopped = [len(ids) < run.evaluation.max_new_tokens for ids in answers]
    measured = {
        "trainable_parameters": trainee.trainable,
        "train_rows": len(rows),
        "exact_match": math.fsum(right) / len(right),
        "stopped_share": sum(stopped) / len(stopped),
        "answer_tokens": math.fsum(lengths) / len(lengths),
        "loss_nats": math.fsum(nats) / sum(counts),
    }
    per_example: dict[str, list[float] | list[str]] = {
        "exact_match": right,
        "answer_tokens": lengths,
        "in_training": [float(example.input in known) for example in examples],
        "loss_nats": [round(value, 6) for value in nats],
        "label_tokens": [float(count) for count in counts],
        "answer": texts,
    }
    return Findings(measured | run_checks(trainee, started, rows, prompts, curve), curve, per_example)


def follow(trainee: Trainee, rows: list[Encoded], aside: list[Encoded], every: int) -> dict[str, list[float]]:
    """Train on some rows; losses by step, those on the rows put aside, and the share of values each step left alone."""
    state = trainable_state(trainee.model)
    before = {name: value.detach().clone() for name, value in state.items()}
    curve: dict[str, list[float]] = {"stuck": [], "checked_step": [], "validation_loss_nats": []}

    def note(step: int) -> None:
        nats, counts = trainee.losses(aside)
        curve["checked_step"].append(float(step))
        curve["validation_loss_nats"].append(round(math.fsum(nats) / sum(counts), 6))
        trainee.model.train()

    def see(progress: Progress) -> None:
        curve["stuck"].append(round(checks.stuck(before, state), 6))
        for name, value in state.items():
            before[name].copy_(value.detach())
        if progress.step % every == 0 or progress.step == progress.steps:
            note(progress.step)

    note(0)
    run = trainee.run
    assert run.budget is not None
    trained = train(
        trainee.model,
        rows,
        run.budget,
        seed=run.seed,
        pad_id=trainee.tokenizer.pad_token_id,
        dtype=run.dtype,
        platform=run.platform,
        on_step=see,
    )
    return curve | trained.curve()


def encoded(trainee: Trainee, split: str) -> list[Encoded]:
    """The rows of a split as they should be."""
    budget = trainee.run.budget
    assert budget is not None
    return [
        encode_example(trainee.tokenizer, trainee.task, one, budget.max_length) for one in trainee.task.splits[split]
    ]


def ask(trainee: Trainee, prompts: list[list[int]]) -> list[list[int]]:
    """The greedy answer to each prompt without the token that ends it, all of them in one batch."""
    wanted, platform = trainee.run.evaluation, trainee.run.platform
    with torch.no_grad(), half_products(platform), arithmetic(trainee.model, wanted.generation_dtype, platform):
        return decode_batch(trainee.model, trainee.tokenizer, prompts, wanted.max_new_tokens)


def updates(trainee: Trainee, started: Weights) -> Iterator[tuple[Tensor, Tensor]]:
    """What training has added to each matrix that it moved, and the matrix before."""
    if layers := lora_layers(trainee.model):
        for layer in layers.values():
            yield layer.get_delta_weight("default"), layer.get_base_layer().weight
    else:
        for name, value in trainable_state(trainee.model).items():
            if value.ndim == 2:
                yield value.detach() - started[name], started[name]


@torch.no_grad()
def run_checks(
    trainee: Trainee, started: Weights, rows: list[Encoded], prompts: list[list[int]], curve: dict[str, list[float]]
) -> dict[str, float]:
    """Every check of the run, by name: of its weights and curves, of the rows trained on, of the prompts asked."""
    run, task, tokenizer = trainee.run, trainee.task, trainee.tokenizer
    assert run.budget is not None
    labels = [[IGNORE] * row.start + list(row.ids[row.start :]) for row in rows]
    inputs = [example.input for example in task.splits["train"][: len(rows)]]
    examples = task.splits[run.evaluation.split][: len(prompts)]
    trained = [encode_prompt(tokenizer, task, example) for example in examples]
    return {
        "outweighs": checks.outweighs(updates(trainee, started)),
        "remaining": checks.remaining(curve["train_loss_nats"]),
        "risen": checks.risen(curve["validation_loss_nats"]),
        "stuck": median(curve["stuck"]),
        "unended": checks.unended(labels, tokenizer.eos_token_id),
        "stray": checks.stray(labels, [row.start for row in trainee.encoded]),
        "shared": checks.shared(inputs, [example.input for example in examples]),
        "unlike": checks.unlike(trained, prompts),
        "doubled": checks.doubled(trained, prompts, tokenizer.bos_token_id),
    }
