"""Splits that divide neither a group nor a set of rows with the same input."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence

from peftbook.core.errors import InputError
from peftbook.tasks import SPLITS, TaskExample, shared_keys
from peftbook.tasks.similarity import connected


def check_fractions(fractions: Sequence[float]) -> None:
    """Raises InputError for what are not three shares of one whole."""
    is_valid = len(fractions) == 3 and all(math.isfinite(part) and part > 0 for part in fractions)
    if not is_valid or abs(sum(fractions) - 1) > 1e-9:
        raise InputError(f"The fractions {tuple(fractions)} are not three positive numbers that add up to 1.")


def split_examples(
    examples: Sequence[TaskExample],
    *,
    seed: int = 0,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    near: Sequence[str] = (),
) -> dict[str, tuple[TaskExample, ...]]:
    """Splits that divide neither a group nor a set of rows with the same input.

    near: the cluster of near copies of each example, which is not divided either; empty if it may be.
    Units (groups joined by shared inputs) are visited in an order that depends on the seed and on their text alone;
    each goes to the split that lacks most rows, after every split has got one. Within a split the order is by hash.
    Raises InputError if there are fewer than three units.
    """
    units = _units(examples, near)
    if len(units) < len(SPLITS):
        raise InputError(
            f"The rows form only {len(units)} groups that no split may divide (same group, same input, or near copies "
            "that stay together), and three splits need at least 3: choose a finer group column or add rows."
        )
    wanted = {split: fraction * len(examples) for split, fraction in zip(SPLITS, fractions, strict=True)}
    splits: dict[str, list[TaskExample]] = {split: [] for split in SPLITS}
    for place, name in enumerate(sorted(units, key=lambda unit: _rank(seed, unit))):
        lacking = {split: wanted[split] - len(splits[split]) for split in SPLITS}
        split = SPLITS[-1 - place] if place < len(SPLITS) else max(SPLITS, key=lambda each: lacking[each])
        splits[split].extend(units[name])
    return {
        split: tuple(sorted(rows, key=lambda row: (_rank(seed, row.asked), _rank(seed, row.target), row.id)))
        for split, rows in splits.items()
    }


def _rank(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}\n{text}".encode()).hexdigest()


def _units(examples: Sequence[TaskExample], near: Sequence[str]) -> dict[str, list[TaskExample]]:
    """Examples joined by group, by input or by cluster of near copies, each unit under its alphabetically first key."""
    units: dict[str, list[TaskExample]] = defaultdict(list)
    for key, example in zip(connected(shared_keys(examples, near)), examples, strict=True):
        units[key].append(example)
    return dict(units)
