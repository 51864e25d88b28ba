"""PyTorch's side of the trainings in a page: one arm of the study at its lowest rate, and the losses of its record."""

from __future__ import annotations

from peftbook.core.records import default_store
from peftbook.studies import live
from peftbook.training.execute import Trainee
from peftbook.training.probes import live as probes

__all__ = ["AGREED", "lowest", "recorded_losses", "start"]

AGREED = 1e-4  # nats per token: how far a loss of the page may be from PyTorch's


def lowest(name: str) -> float:
    """An arm's lowest rate, at which rounding grows least."""
    return min(live.ARMS[name].rates)


def start(name: str, seed: int = 1) -> Trainee:
    """A training of an arm at its lowest rate, ready in PyTorch."""
    return probes.prepared(live.probe(name, lowest(name), seed))


def recorded_losses(name: str) -> list[float]:
    """PyTorch's losses at an arm's lowest rate."""
    return default_store().need(live.probe(name, lowest(name), 1)).curve["train_loss_nats"]
