"""Double quantisation: the constants of the 4-bit blocks are themselves stored in 8 bits."""

import torch
from torch import Tensor

from peftbook.scratch.nf4 import dequantize_blocks, quantize_blocks


def dynamic_levels() -> Tensor:
    """The 256 levels of the signed 8-bit dynamic type, ascending. float32, (256,).

    Decade e = 0 … 6 covers magnitudes 10^(e-7) to 10^(e-6) with 2^e levels of either sign, the midpoints of 2^e
    equal steps: the top decade gets half of all levels, and there is still one at 5.5e-7.
    Zero and +1, but not -1, complete the 256.
    Source: bitsandbytes `create_dynamic_map(signed=True)`, after Dettmers 2015, arXiv:1511.04561.
    """
    levels = [torch.tensor([0.0, 1.0])]
    for e in range(7):
        edges = torch.linspace(0.1, 1, 2**e + 1)
        midpoints = 10 ** (e - 6) * (edges[:-1] + edges[1:]) / 2  # (2^e,)
        levels += [midpoints, -midpoints]
    return torch.cat(levels).sort().values


def double_quantize(absmax: Tensor, block_size: int = 256) -> tuple[Tensor, Tensor, Tensor]:
    """Quantise what is left of the block constants after their mean: absmax - offset, offset = mean(absmax).

    The mean goes first because absmax is positive, and a signed type would waste its negative half on it.
    absmax: float32, (m,).
    Returns codes, uint8, (m,); absmax2, float32, (⌈m / block_size⌉,); offset, float32, ().
    Source: Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 3. The paper says FP8, bitsandbytes uses this
    type; on a CPU it looks codes up in a table of 65,536 cells, and so may miss the nearest level by a hair.
    """
    offset = absmax.mean()
    codes, absmax2 = quantize_blocks(absmax - offset, dynamic_levels(), block_size)
    return codes, absmax2, offset


def double_dequantize(codes: Tensor, absmax2: Tensor, offset: Tensor, block_size: int = 256) -> Tensor:
    """The block constants back: absmax = levels[code] * absmax2[block] + offset. float32, (m,)."""
    return dequantize_blocks(codes, absmax2, dynamic_levels(), block_size) + offset


def bits_per_parameter(block_size: int = 64, double_quant: bool = True, block2: int = 256) -> float:
    """Stored bits for one weight: 4 + 32/block_size, or 4 + 8/block_size + 32/(block_size * block2).

    Exact when blocks are full. The one float32 offset of a tensor is left out, as in the paper.
    """
    if not double_quant:
        return 4 + 32 / block_size
    return 4 + 8 / block_size + 32 / (block_size * block2)
