"""PyTorch's side of the trainings in a page: one arm of the study at its lowest rate, and its first losses."""

from __future__ import annotations

from peftbook.studies import live
from peftbook.training.execute import Trainee
from peftbook.training.probes import live as probes

__all__ = ["AGREED", "first_losses", "lowest", "start"]

AGREED = 1e-4  # nats per token: how far a loss of the page may be from PyTorch's


class EnoughError(Exception):
    """Raised after the steps that are compared."""


def lowest(name: str) -> float:
    """An arm's lowest rate, at which rounding grows least."""
    return min(live.ARMS[name].rates)


def start(name: str, seed: int = 1) -> Trainee:
    """A training of an arm at its lowest rate, ready in PyTorch."""
    return probes.prepared(live.probe(name, lowest(name), seed))


def first_losses(name: str) -> list[float]:
    """PyTorch's losses of the first steps at an arm's lowest rate."""
    losses: list[float] = []

    def see(progress) -> None:
        losses.append(progress.loss)
        if progress.step == live.ENDS:
            raise EnoughError

    try:
        start(name).train(see)
    except EnoughError:
        return losses
    raise AssertionError(f"{name} ended after {len(losses)} steps")
