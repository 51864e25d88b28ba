"""Bottleneck adapters: two small matrices after each sublayer, with a nonlinearity between them."""

from torch import Tensor, nn

from peftbook.scratch.lora import named_linears, replace_module


class BottleneckAdapter(nn.Module):
    """A frozen linear layer followed by h + W_up gelu(W_down h + b_down) + b_up.

    x: (*, d_in).   h = linear(x): (*, d_out).   W_down: (width, d_out).   W_up: (d_out, width), zero at the start, so
    that the layer starts as the one it wraps. Unlike LoRA it cannot be merged: the nonlinearity stands in between.
    Source: Houlsby et al. 2019, arXiv:1902.00751, section 2.1; there both matrices start near zero, N(0, 0.01²).
    """

    def __init__(self, linear: nn.Linear, width: int):
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.out_features, width)
        self.up = nn.Linear(width, linear.out_features)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        return h + self.up(nn.functional.gelu(self.down(h)))


def add_adapters(model: nn.Module, width: int, targets: tuple[str, ...] = ("o_proj", "down_proj")) -> nn.Module:
    """Put an adapter after every linear layer whose last name part is in `targets`: the ends of the two sublayers.

    The residual sum comes after them, so the adapter stands where Houlsby's does. Returns the model.
    Raises ValueError if nothing matches.
    """
    for name, linear in named_linears(model, targets).items():
        adapter = BottleneckAdapter(linear, width).to(linear.weight.device)
        replace_module(model, name, adapter)
    return model
