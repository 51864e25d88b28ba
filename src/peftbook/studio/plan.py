"""Plan: from what a reader chose to the runs that answer it, without torch; and whether each fits, before it starts."""

from __future__ import annotations

from collections.abc import Mapping

from peftbook.core import specs
from peftbook.core.canonical import build
from peftbook.core.errors import InputError
from peftbook.core.options import check_bounds
from peftbook.methods import Preset, preset
from peftbook.runtime.precision import chosen_dtype
from peftbook.studies.chosen_rates import learning_rate_for
from peftbook.studio.settings import MOST_EPOCHS, Settings, Single
from peftbook.tasks import TaskData

MOST_RUNS = 200
MOST_LOSS = 1000  # test examples
MOST_RATE = 1000  # prompts are trained at 30 and more
SIZES = ("rank", "prompt_length", "prefix_length")  # settings that not every method has
CHARS_A_TOKEN, TEMPLATE_TOKENS = 4, 16  # of a text before its tokenizer is at hand, and of the turns around it


def plan(task: TaskData, settings: Settings, once: Mapping[specs.Model, int] = {}) -> tuple[specs.Run, ...]:
    """The runs of a plan, each once: for every model the untuned one first, then method by method and seed by seed.

    once: tokens of one pass over the training rows by model, where they are counted; else they are estimated.
    Raises InputError for settings that are none.
    """
    check_settings(settings)
    chosen = [preset(name) for name in dict.fromkeys(("untuned", *settings.methods))]
    tokens = {model: budget_tokens(task, settings, once.get(model)) for model in settings.models}
    dtype = computed_in(settings)
    runs = [
        run_of(task, settings, model, choice, tokens[model], seed, dtype)
        for model in dict.fromkeys(settings.models)
        for choice in chosen
        for seed in range(int(settings.seeds) if choice.method.trains else 1)
    ]
    if len(runs) > MOST_RUNS:
        raise InputError(
            f"The plan has {len(runs)} runs, more than {MOST_RUNS}: choose fewer methods, models or seeds."
        )
    return tuple(runs)


def run_alone(task: TaskData, single: Single, once: Mapping[specs.Model, int] = {}) -> specs.Run:
    """The run of one method and one seed: that of the plan with the same settings.

    Raises InputError for settings that are none, and for a rank or a length that the method does not have.
    """
    settings, chosen = single.settings, preset(single.method)
    check_settings(settings)
    for name in SIZES:
        value, sized = getattr(single, name), chosen.method.sized
        if value is not None and sized(**{name: value}) == sized(**{name: value + 1}):
            what = name.replace("_", " ")
            raise InputError(f"A {what} of {value} is chosen, which {chosen.name!r} does not take: leave it out.")
    tokens, dtype = budget_tokens(task, settings, once.get(single.model)), computed_in(settings)
    return run_of(task, settings, single.model, chosen, tokens, single.seed, dtype)


def check_settings(settings: Settings) -> None:
    """Raises InputError for what no spec would notice."""
    if not settings.models:
        raise InputError("No model is chosen: choose at least one.")
    check_bounds(settings, leave_out=("epochs",) if settings.tokens else ())
    for name, rate in settings.learning_rates.items():
        preset(name)
        if not 0 < rate <= MOST_RATE:
            raise InputError(f"The learning rate of {name} is {rate!r}: choose a number above 0, at most {MOST_RATE}.")


def computed_in(settings: Settings) -> str:
    """The compute type of all runs. Raises InputError for weights in bfloat16 that are to be multiplied otherwise."""
    if settings.weights != "bf16":
        return chosen_dtype(settings.dtype, settings.platform)
    if settings.dtype not in ("auto", "bf16"):
        raise InputError(
            f"Weights in bf16 are multiplied in bf16, not in {settings.dtype}: choose dtype auto, or weights fp32."
        )
    return "bf16"


def budget_tokens(task: TaskData, settings: Settings, counted: int | None = None) -> int:
    """Tokens of one training: those chosen, or those of all epochs. Raises InputError for more than can be meant."""
    once = counted or training_tokens(task, settings)
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
    task: TaskData, settings: Settings, model: specs.Model, choice: Preset, tokens: int, seed: int, dtype: str
) -> specs.Run:
    budget = None
    if choice.method.trains:
        rate = settings.learning_rates.get(choice.name) or learning_rate_for(choice.name)
        budget = build(
            specs.Budget,
            tokens=tokens,
            batch_size=settings.batch_size,
            learning_rate=rate,
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
    method = choice.method.sized(**{name: getattr(settings, name) or 0 for name in SIZES})
    return build(
        specs.Run,
        model=model,
        task=task.spec,
        method=method,
        budget=budget,
        evaluation=evaluation,
        seed=seed,
        dtype=dtype,
        platform=settings.platform,
        weights=settings.weights,
        checkpointing=settings.checkpointing and method.trains,
    )
