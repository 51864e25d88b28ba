"""NF4: a weight stored as one of 16 quantiles of the normal distribution, times its block's largest magnitude."""

import torch
from torch import Tensor, nn

OFFSET = 0.9677083  # ½(31/32 + 29/30) as bitsandbytes rounds it: the probability of the outermost level


def nf4_levels(bits: int = 4) -> Tensor:
    """The 16 levels, ascending: Φ⁻¹ at evenly spaced probabilities, scaled to [-1, 1]. float32, (16,).

    Seven levels are negative and eight positive. Each side runs from the offset to probability ½ and drops that
    end, and one exact zero joins them. With fewer bits the same recipe gives (2^bits,) levels.
    Source: bitsandbytes `create_normal_map`; its float32 grid and division are kept, so that every bit agrees.
    """
    half = 2 ** (bits - 1)
    negative = -torch.special.ndtri(torch.linspace(OFFSET, 0.5, half).double()[:-1])  # (7,)
    positive = torch.special.ndtri(torch.linspace(OFFSET, 0.5, half + 1).double()[:-1]).flip(0)  # (8,)
    levels = torch.cat([negative, torch.zeros(1), positive]).float()
    return levels / levels.max()


def quantize_blocks(w: Tensor, levels: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Replace each value by the nearest level: code = argmin_k |w / absmax[block] - levels[k]|.

    w: any shape, n values, read row by row.   levels: ascending, at most 256, in [-1, 1].
    Returns codes, uint8, (n,), and absmax, float32, (⌈n / block_size⌉,). The last block may be short.
    On a tie the lower level wins. A block of zeros keeps absmax 0; a NaN or infinity spoils its whole block.
    """
    flat = w.detach().float().flatten()
    blocks = nn.functional.pad(flat, (0, -flat.numel() % block_size)).view(-1, block_size)  # zeros raise no maximum
    absmax = blocks.abs().amax(dim=1)
    scaled = blocks * (1 / absmax.clamp(min=1e-38))[:, None]  # in [-1, 1]
    levels = levels.to(w.device)
    midpoints = (levels[1:] + levels[:-1]) / 2
    codes = torch.bucketize(scaled, midpoints).to(torch.uint8)
    return codes.flatten()[: flat.numel()], absmax


def dequantize_blocks(codes: Tensor, absmax: Tensor, levels: Tensor, block_size: int) -> Tensor:
    """Map codes back to values: w = levels[code] * absmax[block]. float32, (n,)."""
    return levels.to(codes.device)[codes.long()] * absmax.repeat_interleave(block_size)[: codes.numel()]


def quantize_nf4(w: Tensor, block_size: int = 64) -> tuple[Tensor, Tensor]:
    """NF4 codes of the weights, uint8, (n,), values 0-15, and absmax, float32, (n / block_size,).

    Raises ValueError if n is not a multiple of block_size.
    Source: Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 3.
    """
    if w.numel() % block_size:
        raise ValueError(f"{w.numel()} weights do not fill blocks of {block_size}: choose a block size that divides.")
    return quantize_blocks(w, nf4_levels(), block_size)


def dequantize_nf4(codes: Tensor, absmax: Tensor, block_size: int = 64) -> Tensor:
    """The weights that NF4 codes stand for: float32, (n,), in the units of absmax."""
    return dequantize_blocks(codes, absmax, nf4_levels(), block_size)


def pack(codes: Tensor) -> Tensor:
    """Two codes a byte, the first in the high half. uint8, (n,) to (n / 2,). Raises ValueError if n is odd."""
    if codes.numel() % 2:
        raise ValueError(f"{codes.numel()} codes do not fill whole bytes: pack an even number.")
    return codes[0::2] << 4 | codes[1::2]


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`: uint8, (n / 2,) to (n,)."""
    return torch.stack([packed >> 4, packed & 0b1111], dim=1).flatten()
