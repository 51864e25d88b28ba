"""What the byte model promises of a step, held against torch; each file of tests has shapes and set-ups of its own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import random_models
import torch
from tiny import first_step
from torch.utils import flop_counter

from peftbook.memory import Configuration, DecoderShape, Setup, training_step
from peftbook.training import random_model
from peftbook.training.probes import memory as probes


def subject(shape: DecoderShape, setup: Setup) -> tuple[random_model.Subject, torch.Tensor]:
    """A random model, and a batch for it."""
    return random_models.subject(shape, setup), random_model.random_ids(shape, setup, 0)


def assert_kept(shape: DecoderShape, setup: Setup) -> None:
    """Autograd keeps what the walk says, module by module and byte by byte."""
    assert probes.kept_by_module(*subject(shape, setup), shape) == Configuration(shape, setup).kept_by_module()


def assert_stored(shape: DecoderShape, setup: Setup, kept: bool = True) -> None:
    """Weights, constants of 4-bit weights, adapter, moments and gradients are the stored bytes; and what is kept."""
    found, step = probes.count_step(*subject(shape, setup)), training_step(shape, setup)
    state = step.numbers(step.state) | {"constants": step.numbers(step.state).get("quantisation constants", 0)}
    for name in ("weights", "constants", "adapter", "moments"):
        assert found[f"{name}_bytes"] == pytest.approx(state.get(name, 0), rel=2e-3), name
    assert found["gradients_bytes"] == step.numbers({"all": step.gradients})["all"]
    assert not kept or found["kept_bytes"] == sum(step.numbers(step.kept).values())


def assert_peak(shape: DecoderShape, setup: Setup, most: float = 1.05) -> None:
    """The peak beyond the state is that of torch's allocator; kernels need up to `most` times as much."""
    tuned, ids = subject(shape, setup)
    first_step(tuned, ids)
    measured = probes.allocated_peak(lambda: tuned.step(ids))
    step = training_step(shape, setup)
    assert 0.98 < measured / (step.peak().total - sum(step.numbers(step.state).values())) < most


def attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """torch's own count, for the kernel that a CPU uses."""
    return flop_counter.sdpa_flop_count(q, k, v)


def attention_backward_flops(gradient: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return flop_counter.sdpa_backward_flop_count(gradient, q, k, v)


def four_bit_flops(x: Any, codes: Any, shape: Any, *_: Any, **__: Any) -> int:
    """A matrix that bitsandbytes reads out and multiplies in one operation."""
    return 2 * math.prod(x[:-1]) * math.prod(shape)


def grouped_flops(x: Any, y: Any, *_: Any, **__: Any) -> int:
    """Two factors of which one has an axis of experts, each for its own rows; or the gradient of such a one."""
    rows, inner = x
    return 2 * rows * inner * y[-1]


def assert_flops(one: Configuration, tuned: random_model.Subject, ids: torch.Tensor) -> None:
    """Matrix products are those that torch counts, to the last operation."""
    aten = torch.ops.aten
    kernels = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
        torch.ops.bitsandbytes.gemm_4bit: four_bit_flops,
        aten._grouped_mm: grouped_flops,
    }
    with flop_counter.FlopCounterMode(display=False, custom_mapping=kernels) as counted:
        tuned.loss(ids).backward()
    assert counted.get_total_flops() == sum(one.step.numbers(one.step.flops).values())
