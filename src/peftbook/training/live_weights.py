"""The small Llama as a page of the book carries it: a quarter of its bytes, rounded the same way each time.

The embedding is in eight bits a row, the gains are whole. The linear layers come twice: `rows` in eight bits a row, for
every method but one, and `blocks` in NF4, QLoRA's. What PyTorch trains for the page's records is rounded here as well,
so that both start from the same float32 values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from peftbook.core.errors import InputError
from peftbook.scratch.nf4 import dequantize_nf4, pack, quantize_nf4
from peftbook.scratch.rows import dequantize_rows, quantize_rows

BASES = ("rows", "blocks")
BLOCK = 64


def kind_of(name: str, value: Tensor, base: str) -> str:
    """How a tensor of this name is stored: plain, rows or blocks. Raises InputError for an unknown base."""
    if base not in BASES:
        raise InputError(f"Unknown base {base!r}: choose one of {', '.join(BASES)}.")
    if value.ndim != 2:
        return "plain"
    return "rows" if "embed_tokens" in name else base


def rounded(value: Tensor, kind: str) -> Tensor:
    """What is left of a tensor once it was stored, in float32."""
    if kind == "rows":
        return dequantize_rows(*quantize_rows(value))
    if kind == "blocks":
        return dequantize_nf4(*quantize_nf4(value, BLOCK), BLOCK).view_as(value)
    return value


@torch.no_grad()
def round_base(model: nn.Module, base: str) -> nn.Module:
    """Round every weight of an untouched model as the page stores it, in place; a tied head follows its embedding."""
    for name, value in model.named_parameters():
        value.copy_(rounded(value, kind_of(name, value, base)))
    return model


def stored(state: dict[str, Tensor], base: str) -> tuple[bytes, list[dict[str, Any]]]:
    """The tensors of a state as bytes: codes, then the constants of rows or blocks in float32, each on four bytes.

    Returns the bytes, and of each tensor name, shape, kind, offset of its codes, offset of its constants.
    """
    content, entries = bytearray(), []
    for name, value in state.items():
        kind = kind_of(name, value, base)
        places = []
        for part in parts(value, kind):
            content += bytes(-len(content) % 4)
            places.append(len(content))
            content += part.contiguous().numpy().tobytes()
        codes, scales = (*places, 0)[:2]
        entries.append({"name": name, "shape": list(value.shape), "kind": kind, "codes": codes, "scales": scales})
    return bytes(content), entries


def parts(value: Tensor, kind: str) -> Iterator[Tensor]:
    """A tensor's codes and its constants, or the tensor itself."""
    if kind == "plain":
        yield value.detach().float()
        return
    codes, constants = quantize_rows(value) if kind == "rows" else quantize_nf4(value, BLOCK)
    yield codes if kind == "rows" else pack(codes)
    yield constants
