"""Plan: from what a reader chose to the runs that answer it, without torch; and whether each fits, before it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from peftbook import specs
from peftbook.canonical import build
from peftbook.errors import InputError
from peftbook.methods import Preset, preset
from peftbook.studies.chosen_rates import learning_rate_for
from peftbook.studio.preflight import Check, preflight
from peftbook.tasks import TaskData
from peftbook.training.precision import chosen_dtype

__all__ = ["BOUNDS", "Bound", "Check", "Settings", "check_settings", "plan", "preflight", "training_tokens"]

MOST_RUNS = 200
MOST_GENERATED, MOST_LOSS = 200, 1000  # test examples
MOST_EPOCHS = 1000  # with so many passes the recipes' tokens are allowed on a file of three short rows
CHARS_A_TOKEN, TEMPLATE_TOKENS = 4, 16  # of a text before its tokenizer is at hand, and of the turns around it


@dataclass(frozen=True)
class Bound:
    """What a number of the settings may be. words: a sentence's start with the number in it."""

    words: str
    least: float
    most: float
    whole: bool = True

    def check(self, value: object) -> None:
        """Raises InputError, naming the value and the fix, for one that is out of bounds, or no number."""
        said = repr(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            if self.least <= value <= self.most and not (self.whole and value % 1):
                return
            said = f"{value:,}" if isinstance(value, int) else f"{value:g}"
        kind = "a whole number" if self.whole else "a number"
        raise InputError(f"{self.words.format(said)}: choose {kind} from {self.least:,} to {self.most:,}.")


BOUNDS: dict[str, Bound] = {
    "seeds": Bound("{} seeds are chosen", 1, 10),
    "tokens": Bound("{} training tokens are chosen, where 0 stands for epochs", 0, specs.MOST_TOKENS),
    "epochs": Bound("{} epochs are chosen", 0.01, MOST_EPOCHS, whole=False),
    "test_examples": Bound("{} test rows are chosen", 0, MOST_GENERATED),
    "batch_size": Bound("A batch size of {} is chosen", 1, 512),  # larger ones are for pretraining
    "max_length": Bound("A longest example of {} tokens is chosen", 8, 8192),  # the context of most small models
    "max_new_tokens": Bound("A longest answer of {} tokens is chosen", 1, 1024),  # as the try-out has it
    "rank": Bound("A rank of {} is chosen, where 0 stands for the usual one", 0, 1024),
    "prompt_length": Bound("A prompt length of {} is chosen, where 0 stands for the usual one", 0, 1024),
    "prefix_length": Bound("A prefix length of {} is chosen, where 0 stands for the usual one", 0, 1024),
}


@dataclass(frozen=True)
class Settings:
    """What a plan is made of.

    methods: names of presets; the untuned model is always there.  seeds: trainings of each method.
    tokens: of training text that every method sees; 0: as many as `epochs` passes over the training split have.
    test_examples: how many answers are generated and scored; of no more than 1,000 the loss is taken.
    learning_rates: by preset, in place of the book's.  rank: of LoRA and its kin, 0 for the preset's;
    prompt_length, prefix_length: virtual tokens, 0 for the preset's.
    dtype: to compute in, or auto for the fastest on the platform here; the runs name the type itself.
    """

    models: tuple[specs.Model, ...] = (specs.Model(),)
    methods: tuple[str, ...] = ("untuned", "lora")
    seeds: int = 1
    epochs: float = 3.0
    tokens: int = 0
    batch_size: int = 8
    max_length: int = 512
    max_new_tokens: int = 64
    test_examples: int = MOST_GENERATED
    learning_rates: Mapping[str, float] = field(default_factory=dict)
    rank: int = 0
    prompt_length: int = 0
    prefix_length: int = 0
    platform: Literal["cpu", "cuda"] = "cpu"
    dtype: str = "auto"


def plan(task: TaskData, settings: Settings, tokens_of_training: int = 0) -> tuple[specs.Run, ...]:
    """The runs of a plan, each once: for every model the untuned one first, then method by method and seed by seed.

    tokens_of_training: of one pass over the training split; 0 is an estimate from its characters. Settings.tokens goes
    before both. Raises InputError for settings that are none.
    """
    check_settings(settings)
    chosen = [preset(name) for name in dict.fromkeys(("untuned", *settings.methods))]
    tokens = budget_tokens(task, settings, tokens_of_training)
    dtype = chosen_dtype(settings.dtype, settings.platform)
    runs = [
        run_of(task, settings, model, one, tokens, seed, dtype)
        for model in dict.fromkeys(settings.models)
        for one in chosen
        for seed in range(int(settings.seeds) if one.method.trains else 1)
    ]
    if len(runs) > MOST_RUNS:
        raise InputError(
            f"The plan has {len(runs)} runs, more than {MOST_RUNS}: choose fewer methods, models or seeds."
        )
    return tuple(runs)


def check_settings(settings: Settings) -> None:
    """Raises InputError for what no spec would notice."""
    if not settings.models:
        raise InputError("No model is chosen: choose at least one.")
    for name, bound in BOUNDS.items():
        if name != "epochs" or not settings.tokens:
            bound.check(getattr(settings, name))
    for name, rate in settings.learning_rates.items():
        preset(name)
        if not (math.isfinite(rate) and rate > 0):
            raise InputError(f"The learning rate of {name} is {rate!r}: choose a number above zero.")


def budget_tokens(task: TaskData, settings: Settings, once: int = 0) -> int:
    """Tokens of one training: those chosen, or those of all epochs. Raises InputError for more than anybody can mean.

    once: tokens of one pass over the training split; 0 is an estimate.
    """
    once = once or training_tokens(task, settings)
    tokens = settings.tokens or max(1, round(settings.epochs * once))
    if tokens > specs.MOST_TOKENS:
        raise InputError(
            f"{settings.epochs:g} epochs of {once:,} tokens are {tokens:,} training tokens, more than "
            f"{specs.MOST_TOKENS:,}: choose at most {specs.MOST_TOKENS / once:.2g} epochs."
        )
    if tokens > MOST_EPOCHS * once:
        raise InputError(
            f"{tokens:,} training tokens are {tokens / once:,.0f} passes over the about {once:,} tokens of the "
            f"training rows, more than {MOST_EPOCHS:,}: choose at most {MOST_EPOCHS * once:,}."
        )
    return tokens


def training_tokens(task: TaskData, settings: Settings) -> int:
    """About how many tokens one pass over the training split has, to two digits: characters over four, and turns.

    The tokens themselves are counted in `preflight`, which has the tokenizer.
    """
    around = len(task.instruction) - len("{input}")
    texts = ((around + len(one.input) + len(one.target)) / CHARS_A_TOKEN for one in task.splits["train"])
    total = sum(min(length + TEMPLATE_TOKENS, settings.max_length) for length in texts)
    return max(1, int(float(f"{total:.2g}")))


def run_of(
    task: TaskData, settings: Settings, model: specs.Model, one: Preset, tokens: int, seed: int, dtype: str
) -> specs.Run:
    """One run of a plan."""
    budget = None
    if one.method.trains:
        budget = build(
            specs.Budget,
            tokens=tokens,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rates.get(one.name) or learning_rate_for(one.name),
            max_length=settings.max_length,
        )
    tests = len(task.splits["test"])
    generated = min(tests, settings.test_examples)
    evaluation = build(
        specs.Evaluation,
        split="test",
        n_loss=min(tests, MOST_LOSS),
        n_generate=generated,
        max_new_tokens=settings.max_new_tokens,
        generation_dtype=dtype if generated else "fp32",
    )
    return build(
        specs.Run,
        model=model,
        task=task.spec,
        method=one.method.sized(
            rank=settings.rank, prompt_length=settings.prompt_length, prefix_length=settings.prefix_length
        ),
        budget=budget,
        evaluation=evaluation,
        seed=seed,
        dtype=dtype,
        platform=settings.platform,
    )
