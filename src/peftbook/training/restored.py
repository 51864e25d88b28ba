"""Trained weights: saved to a folder, restored into a model, shared between models of one base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from peftbook.core import specs
from peftbook.core.base_models import check_model
from peftbook.core.errors import InputError
from peftbook.methods import Method
from peftbook.training.forward import apply_method, trainable_state
from peftbook.training.models import Loaded, load_model

TENSORS = "trainable.safetensors"  # what methods trained that peft has no format for


def save_trained(model: Any, method: Method, folder: Path) -> None:
    """Save what a method trained: as peft does, or the whole model where every weight was trained; only the trained
    tensors for methods that peft has no format for.
    """
    if method.saved == "tensors":
        from safetensors.torch import save_file

        state = {name: value.detach().cpu().contiguous() for name, value in trainable_state(model).items()}
        save_file(state, folder / TENSORS)
    else:
        model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty card: `model_card` writes one that says something


def load_run(run: specs.Run, folder: Path | None, platform: str) -> Loaded:
    """The model of a run as it was evaluated, with what it trained from a folder, ready to generate."""
    check_model(run.model)
    loaded = load_model(run.model, run.method, platform, run.dtype, run.weights)
    model: Any = apply_method(loaded.model, run.method, run.seed, loaded.tokenizer)
    if folder is not None:
        restore(model, run.method, folder)
    return Loaded(model.eval().requires_grad_(False), loaded.tokenizer)


@torch.no_grad()
def restore(model: Any, method: Method, folder: Path) -> None:
    """Load what `save_trained` saved into a model. Raises InputError if it does not fit."""
    from safetensors.torch import load_file

    if (folder / TENSORS).is_file():
        found, wanted = load_file(folder / TENSORS), trainable_state(model)
        if found.keys() != wanted.keys():
            raise InputError(f"The tensors in {folder.name!r} are not those of this method: retry the job.")
        for name, value in wanted.items():
            value.copy_(found[name])
    elif method.saved == "model":
        state = {
            name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()
        }
        missing, unexpected = model.load_state_dict(state, strict=False)
        tied = set(getattr(model, "all_tied_weights_keys", None) or ())
        if unexpected or set(missing) - tied:
            raise InputError(f"The weights in {folder.name!r} are not those of this model: retry the job.")
    else:
        from peft import load_peft_weights, set_peft_model_state_dict

        weights = load_peft_weights(str(folder), device=str(next(model.parameters()).device))
        report: Any = set_peft_model_state_dict(model, weights)
        if set(report.unexpected_keys) - {"prompt_embeddings"}:  # which peft puts in their place by itself
            raise InputError(f"The adapter in {folder.name!r} is not that of this method: retry the job.")


@torch.no_grad()
def share_weights(model: nn.Module, base: nn.Module) -> int:
    """Let a model use the tensors of another one where both hold the same values; returns the bytes that this saves.

    Models on one base then cost the base once, and each what it trained.
    """
    known = dict(base.named_parameters())
    saved = 0
    for name, value in model.named_parameters():
        other = known.get(base_name(name, known))
        if other is None or other.data_ptr() == value.data_ptr() or other.dtype != value.dtype:
            continue
        if other.shape == value.shape and other.device == value.device and torch.equal(other, value):
            value.data = other.data
            saved += value.numel() * value.element_size()
    return saved


def base_name(name: str, known: dict) -> str:
    """The name that a weight has without the wrappers of its method."""
    plain = name.replace(".base_layer.", ".").replace(".linear.", ".")
    candidates = (plain, plain.removeprefix("base_model."), plain.removeprefix("base_model.model."))
    return next((one for one in candidates if one in known), "")
