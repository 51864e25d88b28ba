"""Preflight: what each run of a plan will read, take and need, before anything is loaded but the tokenizer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.evidence.sweep import CUT
from peftbook.memory import Configuration, Setup, Shape, fit
from peftbook.memory.fit import Fit
from peftbook.memory.setup import BYTES
from peftbook.memory.time_model import Rates
from peftbook.runtime.doctor import gib
from peftbook.runtime.precision import gpu_capability
from peftbook.runtime.processes import run_child
from peftbook.runtime.resources import PROCESS_BYTES, needs_mask, process_peak, side_by_side, step_room, training_setup
from peftbook.runtime.threads import slower_with, threads_beside
from peftbook.studio.jobs import SAID
from peftbook.studio.tuning import is_trial, label_of
from peftbook.tasks import Example, TaskData

if TYPE_CHECKING:
    from peftbook.training.encode import Encoded

LOOK_SECONDS = 1.0  # at how busy the machine is, before it is measured
UNTUNED_LENGTH = 4096  # tokens of a pair that an untuned run reads, as training.execute has it
SAMPLE = 2000  # training rows whose tokens are counted; of more, as many at even spacing
SAMPLE_CHARS = 8_000_000  # of those rows, some seconds of a tokenizer; of longer ones fewer are counted
MEASURE_SECONDS = 60.0  # for measuring this machine, three times what it takes an idle one


@dataclass(frozen=True)
class Check:
    """What is known of a run before it starts.

    rows, tokens: of one pass over the training split; epochs: how often the budget passes over it; truncated: rows
    whose input is cut at `max_length`; all of them estimates where the split is large.  beside: how many runs of the
    plan are computed at once.  seconds: of training and evaluation, beside so many, None where they cannot be
    predicted; training_seconds, generation_seconds: parts of them.
    peak_bytes: of its memory, the process included, None where the model's shape is not known.  fits: whether it can be
    run; words: why not, and what would help; or a remark.
    """

    __pydantic_config__ = SAID

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


def preflight(
    task: TaskData, runs: Sequence[specs.Run], memory_bytes: float, *, timed: bool = True
) -> tuple[Check, ...]:
    """A check of every run, in their order. It loads tokenizers, and torch with them, but no weights.

    timed: predict seconds too, for which this machine's rates are measured where they are not known.
    """
    return tuple(check for check in preflight_steps(task, runs, memory_bytes, timed=timed) if check is not None)


def preflight_steps(
    task: TaskData, runs: Sequence[specs.Run], memory_bytes: float, *, timed: bool = True
) -> Iterator[Check | None]:
    """The checks of `preflight` one by one, and None after every small piece of the work for them.

    Whoever asks for the next may do something else before, or ask no more.
    """
    models: dict[specs.Model, Subject | str] = {}
    rates: dict[str, Rates | None] = {}
    known: dict[str, Check] = {}
    beside = side_by_side(runs, memory_bytes) if runs else 1
    for run in runs:
        yield None
        if run.model not in models:
            try:
                models[run.model] = Subject(task, run)
            except InputError as error:
                models[run.model] = str(error)
        alike = run.model_copy(update={"seed": 0}).key
        subject = models[run.model]
        if alike not in known:
            if isinstance(subject, str):
                known[alike] = Check(run.key, "", len(task.splits["train"]), 0, 0, None, None, False, subject)
            else:
                if timed and subject.shape is not None and run.platform not in rates:
                    rates[run.platform] = rates_beside(run.platform, beside)
                known[alike] = yield from subject.steps(run, memory_bytes, rates.get(run.platform))
        yield replace(known[alike], key=run.key, label=label_of(run, runs), beside=beside)


def coverage_words(checks: Sequence[Check]) -> str:
    """That the tokens of a plan are less than one pass over the training rows, in a sentence; empty where they are not.

    Of several models it speaks of the one to whose tokenizer the rows are longest.
    """
    least = min((one for one in checks if one.epochs), key=lambda one: one.epochs, default=None)
    if least is None or least.epochs >= 1:
        return ""
    tokens, share = round(least.epochs * least.tokens), max(1, math.floor(100 * least.epochs))
    return (
        f"{tokens:,} training tokens cover about {share} % of one pass over the {least.rows:,} training rows: "
        f"choose at least {least.tokens:,} tokens, or some rows are never trained on."
    )


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


class Subject:
    """A model's tokenizer and shape, and the task's texts as it reads them."""

    def __init__(self, task: TaskData, run: specs.Run):
        self.task = task
        self.tokenizer, self.shape = load_parts(run.model)
        self.encoded: dict[int, list[Encoded]] = {}
        self.tests: dict[str, int] = {}
        train = task.splits["train"]
        chars = sum(len(one.input) + len(one.target) for one in train)
        most = max(1, min(SAMPLE, SAMPLE_CHARS * len(train) // max(chars, 1)))
        self.sample = train if len(train) <= most else [train[at * len(train) // most] for at in range(most)]
        self.scale = len(train) / len(self.sample)

    def check_at_hand(self, run: specs.Run) -> None:
        """Raises InputError for a GPU or an encoder of BERTScore that a run would miss, the latter at its end."""
        from peftbook.training.scoring import embedded_folder

        if run.platform == "cuda":
            gpu_capability()
        if run.evaluation.n_generate and "bertscore" in self.task.metrics:
            embedded_folder()

    def reading(self, max_length: int) -> Iterator[None]:
        """Make the sample's token ids, a row a step.

        Raises InputError for a row whose target alone is too long, in the sample or not.
        """
        from peftbook.training.encode import encode_example

        if max_length in self.encoded:
            return
        sample = []
        for one in (*self.task.splits["train"], *self.task.splits["test"]):
            self.check_target(one, max_length)
            yield
        for one in self.sample:
            sample.append(encode_example(self.tokenizer, self.task, one, max_length))
            yield
        self.encoded[max_length] = sample

    def check_target(self, one: Example, max_length: int) -> None:
        """Raises InputError for a row whose target alone is too long."""
        from peftbook.training.encode import encode_example

        half = max_length // 2  # a token is at least a byte: few targets need to be counted
        if len(one.target.encode()) > half and self.tokenizer.count(one.target) > half:
            encode_example(self.tokenizer, self.task, one, max_length)

    def reading_tests(self, run: specs.Run, max_length: int) -> Iterator[None]:
        """Have the tokenizer read what a run is tested on, a row a step: whoever asks it again waits no more.

        Raises InputError as `reading` does, of a race for the validation rows too.
        """
        from peftbook.training.encode import encode_plain, encode_prompt

        split, most = run.evaluation.split, max(run.evaluation.n_loss, run.evaluation.n_generate)
        for one in self.task.splits[split][self.tests.get(split, 0) : most]:
            self.check_target(one, max_length)
            encode_prompt(self.tokenizer, self.task, one)
            encode_plain(self.tokenizer, one.target)
            self.tokenizer.encode(one.target)
            yield
        self.tests[split] = max(most, self.tests.get(split, 0))

    def steps(self, run: specs.Run, memory_bytes: float, rates: Rates | None) -> Generator[None, None, Check]:
        """What is known of one run, after small pieces of work."""
        rows = len(self.task.splits["train"])
        plain = Check(run.key, "", rows, 0, 0, None, None, False)
        max_length = run.budget.max_length if run.budget else UNTUNED_LENGTH
        try:
            self.check_at_hand(run)
            yield from self.reading(max_length)
            yield from self.reading_tests(run, max_length)
            data = self.encoded[max_length]
            peak, found = self.memory(run, data, memory_bytes)
            yield
            parts = self.seconds(run, data, rates)
        except InputError as error:
            return replace(plain, words=str(error))
        tokens = round(self.scale * sum(len(one.ids) for one in data))
        truncated = round(self.scale * sum(one.truncated for one in data)) if run.budget else 0
        return replace(
            plain,
            tokens=tokens,
            truncated=truncated,
            seconds=sum(parts.values()) if parts else None,
            training_seconds=parts.get("train", 0.0),
            generation_seconds=parts.get("generate", 0.0),
            peak_bytes=peak,
            fits=peak is None or peak <= memory_bytes,
            words=self.words(run, data, peak, found, memory_bytes),
            epochs=run.budget.tokens / max(1, tokens) if run.budget else 0.0,
        )

    def seconds(self, run: specs.Run, data: list[Encoded], rates: Rates | None) -> dict[str, float]:
        """Predicted seconds of a run by part, or nothing."""
        from peftbook.training.estimate import predicted_seconds

        if self.shape is None or rates is None:
            return {}
        parts = predicted_seconds(run, self.shape, self.task, self.tokenizer, data, rates)
        if is_trial(run) and run.whole is run:
            parts["train"] *= 1 - CUT  # it goes on where its opening stopped
        return parts

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
        from peftbook.training.encode import encode_prompt, generation_batch, loss_batch

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

    def words(self, run: specs.Run, data: list[Encoded], peak: float | None, found: Fit | None, room: float) -> str:
        """Why a run cannot be run and what would help; or what should be known before it is."""
        if self.shape is None:
            return "Time and memory are not predicted for a model of this family."
        if peak is not None and peak > room:
            return f"It needs {gib(peak)} and there are {gib(room)}: {remedy(run, found)}."
        context, longest = self.shape.context, max((len(one.ids) for one in data), default=0)
        if run.budget and context and longest > context:
            return f"Rows of up to {longest} tokens are longer than the {context} that the model was made for."
        cut = sum(one.truncated for one in data)
        if run.budget and cut > len(data) / 10:
            return f"Of {cut} of {len(data)} rows the end of the input is cut: a larger max_length keeps it."
        return ""


def rates_here(platform: str) -> Rates | None:
    """This machine's rates; None where they are not known and it does other work, beside which none is measured."""
    from peftbook.runtime.hardware import is_idle
    from peftbook.training.calibration import known_rates

    if (known := known_rates(platform)) is not None:
        return known
    return measure_rates_in_child(platform) if is_idle(LOOK_SECONDS) else None


def rates_beside(platform: str, jobs: int) -> Rates | None:
    """This machine's rates for each of so many runs at once, which have fewer threads than one alone."""
    known = rates_here(platform)
    return known if known is None or jobs == 1 else known.slowed(slower_with(threads_beside(jobs)))


def measure_rates_in_child(platform: str) -> Rates | None:
    """This machine's rates, measured by another process; None where that takes long, as other work has begun."""
    import torch

    from peftbook.training.calibration import known_rates

    with contextlib.suppress(RuntimeError):
        run_child(
            "-m", "peftbook.training.estimate", platform, threads=torch.get_num_threads(), seconds=MEASURE_SECONDS
        )
    return known_rates(platform)


def load_parts(model: specs.Model) -> tuple[Any, Shape | None]:
    """A model's tokenizer, and its shape where its family is covered. Raises InputError for a model out of reach."""
    from transformers import AutoConfig, AutoTokenizer

    from peftbook.memory import shape_from_config
    from peftbook.training.hub import check_reachable
    from peftbook.training.models import resolve

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


def training_step_setup(run: specs.Run, data: Sequence[Encoded], shape: Shape) -> Setup:
    """The step that needs most: the longest rows in one batch, as the training loop would run it."""
    from peftbook.training.forward import FUSED_TOKENS, SHORT_TOKENS

    assert run.budget is not None
    rows = min(run.budget.batch_size, len(data))
    longest = sorted((len(one.ids) for one in data), reverse=True)[:rows]
    labels = sum(sorted((one.label_tokens for one in data), reverse=True)[:rows])
    eager = run.platform == "cpu" and longest[0] <= (FUSED_TOKENS if run.packed else SHORT_TOKENS)
    return replace(
        training_setup(run, shape), batch=rows, seq=longest[0], labels=labels,
        padding=needs_mask(run), attention="eager" if eager else "sdpa",
    )  # fmt: skip


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
