"""PiSSA, OLoRA and DoRA from scratch: the layer starts as the old one, and peft as the oracle."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from peftbook.scratch.variants import DoRALinear, olora_start, pissa_start

RANK, ALPHA = 3, 12
STARTS = {"pissa": pissa_start, "olora": olora_start}


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(10, 7)


def adapted_by_peft(**options) -> nn.Module:
    """peft's layer around the same linear one."""
    model = nn.Sequential()
    model.add_module("up", layer())
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["up"], **options)
    return get_peft_model(model, config).base_model.model.up


@pytest.mark.parametrize("name", STARTS)
def test_a_start_splits_the_weight_without_changing_it(name):
    """W' + gamma B A is W, so training starts from the old model."""
    W = layer().weight.detach()
    start = STARTS[name](W, RANK, ALPHA / RANK)
    torch.testing.assert_close(start.W + ALPHA / RANK * start.B @ start.A, W)


@pytest.mark.parametrize("name", STARTS)
def test_a_start_is_that_of_peft(name):
    """The same frozen weight and the same product, at a scaling other than one."""
    theirs = adapted_by_peft(init_lora_weights=name)
    ours = STARTS[name](layer().weight.detach(), RANK, ALPHA / RANK)
    torch.testing.assert_close(theirs.base_layer.weight.detach(), ours.W, atol=1e-5, rtol=1e-5)
    A, B = theirs.lora_A["default"].weight.detach(), theirs.lora_B["default"].weight.detach()
    torch.testing.assert_close(B @ A, ours.B @ ours.A, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(A.norm(), ours.A.norm())


def test_pissa_freezes_what_is_smallest():
    """What is left frozen has the trailing singular values of W, and A and B share the leading ones evenly."""
    W = layer().weight.detach()
    start = pissa_start(W, RANK, ALPHA / RANK)
    expected = torch.linalg.svdvals(W)[RANK:]
    torch.testing.assert_close(torch.linalg.svdvals(start.W)[: len(expected)], expected)
    torch.testing.assert_close(start.A @ start.A.T, start.B.T @ start.B)


def test_olora_starts_with_orthonormal_columns():
    """BᵀB is the identity."""
    B = olora_start(layer().weight.detach(), RANK, ALPHA / RANK).B
    torch.testing.assert_close(B.T @ B, torch.eye(RANK))


def trained_pair() -> tuple[DoRALinear, nn.Module, torch.Tensor]:
    """Our DoRA and peft's with the same values in all three parameters, and an input."""
    ours, theirs = DoRALinear(layer(), RANK, ALPHA), adapted_by_peft(use_dora=True)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for mine, other in (
            (ours.A, theirs.lora_A["default"].weight),
            (ours.B, theirs.lora_B["default"].weight),
            (ours.magnitude, theirs.lora_magnitude_vector["default"].weight),
        ):
            value = torch.randn(mine.shape, generator=generator).abs() + 0.1
            mine.copy_(value)
            other.copy_(value)
    return ours, theirs, torch.randn(5, 10, generator=generator)


def test_dora_starts_as_the_old_layer():
    """B = 0 and m = ‖W‖ leave the function what it was."""
    x = torch.randn(4, 10)
    torch.testing.assert_close(DoRALinear(layer(), RANK, ALPHA)(x), layer()(x))


def test_dora_computes_what_peft_does():
    """Outputs and the gradients of A, B and m agree."""
    ours, theirs, x = trained_pair()
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    for mine, other in (
        (ours.A, theirs.lora_A["default"].weight),
        (ours.B, theirs.lora_B["default"].weight),
        (ours.magnitude, theirs.lora_magnitude_vector["default"].weight),
    ):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_a_merged_dora_computes_the_same():
    """One dense weight in its place, whose rows have the learned magnitudes."""
    ours, _, x = trained_pair()
    W = ours.merged()
    torch.testing.assert_close(x @ W.T + ours.base.bias, ours(x))
    torch.testing.assert_close(W.norm(dim=1), ours.magnitude.detach())
