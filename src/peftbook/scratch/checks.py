"""Checks of a run that went wrong: losses, token ids and weights to the one number that a fault raises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # curves and token ids are judged without torch
    from torch import Tensor

Rows = Sequence[Sequence[int]]


def means(losses: Sequence[float], window: int = 5) -> list[float]:
    """Means of `window` neighbouring steps: one batch says little."""
    return [sum(losses[at : at + window]) / window for at in range(len(losses) - window + 1)]


def remaining(losses: Sequence[float]) -> float:
    """Share of the first training loss that is there at the end."""
    smooth = means(losses)
    return smooth[-1] / smooth[0]


def outweighs(updates: Iterable[tuple[Tensor, Tensor]]) -> float:
    """‖ΔW‖ / ‖W‖ over pairs of ΔW, what training has added to a matrix (γBA of a LoRA), and W, what it started from."""
    squares = [(update.float().square().sum(), weight.float().square().sum()) for update, weight in updates]
    added, there = (sum(values) for values in zip(*squares, strict=True))
    return math.sqrt(added / there)


def risen(held_out: Sequence[float]) -> float:
    """Nats by which the loss on held-out rows ends above its lowest."""
    return held_out[-1] - min(held_out)


def stuck(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Share of the trained values that a step left as they were, to the bit."""
    same = sum((after[name] == value).sum().item() for name, value in before.items())
    return same / sum(value.numel() for value in before.values())


def unended(labels: Rows, end: int) -> float:
    """Share of the rows among whose labels the token that ends the turn is missing."""
    return sum(end not in row for row in labels) / len(labels)


def stray(labels: Rows, starts: Sequence[int]) -> float:
    """Share of the graded tokens that stand before their row's answer, which begins at `starts`."""
    from peftbook.scratch.labels import IGNORE

    graded = [[at for at, label in enumerate(row) if label != IGNORE] for row in labels]
    before = sum(at < start for row, start in zip(graded, starts, strict=True) for at in row)
    return before / sum(map(len, graded))


def shared(train: Sequence[str], test: Sequence[str]) -> float:
    """Share of the test inputs that are training inputs too, up to case and blanks."""
    known = {" ".join(text.lower().split()) for text in train}
    return sum(" ".join(text.lower().split()) in known for text in test) / len(test)


def unlike(trained: Rows, asked: Rows) -> float:
    """Share of the rows that are asked with other tokens than those before their answer in training."""
    return sum(list(one) != list(other) for one, other in zip(trained, asked, strict=True)) / len(trained)


def doubled(trained: Rows, asked: Rows, start: int) -> float:
    """How many times as often as in training a prompt has the token that starts a turn, or a text, less one."""
    once, now = (sum(list(row).count(start) for row in rows) for rows in (trained, asked))
    return now / once - 1
