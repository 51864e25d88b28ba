"""A linear layer whose weight is stored in NF4: the frozen base of QLoRA."""

from torch import Tensor, nn

from peftbook.scratch.double_quant import double_dequantize, double_quantize
from peftbook.scratch.lora import named_linears, replace_module
from peftbook.scratch.nf4 import dequantize_nf4, pack, quantize_nf4, unpack


class NF4Linear(nn.Module):
    """A frozen linear layer that unpacks its 4-bit weight in every forward: h = W x + b.

    x: (*, d_in).   h: (*, d_out), in the type of x.
    Autograd keeps the unpacked W until the backward pass; bitsandbytes unpacks it a second time instead.
    Raises ValueError if d_in d_out is not a multiple of block_size.
    Source: Dettmers et al. 2023, QLoRA, arXiv:2305.14314, section 3, equations 5 and 6.
    """

    packed: Tensor  # uint8, (d_in d_out / 2,): two codes a byte
    absmax: Tensor  # (m,), one for each of m blocks: uint8 codes if double_quant, else float32
    absmax2: Tensor  # float32, (⌈m / 256⌉,), only if double_quant
    offset: Tensor  # float32, (), only if double_quant

    def __init__(self, linear: nn.Linear, block_size: int = 64, double_quant: bool = True):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.block_size, self.double_quant = block_size, double_quant
        codes, absmax = quantize_nf4(linear.weight, block_size)
        self.register_buffer("packed", pack(codes))
        if double_quant:
            absmax, absmax2, offset = double_quantize(absmax)
            self.register_buffer("absmax2", absmax2)
            self.register_buffer("offset", offset)
        self.register_buffer("absmax", absmax)
        self.bias = linear.bias
        self.requires_grad_(False)

    def dequantize(self) -> Tensor:
        """The weight this layer computes with: float32, (d_out, d_in)."""
        absmax = double_dequantize(self.absmax, self.absmax2, self.offset) if self.double_quant else self.absmax
        w = dequantize_nf4(unpack(self.packed), absmax, self.block_size)
        return w.view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantize().to(x.dtype), self.bias)


def quantize_linears(model: nn.Module, targets: set[str], double_quant: bool = True) -> list[str]:
    """Store in NF4 every linear layer whose last name part is in `targets`; `add_lora` on top makes it QLoRA.

    Returns the full names. Raises ValueError if nothing matches.
    """
    layers = named_linears(model, targets)
    for name, linear in layers.items():
        replace_module(model, name, NF4Linear(linear, double_quant=double_quant))
    return list(layers)
