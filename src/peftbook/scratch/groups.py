"""Integer formats: a matrix as codes of few bits, with a scale and a zero point for each group of a row's weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 2.0**-24  # of the positive numbers of float16: a group of zeros gets this scale


class Grouped(NamedTuple):
    """A matrix in groups of g neighbours of a row: w = scale[group] (code − zero[group]).

    codes: uint8, (d_out, d_in), below 2^bits.   scale: float16, (d_out, d_in / g).   zero: (d_out, d_in / g), uint8
    below 2^bits where it is packed like a code (GPTQ, AWQ), float16 where it is free (HQQ).
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int

    @property
    def weight(self) -> Tensor:
        """The weights that the codes stand for: float32, (d_out, d_in)."""
        group = self.codes.shape[1] // self.scale.shape[1]
        scale, zero = (part.float().repeat_interleave(group, dim=1) for part in (self.scale, self.zero))
        return scale * (self.codes.float() - zero)

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """What is stored: packed codes, scales, and zero points, which are packed if they are integers."""
        zero = self.zero if self.zero.is_floating_point() else pack_bits(self.zero, self.bits)
        return pack_bits(self.codes, self.bits), self.scale, zero


def min_max_grid(groups: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Even steps from the least to the greatest weight of each group, zero among them.

    scale = (max(w, 0) − min(w, 0)) / (2^bits − 1),   zero = round(−min(w, 0) / scale).

    groups: (…, g).   Returns scale, float16, (…,), and zero, uint8, (…,), below 2^bits.
    Source: Frantar et al. 2022, whose code takes this grid for every group; `quant.py` of IST-DASLab/gptq.
    """
    most = 2**bits - 1
    low, high = groups.amin(dim=-1).clamp(max=0), groups.amax(dim=-1).clamp(min=0)
    scale = ((high - low) / most).clamp(min=SMALLEST).half()
    return scale, (-low / scale.float()).round().clamp(0, most).to(torch.uint8)


def codes_on(w: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest code of each weight on a grid: code = clamp(round(w / scale + zero), 0, 2^bits − 1).

    w, scale, zero: shapes that broadcast.   Returns uint8, in the shape of w.
    """
    return (w / scale.float() + zero.float()).round().clamp(0, 2**bits - 1).to(torch.uint8)


def round_to_nearest(W: Tensor, bits: int, group: int = 64) -> Grouped:
    """Each weight to the nearest step of its group's `min_max_grid`: what all methods of this kind are held against.

    W: (d_out, d_in).   Raises ValueError if `group` does not divide d_in.
    """
    groups = in_groups(W, group)
    scale, zero = min_max_grid(groups, bits)
    codes = codes_on(groups, scale[..., None], zero[..., None], bits)
    return Grouped(codes.flatten(1), scale, zero, bits)


def in_groups(W: Tensor, group: int) -> Tensor:
    """The rows of a matrix cut into groups: float32, (d_out, d_in / group, group). Raises ValueError on a rest."""
    if W.shape[1] % group:
        raise ValueError(f"rows of {W.shape[1]} weights do not fill groups of {group}: choose a size that divides.")
    return W.detach().float().unflatten(1, (-1, group))


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Codes of `bits` bits one after the other, the lowest bit first: uint8, (⌈n · bits / 8⌉,)."""
    stream = (codes.flatten()[:, None] >> torch.arange(bits, device=codes.device) & 1).flatten()
    stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8)).view(-1, 8)
    return (stream << torch.arange(8, device=codes.device)).sum(dim=1).to(torch.uint8)
