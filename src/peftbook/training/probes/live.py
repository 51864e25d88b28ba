"""The training that a page of the book repeats: PyTorch's side of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.evidence import metrics
from peftbook.tasks import TaskExample, get_task
from peftbook.training.encode import encode_prompt
from peftbook.training.execute import Trainee
from peftbook.training.forward import apply_method
from peftbook.training.live_weights import round_base
from peftbook.training.models import load_model
from peftbook.training.probes import Findings
from peftbook.training.probes.faults import ask


def trained(probe: specs.Probe) -> Findings:
    """Train the one run of the probe over the weights that the page carries, and ask it.

    settings: base, `rows` or `blocks`, see `training.live_weights`; asked, messages for which the test has no row.
    measurements: trainable_parameters; exact_match and loss_nats on the first n_generate and n_loss rows of the split,
    after training.
    curve: train_loss_nats and gradient_norm by step, before it.
    per_example: of the rows asked: exact_match, answer; loss_nats, label_tokens. Of the messages: asked_before and
    asked_after, the answers before and after training.
    """
    trainee = prepared(probe)
    run, task = trainee.run, trainee.task
    asked = (
        [replace(task.splits["test"][0], input=text) for text in probe.words("asked")]
        if "asked" in probe.settings
        else []
    )
    before = texts_of(trainee, asked)
    result = trainee.train()
    assert result is not None
    nats, counts = trainee.losses(trainee.graded)
    examples = task.splits[run.evaluation.split][: run.evaluation.n_generate]
    texts = texts_of(trainee, examples)
    right = metrics.exact_match(texts, [(one.target,) for one in examples])
    return Findings(
        {
            "trainable_parameters": trainee.trainable,
            "train_steps": len(result.losses),
            "train_seconds": round(result.seconds, 3),
            "exact_match": math.fsum(right) / len(right),
            "loss_nats": math.fsum(nats) / sum(counts),
        },
        result.curve(),
        {
            "exact_match": right,
            "answer": texts,
            "loss_nats": [round(value, 6) for value in nats],
            "label_tokens": [float(count) for count in counts],
            **({"asked_before": before, "asked_after": texts_of(trainee, asked)} if asked else {}),
        },
    )


def texts_of(trainee: Trainee, examples: Sequence[TaskExample]) -> list[str]:
    """The model's greedy answers to the inputs, as text."""
    if not examples:
        return []
    answers = ask(trainee, [encode_prompt(trainee.tokenizer, trainee.task, one) for one in examples])
    return [trainee.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]


def prepared(probe: specs.Probe) -> Trainee:
    """The run of the probe, ready to train on rounded weights. Raises InputError unless it has one that trains."""
    if len(probe.runs) != 1 or probe.runs[0].budget is None:
        raise InputError("The probe needs one run that trains.")
    (run,) = probe.runs
    loaded = load_model(run.model, run.method, run.platform, run.dtype, run.weights)
    round_base(loaded.model, probe.word("base"))
    model = apply_method(loaded.model, run.method, run.seed, loaded.tokenizer)
    return Trainee(run, get_task(run.task.name), loaded, model)
