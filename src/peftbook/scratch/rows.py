"""Eight bits a row: a weight stored as one of 255 even steps, times a constant of its row."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 127


def quantize_rows(w: Tensor) -> tuple[Tensor, Tensor]:
    """Replace each weight by the nearest step of its row: code = round(w / scale), scale = max |w| / 127.

    w: (d_out, d_in). Returns codes, int8, (d_out, d_in), values −127 … 127, and scales, float32, (d_out,), in the
    units of w. On a tie the even code wins. A row of zeros keeps scale 0.
    """
    w = w.detach().float()
    scales = w.abs().amax(dim=1) / STEPS
    codes = torch.round(w / scales.clamp(min=1e-38)[:, None])
    return codes.to(torch.int8), scales


def dequantize_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """Map codes back to weights: w = code · scale[row]. float32, in the shape of the codes."""
    return codes.float() * scales[:, None]
