"""Several answers to each question, drawn and judged: the counts from which pass@k is computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.tasks import TaskData, TaskExample
from peftbook.training.encode import encode_prompt
from peftbook.training.execute import prepare
from peftbook.training.generate import decode_batch
from peftbook.training.probes import Findings, positive


def right_answers(probe: specs.Probe) -> Findings:
    """Train the probe's run, draw `samples` answers to each question at each temperature, and count the right ones.

    A question is answered at temperature T by tokens from softmax(logits / T), without a cut of the tail, and the
    task's own judge says which answers are right.
    settings: `samples`; `temperatures`, above zero; `split`, `first` and `questions`, which rows are asked.  seed: of
    the draws, the same for every temperature.
    per_example: `right_{T}`, how many of the answers to each question are right; `different_{T}`, how many texts there
    are among them.  measurements: `share_{T}`, of all answers that are right.
    Raises InputError for a task without a judge, and for rows that the run is trained on.
    """
    (samples,) = positive(probe, "samples")
    (run,) = probe.runs
    trainee = prepare(run)
    judge, examples = trainee.task.judge, question_rows(probe, run, trainee.task)
    assert judge is not None
    trainee.train()
    model = trainee.model.eval()
    prompts = [encode_prompt(trainee.tokenizer, trainee.task, one) for one in examples]
    counts: dict[str, list[float]] = {}
    shares: dict[str, float] = {}
    for temperature in probe.numbers("temperatures"):
        generator = torch.Generator().manual_seed(probe.seed)
        most = run.evaluation.max_new_tokens
        texts = draw_texts(model, trainee.tokenizer, prompts, samples, most, temperature, generator)
        right = [float(sum(judge(some, [one] * len(some)))) for one, some in zip(examples, texts, strict=True)]
        counts[f"right_{temperature:g}"] = right
        counts[f"different_{temperature:g}"] = [float(len(set(some))) for some in texts]
        shares[f"share_{temperature:g}"] = sum(right) / (samples * len(right))
    return Findings(measurements=shares, per_example=counts)


def question_rows(probe: specs.Probe, run: specs.Run, task: TaskData) -> Sequence[TaskExample]:
    """The rows that are asked: `questions` of the split from `first` on. Raises InputError as `right_answers` does."""
    if task.judge is None:
        raise InputError(f"Task {task.name!r} has no judge of single answers: choose one that has.")
    split, first, (questions,) = probe.word("split"), probe.whole("first"), positive(probe, "questions")
    trained = run.budget.train_examples if run.budget else 0
    if split == "train" and not 0 < trained <= first:
        raise InputError(f"The rows from {first} on are trained on: leave them out with train_examples up to {first}.")
    return task.splits[split][first : first + questions]


@torch.no_grad()
def draw_texts(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    samples: int,
    most: int,
    temperature: float,
    generator: torch.Generator,
) -> list[list[str]]:
    """So many texts for each prompt, of at most so many tokens, each token from softmax(logits / T).

    The answers to a prompt are drawn side by side, so that the prompt is read once.
    """
    if temperature <= 0:
        raise InputError(f"A temperature of {temperature:g} draws nothing: give one above zero.")

    def pick(logits: torch.Tensor) -> torch.Tensor:
        chances = (logits.float() / temperature).softmax(dim=-1)
        return torch.multinomial(chances, 1, generator=generator)[:, 0]

    answers = [decode_batch(model, tokenizer, [list(prompt)] * samples, most, pick) for prompt in prompts]
    return [[tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in some] for some in answers]
