"""Preflight: what each run of a plan will read, take and need, before anything is loaded but the tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.evidence.sweep import CUT
from peftbook.memory.fit import Fit
from peftbook.memory.time_model import Rates
from peftbook.runtime.doctor import gib
from peftbook.runtime.resources import side_by_side
from peftbook.scratch.schedule import makespan
from peftbook.studio.formats import time_range
from peftbook.studio.jobs import ALL_REQUIRED
from peftbook.studio.tuning import is_trial, labels_of
from peftbook.tasks import TaskData

if TYPE_CHECKING:
    from peftbook.training.preflight import TokenizedTask

ENOUGH = 0.9  # of one pass over the training rows; below, it is said


@dataclass(frozen=True)
class Check:
    """What is known of a run before it starts.

    rows, tokens: of one pass over the training split; epochs: how often the budget passes over it; truncated: rows
    whose input is cut at `max_length`; all of them estimates where the split is large.  beside: how many runs of the
    plan are computed at once.  seconds: of training and evaluation, beside so many, None where they cannot be
    predicted; training_seconds, generation_seconds: parts of them.  spread: by what factor they may be fewer or more.
    peak_bytes: of its memory, the process included, None where the model's shape is not known.  fits: whether it can be
    run; words: why not, and what would help; or a remark.
    """

    __pydantic_config__ = ALL_REQUIRED

    key: str
    label: str
    rows: int
    tokens: int
    truncated: int
    seconds: float | None
    peak_bytes: float | None
    fits: bool
    words: str = ""
    epochs: float = 0.0
    training_seconds: float = 0.0
    generation_seconds: float = 0.0
    beside: int = 1
    spread: float = 1.0


def preflight(
    task: TaskData, runs: Sequence[specs.Run], memory_bytes: float, *, measure: bool = True
) -> tuple[Check, ...]:
    """A check of every run, in their order. It loads tokenizers, and torch with them, but no weights.

    measure: this machine's rates where they are not known; else seconds are rough.
    """
    from peftbook.training.preflight import TokenizedTask, rates_beside

    models: dict[specs.Model, TokenizedTask | str] = {}
    rates: dict[str, tuple[Rates, float]] = {}
    known: dict[str, Check] = {}
    beside, labels = side_by_side(runs, memory_bytes) if runs else 1, labels_of(runs)
    for run in runs:
        if run.model not in models:
            try:
                models[run.model] = TokenizedTask(task, run)
            except InputError as error:
                models[run.model] = str(error)
        alike = run.model_copy(update={"seed": 0}).key
        subject = models[run.model]
        if alike in known:
            continue
        if isinstance(subject, str):
            known[alike] = Check(run.key, "", len(task.splits["train"]), 0, 0, None, None, False, subject)
        else:
            if subject.shape is not None and run.platform not in rates:
                rates[run.platform] = rates_beside(run.platform, beside, measure=measure)
            known[alike] = check_run(subject, run, memory_bytes, rates.get(run.platform))
    checks = [known[run.model_copy(update={"seed": 0}).key] for run in runs]
    return tuple(
        replace(check, key=run.key, label=labels[run.key], beside=beside)
        for run, check in zip(runs, checks, strict=True)
    )


def plan_seconds(checks: Sequence[Check]) -> float:
    """Until the last of the runs ends that can be run, as many at once as the checks say; 0 where the time of one of
    them is unknown.
    """
    fitting = [check for check in checks if check.fits]
    known = [check.seconds for check in fitting if check.seconds is not None]
    return makespan([[known]], max(check.beside for check in fitting)) if len(known) == len(fitting) > 0 else 0.0


def time_words(checks: Sequence[Check]) -> str:
    """How long a plan takes on this machine, in words; a range where its speed is not known."""
    if not (seconds := plan_seconds(checks)):
        return "for how long cannot be predicted for a model of this family"
    spread = max(check.spread for check in checks)
    return time_range(seconds, spread) + ", as this machine is too busy to be measured" * (spread > 1)


def coverage_words(checks: Sequence[Check]) -> str:
    """That the tokens of a plan are less than ENOUGH of a pass over the training rows, in a sentence; else nothing.

    Of several models it speaks of the one to whose tokenizer the rows are longest.
    """
    least = min((one for one in checks if one.epochs), key=lambda one: one.epochs, default=None)
    if least is None or least.epochs >= ENOUGH:
        return ""
    tokens, share = round(least.epochs * least.tokens), max(1, math.floor(100 * least.epochs))
    return (
        f"{tokens:,} training tokens cover about {share} % of one pass over the {least.rows:,} training rows: "
        f"choose at least {least.tokens:,} tokens, or some rows are never trained on."
    )


def check_run(subject: TokenizedTask, run: specs.Run, memory_bytes: float, rates: tuple[Rates, float] | None) -> Check:
    """The check of one run. rates: with the factor by which times may differ."""
    rows = len(subject.task.splits["train"])
    plain = Check(run.key, "", rows, 0, 0, None, None, False)
    max_length = run.budget.max_length if run.budget else specs.MOST_LENGTH
    try:
        subject.check_at_hand(run)
        data = subject.read(max_length)
        subject.check_tests(run, max_length)
        peak, found = subject.memory(run, data, memory_bytes)
        parts = subject.seconds(run, data, rates and rates[0])
    except InputError as error:
        return replace(plain, words=str(error))
    if parts and is_trial(run) and run.whole is run:
        parts["train"] *= 1 - CUT  # it goes on where its opening stopped
    tokens = round(subject.scale * sum(len(one.ids) for one in data))
    truncated = sum(one.truncated for one in data) if run.budget else 0
    longest, context = max((len(one.ids) for one in data), default=0), subject.shape and subject.shape.context
    words = ""
    if subject.shape is None:
        words = "Time and memory are not predicted for a model of this family."
    elif peak is not None and peak > memory_bytes:
        words = f"It needs {gib(peak)} and there are {gib(memory_bytes)}: {remedy(run, found)}."
    elif run.budget and context and longest > context:
        words = f"Rows of up to {longest} tokens are longer than the {context} that the model was made for."
    elif truncated > len(data) / 10:
        words = f"Of {truncated} of {len(data)} rows the end of the input is cut: a larger max_length keeps it."
    return replace(
        plain,
        tokens=tokens,
        truncated=round(subject.scale * truncated),
        seconds=sum(parts.values()) if parts else None,
        training_seconds=parts.get("train", 0.0),
        generation_seconds=parts.get("generate", 0.0),
        peak_bytes=peak,
        fits=peak is None or peak <= memory_bytes,
        words=words,
        epochs=run.budget.tokens / max(1, tokens) if run.budget else 0.0,
        spread=rates[1] if rates else 1.0,
    )


def remedy(run: specs.Run, found: Fit | None) -> str:
    """What would make a run fit."""
    ways = []
    if found is not None and run.budget is not None:
        if 0 < found.largest_batch < run.budget.batch_size:
            ways.append(f"a batch size of at most {found.largest_batch}")
        if 8 <= found.largest_seq < min(run.budget.max_length, found.configuration.setup.seq):
            ways.append(f"a max_length of at most {found.largest_seq}")
    if run.budget is not None and not (run.checkpointing or run.method.uncheckpointed):
        ways.append("checkpointing")
    if run.weights == "fp32" and not run.method.unhalved:
        ways.append("weights in bf16")
    return f"choose {' or '.join(filter(None, [*ways, run.method.lighter, 'a smaller model']))}"
