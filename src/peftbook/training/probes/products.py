"""The first losses of one training under several ways to multiply."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.runtime.precision import products_here
from peftbook.training.execute import prepare
from peftbook.training.loop import Progress
from peftbook.training.probes import EnoughError, Findings, positive
from peftbook.training.products import widened_products

WAYS: dict[str, tuple[str, Callable[[], contextlib.AbstractContextManager]]] = {
    "native": ("bf16", contextlib.nullcontext),
    "widened": ("bf16", widened_products),
    "float32": ("fp32", contextlib.nullcontext),
}


def first_losses(probe: specs.Probe) -> Findings:
    """The losses of the first steps of the probe's run with native bfloat16 products, widened ones, and in float32.

    settings: steps.  curve: native, widened, float32, each in nats per label token.
    Raises InputError where the processor has no products of bfloat16 to compare with.
    """
    (steps,), (run,) = positive(probe, "steps"), probe.runs
    if not products_here().native:
        raise InputError("This machine has no products of bfloat16: run the probe on a processor that has them.")
    return Findings(
        measurements={"steps": steps},
        curve={way: losses_of(run.model_copy(update={"dtype": dtype}), steps, to) for way, (dtype, to) in WAYS.items()},
    )


def losses_of(run: specs.Run, steps: int, multiply: Callable[[], contextlib.AbstractContextManager]) -> list[float]:
    """Losses of a run's first steps."""
    values: list[float] = []

    def note(progress: Progress) -> None:
        values.append(round(progress.loss, 6))
        if progress.step == steps:
            raise EnoughError

    trainee = prepare(run)
    with multiply(), contextlib.suppress(EnoughError):
        trainee.train(note)
    return values
