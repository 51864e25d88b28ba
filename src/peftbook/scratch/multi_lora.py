"""Many LoRA adapters in one batch: every row goes through the shared weights and through its own A and B."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peftbook.scratch.lora import replace_module


class MultiLoRALinear(nn.Module):
    """A linear layer with n adapters, one for each row of the batch: h_i = W x_i + b + gamma B_k(i) A_k(i) x_i.

    x: (batch, tokens, d_in).   A: (n, r, d_in).   B: (n, d_out, r).   h: (batch, tokens, d_out).
    `select` gathers the rows' A and B once, so that every later forward pass is two batched products of rank r beside
    one dense product that all rows share. Nothing is merged: a merged W can serve only one adapter.
    Source: Hu et al. 2021, LoRA, arXiv:2106.09685, section 4.2, which names the option; batched like this in
    Chen et al. 2023, Punica, arXiv:2310.18547.
    """

    A: Tensor
    B: Tensor

    def __init__(self, base: nn.Linear, A: Tensor, B: Tensor, scaling: float):
        super().__init__()
        n, r, d_in = A.shape
        if B.shape != (n, base.out_features, r) or d_in != base.in_features:
            raise ValueError(
                f"A {tuple(A.shape)} and B {tuple(B.shape)} do not fit a layer from {base.in_features} to "
                f"{base.out_features}: give (n, r, {base.in_features}) and (n, {base.out_features}, r)."
            )
        self.base, self.scaling = base.requires_grad_(False), scaling
        self.register_buffer("A", A)
        self.register_buffer("B", B)
        self.row_A: Tensor | None = None
        self.row_B: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        """Row i of the coming batches uses adapter rows[i]: (batch,), integers from 0 to n − 1."""
        self.row_A = self.A[rows].transpose(1, 2)  # (batch, d_in, r)
        self.row_B = self.B[rows].transpose(1, 2) * self.scaling  # (batch, r, d_out)

    def forward(self, x: Tensor) -> Tensor:
        if self.row_A is None or self.row_B is None or len(self.row_A) != len(x):
            chosen = 0 if self.row_A is None else len(self.row_A)
            raise ValueError(f"a batch of {len(x)} rows has {chosen} adapters chosen: call select_adapters first.")
        return torch.baddbmm(self.base(x), torch.bmm(x, self.row_A), self.row_B)


def add_multi_lora(model: nn.Module, states: Sequence[dict[str, Tensor]], scaling: float) -> nn.Module:
    """Put all adapters beside the layers that they adapt; returns the model.

    states: one for each adapter, from the names `<layer>.A` (r, d_in) and `<layer>.B` (d_out, r) to their values, as
    `peftbook.scratch.lora.lora_state` gives them.   scaling: gamma = alpha / r.
    Raises ValueError if there is no adapter or if the adapters are not of the same layers.
    """
    names = {frozenset(state) for state in states}
    if len(names) != 1:
        raise ValueError(f"{len(states)} adapters of {len(names)} sets of layers: give one or more of the same set.")
    for name in sorted({key.rpartition(".")[0] for key in states[0]}):
        A, B = (torch.stack([state[f"{name}.{part}"] for state in states]) for part in "AB")
        replace_module(model, name, MultiLoRALinear(model.get_submodule(name), A, B, scaling))  # type: ignore[arg-type]
    return model


def select_adapters(model: nn.Module, rows: Sequence[int]) -> None:
    """Say which adapter each row of the coming batches uses. Raises ValueError if the model has no such layers."""
    layers = [layer for layer in model.modules() if isinstance(layer, MultiLoRALinear)]
    if not layers:
        raise ValueError("the model has no adapters to choose from: call add_multi_lora first.")
    chosen = torch.tensor(rows, device=layers[0].A.device)
    for layer in layers:
        layer.select(chosen)
