"""AdamW from scratch: torch's own optimiser as the oracle, the laws of its first step, and the bytes that it holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peftbook.memory import SHAPES, Setup, training_step
from peftbook.scratch.adam import RECIPES, AdamW, held_bytes

few = settings(max_examples=20, deadline=None)


def a_weight(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype))


@few
@given(st.floats(1e-4, 0.3), st.floats(0, 0.5), st.floats(0, 0.99), st.floats(0.5, 0.9999), st.integers(1, 12))
def test_steps_are_those_of_torch(rate: float, decay: float, b1: float, b2: float, steps: int):
    """The same weights after any number of steps, at any settings, as torch.optim.AdamW has."""
    ours, theirs = a_weight(3, 4), a_weight(3, 4)
    optimizer = AdamW([ours], rate, (b1, b2), decay=decay)
    oracle = torch.optim.AdamW([theirs], rate, (b1, b2), weight_decay=decay)
    for step in range(steps):
        ours.grad = theirs.grad = a_weight(3, 4, seed=step + 1).detach()
        optimizer.step()
        oracle.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@few
@given(st.floats(1e-6, 1e6), st.floats(1e-3, 0.5))
def test_the_first_step_is_the_learning_rate_whatever_the_gradient(size: float, rate: float):
    """Without decay each entry moves by η against its gradient's sign: Adam divides the size out."""
    w = a_weight(5, 2)
    before, w.grad = w.detach().clone(), size * a_weight(5, 2, seed=1).detach()
    AdamW([w], rate, eps=0.0, decay=0.0).step()
    torch.testing.assert_close(w.detach(), before - rate * w.grad.sign(), rtol=1e-9, atol=1e-9)


def test_a_weight_without_gradient_costs_nothing_and_stays():
    """What is frozen has neither gradient nor moments, and no decay either."""
    frozen, trained = a_weight(4, 4), a_weight(4, 2, seed=1)
    before, trained.grad = frozen.detach().clone(), torch.ones_like(trained)
    optimizer = AdamW([frozen, trained], decay=0.1)
    optimizer.step()
    assert torch.equal(frozen, before)
    held = held_bytes([frozen, trained], optimizer)
    assert held == {"weights": 8 * 24, "gradients": 8 * 8, "moments": 2 * 8 * 8}


@pytest.mark.parametrize(("dtype", "recipe"), [(torch.float32, "fp32 throughout"), (torch.bfloat16, "bf16 throughout")])
def test_a_trained_weight_holds_what_its_recipe_says(dtype: torch.dtype, recipe: str):
    """The bytes of the tensors are those of the table."""
    w = a_weight(7, 3, dtype=dtype)
    w.grad = torch.ones_like(w)
    optimizer = AdamW([w])
    optimizer.step()
    assert sum(held_bytes([w], optimizer).values()) == RECIPES[recipe].total * w.numel()


def test_recipes_are_those_of_the_byte_model():
    """Two descriptions of the same state must agree: the table of recipes and the byte model."""
    shape = SHAPES["llama-2-7b"]
    for dtype, recipe in (("bf16", "bf16 throughout"), ("fp32", "fp32 throughout")):
        step = training_step(shape, Setup(method="full", dtype=dtype))
        held = sum(step.numbers(step.state | {"gradients": step.gradients}).values())
        assert held == RECIPES[recipe].total * shape.parameters
    assert [RECIPES[name].total for name in ("bf16, moments in fp32", "bf16 and an fp32 master")] == [12, 16]
