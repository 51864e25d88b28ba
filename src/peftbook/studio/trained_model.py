"""What a job trained, as a model again: with its adapter on the base, or merged into one dense model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftbook.base_models import check_model
from peftbook.errors import InputError
from peftbook.scratch.codebooks import quantise_dense
from peftbook.studio.store import Job, Studio
from peftbook.training.forward import apply_method
from peftbook.training.hardware import platform_here
from peftbook.training.models import Loaded, load_model
from peftbook.training.restored import restore


def load_trained(studio: Studio, job: Job) -> Loaded:
    """The model of a finished job as it was evaluated, ready to generate. Raises InputError where nothing was kept."""
    run = job.run
    check_model(run.model)
    loaded = load_model(run.model, run.method, platform_here(run.platform), run.dtype, run.weights)
    model: Any = apply_method(loaded.model, run.method, run.seed, loaded.tokenizer)
    if run.budget is not None:
        folder = studio.adapter(job)
        if job.state != "done" or folder is None:
            raise InputError(f"Job {job.id!r} is {job.state} and has nothing to try: run it, or retry it, first.")
        restore(model, run.method, folder)
    return Loaded(model.eval().requires_grad_(False), loaded.tokenizer)


def merge(studio: Studio, job: Job) -> Loaded:
    """One dense float32 model that computes what the job's model does. Raises InputError for methods that stay apart.

    A base in 4 bits becomes the values that its codes stand for; the merged weights are not rounded again, nor are
    those of a base in bfloat16, which is widened first.
    """
    run = job.run
    if why := run.method.unmerged:
        raise InputError(f"What {run.method.kind!r} trained cannot be merged ({why}): download the adapter instead.")
    if not run.method.packed:
        loaded = load_trained(studio, job)
        model: Any = loaded.model.float()
        try:
            merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"peft cannot merge {run.method.label} ({error}): download the adapter instead."
            ) from error
        return Loaded(merged, loaded.tokenizer)
    from peft import PeftModel

    folder = studio.adapter(job)
    if job.state != "done" or folder is None:
        raise InputError(f"Job {job.id!r} is {job.state} and has nothing to merge: run it, or retry it, first.")
    check_model(run.model)
    loaded = load_model(run.model, None, platform_here(run.platform), run.dtype, run.weights)
    method: Any = run.method
    quantise_dense(loaded.model.float(), method.quant, double_quant=method.double_quant)
    tuned: Any = PeftModel.from_pretrained(loaded.model, str(folder))
    return Loaded(tuned.eval().merge_and_unload(), loaded.tokenizer)


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
