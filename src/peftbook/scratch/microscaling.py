"""Formats that hardware multiplies: FP8, and four-bit floats whose blocks share a scale, MXFP4 and NVFP4."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from peftbook.scratch.groups import in_groups, pack_bits

BIAS_E8M0 = 127


def float_levels(exponent_bits: int, mantissa_bits: int) -> Tensor:
    """The finite numbers ≥ 0 of a small float in the order of their codes. float32.

    With e the exponent's field, m the mantissa's and b = 2^(exponent_bits − 1) − 1:
    2^(e − b) (1 + m / 2^mantissa_bits), and 2^(1 − b) m / 2^mantissa_bits for e = 0.
    E2M1: 0, ½, 1, 1½, 2, 3, 4, 6.   E4M3: 0 to 448; its highest code is not a number and is left out.
    Source: OCP 8-bit Floating Point Specification, and OCP Microscaling Formats 1.0, section 5.3.
    """
    e, m = torch.meshgrid(torch.arange(2**exponent_bits), torch.arange(2**mantissa_bits), indexing="ij")
    fraction = (m / 2**mantissa_bits + (e > 0)).flatten()
    levels = fraction * torch.exp2((e.clamp(min=1) - 2 ** (exponent_bits - 1) + 1).flatten().float())
    return levels[:-1] if exponent_bits == 4 else levels


E2M1, E4M3 = float_levels(2, 1), float_levels(4, 3)


def encode(x: Tensor, levels: Tensor) -> Tensor:
    """The code of the nearest level, and the sign above it: on a tie the even code, beyond the last level the last.

    x: any shape.   levels: from `float_levels`.   Returns uint8, in the shape of x; the sign is the bit above the
    levels' bits.
    """
    middles = (levels[1:] + levels[:-1]) / 2
    odd = torch.arange(len(middles)) % 2 == 1
    middles = torch.where(odd, torch.nextafter(middles, torch.zeros(())), middles)  # a tie there goes up
    sign = 2 ** (len(levels) - 1).bit_length()
    return (torch.bucketize(x.abs(), middles.to(x.device)) + sign * (x < 0)).to(torch.uint8)


def decode(codes: Tensor, levels: Tensor) -> Tensor:
    """The numbers that codes stand for: float32, in their shape."""
    sign = 2 ** (len(levels) - 1).bit_length()
    return levels.to(codes.device)[codes.long() % sign] * torch.where(codes >= sign, -1.0, 1.0)


class FP8(NamedTuple):
    """codes: E4M3 with its sign, uint8, (d_out, d_in).   scale: float32, (d_out, 1)."""

    codes: Tensor
    scale: Tensor

    @property
    def weight(self) -> Tensor:
        """float32, (d_out, d_in)."""
        return decode(self.codes, E4M3) * self.scale

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """What is stored."""
        return self.codes, self.scale


def quantize_fp8(W: Tensor) -> FP8:
    """E4M3 with one scale a row: code = E4M3(w / s), s = max |w| of the row / 448.

    W: (d_out, d_in).   Source: Micikevicius et al. 2022, arXiv:2209.05433, for the type; a scale a row is what
    compressed-tensors and FBGEMM store.
    """
    scale = W.detach().float().abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / E4M3[-1]
    return FP8(encode(W.detach().float() / scale, E4M3), scale)


class MXFP4(NamedTuple):
    """codes: E2M1 with its sign, uint8, (d_out, d_in), below 16.   exponents: E8M0, uint8, (d_out, d_in / 32)."""

    codes: Tensor
    exponents: Tensor

    @property
    def weight(self) -> Tensor:
        """Code times 2^(exponent − 127): float32, (d_out, d_in)."""
        scale = torch.exp2(self.exponents.float() - BIAS_E8M0)
        return decode(self.codes, E2M1) * scale.repeat_interleave(32, dim=1)

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """What is stored: two codes a byte, and a byte a block."""
        return pack_bits(self.codes, 4), self.exponents


def quantize_mxfp4(W: Tensor) -> MXFP4:
    """E2M1 in blocks of 32 that share a power of two: scale = 2^(⌊log₂ max |w|⌋ − 2), code = E2M1(w / scale).

    2 is the exponent of E2M1's largest power of two, 4. The largest weight of a block lies in [4, 8) scales, and what
    is above 6 is cut to it.
    W: (d_out, d_in).   Raises ValueError if 32 does not divide d_in.
    Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3.3 and 6.3; microsoft/microxcaling.
    """
    groups = in_groups(W, 32)
    _, exponent = torch.frexp(groups.abs().amax(dim=-1))  # max |w| = f · 2^exponent with f in [½, 1)
    exponents = (exponent - 3 + BIAS_E8M0).clamp(0, 254).to(torch.uint8)
    scale = torch.exp2(exponents.float() - BIAS_E8M0)[..., None]
    return MXFP4(encode(groups / scale, E2M1).flatten(1), exponents)


class NVFP4(NamedTuple):
    """codes: E2M1, (d_out, d_in).   scales: E4M3, (d_out, d_in / 16).   Both uint8.   tensor_scale: float32, ()."""

    codes: Tensor
    scales: Tensor
    tensor_scale: Tensor

    @property
    def weight(self) -> Tensor:
        """Code times the block's scale times the tensor's: float32, (d_out, d_in)."""
        scale = decode(self.scales, E4M3) * self.tensor_scale
        return decode(self.codes, E2M1) * scale.repeat_interleave(16, dim=1)

    @property
    def arrays(self) -> tuple[Tensor, ...]:
        """What is stored: two codes a byte, a byte a block, four bytes a tensor."""
        return pack_bits(self.codes, 4), self.scales, self.tensor_scale


def quantize_nvfp4(W: Tensor) -> NVFP4:
    """E2M1 in blocks of 16 with a scale in E4M3, and one in float32 for the tensor.

    t = max |W| / (6 · 448),   s = E4M3(max |w| of the block / (6 t)),   code = E2M1(w / (s t)).

    W: (d_out, d_in).   Raises ValueError if 16 does not divide d_in.
    Source: NVIDIA 2025, Pretraining Large Language Models with NVFP4, arXiv:2509.25149; the formulas are those of its
    Model Optimizer and Transformer Engine.
    """
    groups = in_groups(W, 16)
    tensor_scale = groups.abs().max().clamp(min=1e-30) / (E2M1[-1] * E4M3[-1])
    scales = encode(groups.abs().amax(dim=-1) / (E2M1[-1] * tensor_scale), E4M3)
    step = decode(scales, E4M3)[..., None] * tensor_scale
    codes = encode(torch.where(step > 0, groups / step, torch.zeros_like(groups)), E2M1)
    return NVFP4(codes.flatten(1), scales, tensor_scale)
