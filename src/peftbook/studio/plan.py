"""Plan: from what a reader chose to the runs that answer it, without torch; and whether each fits, before it starts."""

from __future__ import annotations

import math

from peftbook import specs
from peftbook.errors import InputError
from peftbook.options import check_bounds
from peftbook.studio.presets import Preset, preset_named
from peftbook.studio.settings import MOST_EPOCHS, Settings, Single
from peftbook.tasks import TaskData
from peftbook.training.precision import chosen_dtype

__all__ = ["check_settings", "plan", "run_alone", "training_tokens"]

MOST_RUNS = 200
MOST_LOSS = 1000  # test examples
# Setting → the methods that have it, and their name for it.
SIZES: dict[str, tuple[type[specs.Spec], str]] = {
    "rank": (specs.LoRA, "rank"),
    "prompt_length": (specs.PromptTuning, "length"),
    "prefix_length": (specs.Prefix, "length"),
}
CHARS_A_TOKEN, TEMPLATE_TOKENS = 4, 16  # of a text before its tokenizer is at hand, and of the turns around it


def plan(task: TaskData, settings: Settings, tokens_of_training: int = 0) -> tuple[specs.Run, ...]:
    """The runs of a plan, each once: for every model the untuned one first, then method by method and seed by seed.

    tokens_of_training: of one pass over the training split; 0 is an estimate from its characters. Settings.tokens goes
    before both. Raises InputError for settings that are none.
    """
    check_settings(settings)
    chosen = [preset_named(name) for name in dict.fromkeys(("untuned", *settings.methods))]
    tokens = budget_tokens(task, settings, tokens_of_training)
    dtype = chosen_dtype(settings.dtype, settings.platform)
    runs = [
        run_of(task, settings, model, preset, tokens, seed, dtype)
        for model in dict.fromkeys(settings.models)
        for preset in chosen
        for seed in range(1 if isinstance(preset.method, specs.Untuned) else int(settings.seeds))
    ]
    if len(runs) > MOST_RUNS:
        raise InputError(
            f"The plan has {len(runs)} runs, more than {MOST_RUNS}: choose fewer methods, models or seeds."
        )
    return tuple(runs)


def run_alone(task: TaskData, single: Single) -> specs.Run:
    """The run of one method and one seed: that of the plan with the same settings.

    Raises InputError for settings that are none, and for a rank or a length that the method does not have.
    """
    settings, chosen = single.settings, preset_named(single.method)
    check_settings(settings)
    for name, (kind, _) in SIZES.items():
        if (value := getattr(single, name)) is not None and not isinstance(chosen.method, kind):
            what = name.replace("_", " ")
            raise InputError(f"A {what} of {value} is chosen, which {chosen.name!r} does not take: leave it out.")
    tokens, dtype = budget_tokens(task, settings), chosen_dtype(settings.dtype, settings.platform)
    return run_of(task, settings, single.model, chosen, tokens, single.seed, dtype)


def check_settings(settings: Settings) -> None:
    """Raises InputError for what no spec would notice."""
    if not settings.models:
        raise InputError("No model is chosen: choose at least one.")
    check_bounds(settings, leave_out=("epochs",) if settings.tokens else ())
    for name, rate in settings.learning_rates.items():
        preset_named(name)
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
    texts = ((around + len(row.input) + len(row.target)) / CHARS_A_TOKEN for row in task.splits["train"])
    total = sum(min(length + TEMPLATE_TOKENS, settings.max_length) for length in texts)
    return max(1, int(float(f"{total:.2g}")))


def run_of(
    task: TaskData, settings: Settings, model: specs.Model, preset: Preset, tokens: int, seed: int, dtype: str
) -> specs.Run:
    """One run of a plan."""
    budget = None
    if not isinstance(preset.method, specs.Untuned):
        budget = specs.build(
            specs.Budget,
            tokens=tokens,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rates.get(preset.name, preset.learning_rate),
            max_length=settings.max_length,
        )
    tests = len(task.splits["test"])
    generated = min(tests, settings.test_examples)
    evaluation = specs.build(
        specs.Evaluation,
        split="test",
        n_loss=min(tests, MOST_LOSS),
        n_generate=generated,
        max_new_tokens=settings.max_new_tokens,
        generation_dtype=dtype if generated else "fp32",
    )
    return specs.build(
        specs.Run,
        model=model,
        task=task.spec,
        method=method_of(preset, settings),
        budget=budget,
        evaluation=evaluation,
        seed=seed,
        dtype=dtype,
        platform=settings.platform,
    )


def method_of(preset: Preset, settings: Settings) -> specs.Method:
    """A preset's method with the rank or the length that was chosen; the rate suits it, as alpha / rank stays."""
    method = preset.method
    changed: dict[str, float] = {}
    for name, (kind, part) in SIZES.items():
        if (value := getattr(settings, name)) is not None and isinstance(method, kind):
            changed[part] = value
    if isinstance(method, specs.LoRA) and changed and method.scaling == "standard":
        changed["alpha"] = method.alpha * changed["rank"] / method.rank
    return specs.build(type(method), **(method.model_dump() | changed)) if changed else method
