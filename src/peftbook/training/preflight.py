"""Preflight: rows, seconds and bytes of a run by its tokenizer and its model's shape, before weights are loaded."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.memory import Configuration, DecoderShape, Setup, fit, shape_from_config
from peftbook.memory.fit import Fit
from peftbook.memory.setup import BYTES
from peftbook.memory.time_model import Rates
from peftbook.runtime.hardware import is_idle
from peftbook.runtime.precision import gpu_capability
from peftbook.runtime.processes import run_child
from peftbook.runtime.resources import (
    PROCESS_BYTES,
    generation_batch,
    loss_batch,
    needs_mask,
    process_peak,
    step_room,
    training_setup,
)
from peftbook.runtime.threads import slower_with, threads_beside
from peftbook.tasks import TaskData, TaskExample
from peftbook.training.calibration import known_rates, rough_rates
from peftbook.training.encode import Encoded, encode_example, encode_prompt
from peftbook.training.estimate import predicted_seconds
from peftbook.training.forward import FUSED_TOKENS, SHORT_TOKENS
from peftbook.training.models import check_reachable, resolve
from peftbook.training.scoring import embedded_folder

LOOK_SECONDS = 1.0  # at how busy the machine is, before it is measured
SAMPLE = 2000  # training rows whose tokens are counted; of more, as many at even spacing
SAMPLE_CHARS = 8_000_000  # of those rows, some seconds of a tokenizer; of longer ones fewer are counted
MEASURE_SECONDS = 60.0  # for measuring this machine, three times what it takes an idle one


class CachedTokenizer:
    """A tokenizer that encodes no text twice, as every run of a plan reads the same ones."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._known: dict[tuple[str, tuple], list[int]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str, **options: Any) -> list[int]:
        key = text, tuple(sorted(options.items()))
        if key not in self._known:
            self._known[key] = self._tokenizer.encode(text, **options)
        return self._known[key]

    def count(self, text: str) -> int:
        """How many ids a plain text has; they are not kept."""
        return len(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


class TokenizedTask:
    """A model's tokenizer and shape, and the task's texts as it reads them."""

    def __init__(self, task: TaskData, run: specs.Run):
        self.task = task
        self.tokenizer, self.shape = load_parts(run.model)
        self.encoded: dict[int, list[Encoded]] = {}
        train = task.splits["train"]
        chars = sum(len(one.input) + len(one.target) for one in train)
        most = max(1, min(SAMPLE, SAMPLE_CHARS * len(train) // max(chars, 1)))
        self.sample = train if len(train) <= most else [train[at * len(train) // most] for at in range(most)]
        self.scale = len(train) / len(self.sample)

    def check_at_hand(self, run: specs.Run) -> None:
        """Raises InputError for a GPU or an encoder of BERTScore that a run would miss, the latter at its end."""
        if run.platform == "cuda":
            gpu_capability()
        if run.evaluation.n_generate and "bertscore" in self.task.metrics:
            embedded_folder()

    def read(self, max_length: int) -> list[Encoded]:
        """The sample's token ids. Raises InputError for a row whose target alone is too long, in the sample or not."""
        if max_length not in self.encoded:
            for one in (*self.task.splits["train"], *self.task.splits["test"]):
                self.check_target(one, max_length)
            self.encoded[max_length] = [
                encode_example(self.tokenizer, self.task, one, max_length) for one in self.sample
            ]
        return self.encoded[max_length]

    def check_target(self, one: TaskExample, max_length: int) -> None:
        """Raises InputError for a row whose target, with the turns before its last question, is too long."""
        half = max_length // 2  # a token is at least a byte: few texts need to be counted
        whole = "".join((*(text for _, text in one.turns[:-1]), one.target))
        if len(whole.encode()) > half and self.tokenizer.count(whole) > half:
            encode_example(self.tokenizer, self.task, one, max_length)

    def check_tests(self, run: specs.Run, max_length: int) -> None:
        """Raises InputError as `read` does, for the rows that a run is tested on, of a race those of validation."""
        for one in self.task.splits[run.evaluation.split][: max(run.evaluation.n_loss, run.evaluation.n_generate)]:
            self.check_target(one, max_length)

    def seconds(self, run: specs.Run, data: list[Encoded], rates: Rates | None) -> dict[str, float]:
        """Predicted seconds of a run by part, or nothing."""
        if self.shape is None or rates is None:
            return {}
        return predicted_seconds(run, self.shape, self.task, self.tokenizer, data, rates)

    def memory(self, run: specs.Run, data: list[Encoded], room: float) -> tuple[float | None, Fit | None]:
        """Bytes at the peak of a run, in training or generation, and how its training fits in so much memory."""
        if self.shape is None:
            return None, None
        generating = PROCESS_BYTES[run.platform] + self.generation_bytes(run)
        if run.budget is None:
            return generating, None
        longest = Configuration(self.shape, training_step_setup(run, data, self.shape))
        training = process_peak(longest.step, run.platform)
        return max(generating, training), fit(longest, max(1.0, step_room(longest.step, run.platform, room)))

    def generation_bytes(self, run: specs.Run) -> float:
        """Weights, copies for autocast, and keys and values of a batch that is generated."""
        assert self.shape is not None
        shots = run.method.examples_shown
        some = tuple(self.task.splits["train"][:shots])
        examples = self.task.splits["test"][: max(run.evaluation.n_generate, 1)]
        longest = max(len(encode_prompt(self.tokenizer, self.task, one, some)) for one in examples)
        width, rows = longest + run.evaluation.max_new_tokens, min(generation_batch(shots), len(examples))
        kept = 2 * self.shape.layers * self.shape.kv_width * BYTES[run.weights] * rows * width
        working = 4 * min(loss_batch(shots), len(examples)) * longest * (4 * self.shape.ffn + 4 * self.shape.hidden)
        step = Configuration(self.shape, replace(training_setup(run, self.shape), batch=1, seq=1, labels=1)).step
        return sum(step.numbers(step.state).values()) + max(kept, working)


def row_tokens(model: specs.Model, task: TaskData) -> dict[str, int]:
    """Tokens of each row by its id, as training encodes it where nothing is cut."""
    tokenizer, _ = load_parts(model)
    rows = (one for split in task.splits.values() for one in split)
    return {one.id: len(encode_example(tokenizer, task, one, sys.maxsize).ids) for one in rows}


def rates_beside(platform: str, jobs: int, *, measure: bool = True) -> tuple[Rates, float]:
    """This machine's rates for each of so many runs at once, which have fewer threads than one alone, and the factor by
    which times may be shorter or longer: 1 for rates that were measured.

    measure: where they are not known, unless the machine does other work.
    """
    known = known_rates(platform)
    if known is None and measure and is_idle(LOOK_SECONDS):
        known = measure_rates_in_child(platform)
    rates, spread = (known, 1.0) if known is not None else rough_rates(platform)
    return rates if jobs == 1 else rates.slowed(slower_with(threads_beside(jobs))), spread


def measure_rates_in_child(platform: str) -> Rates | None:
    """This machine's rates, measured by another process; None where that takes long, as other work has begun."""
    with contextlib.suppress(RuntimeError):
        run_child(
            "-m", "peftbook.training.estimate", platform, threads=torch.get_num_threads(), seconds=MEASURE_SECONDS
        )
    return known_rates(platform)


def load_parts(model: specs.Model) -> tuple[Any, DecoderShape | None]:
    """A model's tokenizer, and its shape where its family is covered. Raises InputError for a model out of reach."""
    source, revision = resolve(model)
    check_reachable(model)
    pinned = {"revision": revision} if revision else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **pinned)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **pinned)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(f"Model {model.name!r} cannot be loaded ({reason}): check the name or use a folder.") from None
    try:
        return CachedTokenizer(tokenizer), shape_from_config(config.to_dict())
    except InputError:
        return CachedTokenizer(tokenizer), None


def training_step_setup(run: specs.Run, data: Sequence[Encoded], shape: DecoderShape) -> Setup:
    """The step that needs most: the longest rows in one batch, as the training loop would run it."""
    assert run.budget is not None
    rows = min(run.budget.batch_size, len(data))
    longest = sorted((len(one.ids) for one in data), reverse=True)[:rows]
    labels = sum(sorted((one.label_tokens for one in data), reverse=True)[:rows])
    eager = run.platform == "cpu" and longest[0] <= (FUSED_TOKENS if run.packed else SHORT_TOKENS)
    return replace(
        training_setup(run, shape),
        batch=rows,
        seq=longest[0],
        labels=labels,
        padding=needs_mask(run),
        attention="eager" if eager else "sdpa",
    )
