"""Batches of texts of unequal length: padding, buckets, and several texts in one row with a wall between them."""

from collections.abc import Sequence

import torch
from torch import Tensor


def padding_share(batches: Sequence[Sequence[int]], lengths: Sequence[int], width: int = 0) -> float:
    """1 − real tokens / computed positions, each batch padded to its longest text, or to `width` if that is given."""
    real = sum(lengths[index] for batch in batches for index in batch)
    computed = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    return 1 - real / (width * len(batches) if width else computed)


def bucketed(lengths: Sequence[int], batch_size: int, pool: int, seed: int = 0) -> list[list[int]]:
    """All indices in batches: shuffled, cut into pools of `pool` batches, each pool sorted by length, and shuffled.

    A pool of one batch is plain random batching; one pool for all is a full sort.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches: list[list[int]] = []
    for at in range(0, len(order), batch_size * pool):
        sorted_pool = sorted(order[at : at + batch_size * pool], key=lambda index: lengths[index])
        cut = [sorted_pool[start : start + batch_size] for start in range(0, len(sorted_pool), batch_size)]
        batches += [cut[which] for which in torch.randperm(len(cut), generator=generator).tolist()]
    return batches


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices in rows of at most `capacity` tokens: longest first, each into the first row with room for it.

    Raises ValueError if a text is longer than a row. Source: first-fit decreasing, Johnson 1973; for training texts
    Krell et al. 2021, arXiv:2107.02027.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if lengths[index] > capacity:
            raise ValueError(f"text {index} has {lengths[index]} tokens and a row {capacity}: truncate it first.")
        row = next((at for at, left in enumerate(room) if left >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def packed_row(texts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Texts end to end: ids, positions from 0 in each text, its number; (t,) each."""
    lengths = torch.tensor([len(text) for text in texts])
    positions = torch.cat([torch.arange(len(text)) for text in texts])
    numbers = torch.arange(len(texts)).repeat_interleave(lengths)
    return torch.cat(list(texts)), positions, numbers


def block_mask(numbers: Tensor) -> Tensor:
    """Position i sees j if j ≤ i and both are of the same text. Boolean, (t, t)."""
    same = numbers[:, None] == numbers[None, :]
    return same & torch.ones_like(same).tril()
