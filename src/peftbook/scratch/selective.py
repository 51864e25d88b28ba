"""Selective methods: no new parts, only a choice of which of the old parameters are trained."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def train_biases(model: nn.Module) -> list[str]:
    """BitFit: train every bias and freeze the rest; returns the names of what is trained.

    Raises ValueError for a model without biases, such as a Llama.
    Source: Ben Zaken et al. 2021, arXiv:2106.10199, section 3.
    """
    return _train_only(model, lambda part, name: name == "bias", "biases")


def train_gains(model: nn.Module) -> list[str]:
    """Train the gains of all normalisation layers and freeze the rest; returns the names of what is trained.

    Raises ValueError for a model without any.
    Source: Zhao et al. 2023, arXiv:2312.11420, there for the norms of a multimodal model.
    """
    return _train_only(model, lambda part, name: type(part).__name__.endswith("Norm") and name == "weight", "gains")


def _train_only(model: nn.Module, chosen: Callable[[nn.Module, str], bool], what: str) -> list[str]:
    """Freeze all parameters but those for which `chosen(their module, their own name)`."""
    model.requires_grad_(False)
    names = []
    for path, part in model.named_modules():
        for name, value in part.named_parameters(recurse=False):
            if chosen(part, name):
                value.requires_grad_(True)
                names.append(f"{path}.{name}".lstrip("."))
    if not names:
        raise ValueError(f"{type(model).__name__} has no {what}: there is nothing to train.")
    return names
