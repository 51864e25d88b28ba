"""What a run trained, put back into a model: to be asked, or to be trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from peftbook.core.errors import InputError
from peftbook.methods import Method
from peftbook.training.forward import trainable_state

__all__ = ["TENSORS", "restore"]

TENSORS = "trainable.safetensors"  # what methods trained that peft has no format for


@torch.no_grad()
def restore(model: Any, method: Method, folder: Path) -> None:
    """Put the values in a folder where `work.keep_trained` took them from. Raises InputError if they do not fit."""
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
