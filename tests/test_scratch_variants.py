"""PiSSA, OLoRA, DoRA, OFT, MiSS and HiRA from scratch: laws of their forms, and peft as the oracle."""

from __future__ import annotations

import pytest
import torch
from peft import HiraConfig, LoraConfig, MissConfig, OFTConfig, get_peft_model
from tiny import of_peft, scatter
from torch import nn

from peftbook.scratch.lora import LoRALinear
from peftbook.scratch.newer import HiRALinear, MiSSLinear, OFTLinear, cayley
from peftbook.scratch.variants import DoRALinear, olora_start, pissa_start

D_IN, D_OUT, RANK, ALPHA = 12, 7, 3, 12
STARTS = {"pissa": pissa_start, "olora": olora_start}
starts = pytest.mark.parametrize("name", STARTS)
UP = {"target_modules": ["up"]}
DORA = {"A": "lora_A", "B": "lora_B", "magnitude": "lora_magnitude_vector"}
FORMS = {  # ours; peft's, with its names of parameters and what it has of ours: its series turns the other way
    "dora": (
        lambda base: DoRALinear(base, RANK, ALPHA),
        (LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=True, **UP), DORA, torch.clone),
    ),
    "oft": (
        lambda base: OFTLinear(base, 4),
        (OFTConfig(oft_block_size=4, use_cayley_neumann=False, **UP), {"upper": "oft_R"}, torch.clone),
    ),
    "oft, cut": (
        lambda base: OFTLinear(base, 4, order=3),
        (OFTConfig(oft_block_size=4, use_cayley_neumann=True, **UP), {"upper": "oft_R"}, torch.neg),
    ),
    "miss": (lambda base: MiSSLinear(base, 4), (MissConfig(r=4, **UP), {"D": "miss_block"}, torch.t)),
    "miss, filled up": (lambda base: MiSSLinear(base, 5), (MissConfig(r=5, **UP), {"D": "miss_block"}, torch.t)),
    "hira": (
        lambda base: HiRALinear(base, RANK),
        (HiraConfig(r=RANK, **UP), {"A": "hira_A", "B": "hira_B"}, torch.clone),
    ),
}
forms = pytest.mark.parametrize("make", [make for make, _ in FORMS.values()], ids=FORMS)


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D_IN, D_OUT)


def trained(make) -> nn.Module:
    """A form around the layer, as after some training."""
    ours = make(layer())
    scatter(ours, std=0.1)
    return ours


def adapted_by_peft(config) -> nn.Module:
    """peft's layer around the same linear one."""
    model = nn.Sequential()
    model.add_module("up", layer())
    return get_peft_model(model, config).base_model.model.up


def inputs() -> torch.Tensor:
    return torch.randn(2, 5, D_IN, generator=torch.Generator().manual_seed(2))


# --- other starts of LoRA --------------------------------------------------------------------------------------


@starts
def test_a_start_splits_the_weight_without_changing_it(name):
    """W' + gamma B A is W, so training starts from the old model."""
    W = layer().weight.detach()
    start = STARTS[name](W, RANK, ALPHA / RANK)
    torch.testing.assert_close(start.W + ALPHA / RANK * start.B @ start.A, W)


@starts
def test_a_start_is_that_of_peft(name):
    """The same frozen weight and the same product, at a scaling other than one."""
    theirs = adapted_by_peft(LoraConfig(r=RANK, lora_alpha=ALPHA, init_lora_weights=name, **UP))
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


# --- other forms of the update ---------------------------------------------------------------------------------


@forms
def test_every_form_starts_as_the_old_layer(make):
    """R = I, D = 0, and B = 0 with m = ‖W‖ leave the function what it was."""
    torch.testing.assert_close(make(layer())(inputs()), layer()(inputs()))


@forms
def test_a_merged_form_computes_the_same(make):
    """All are one matrix in the end, and none is the old one."""
    ours = trained(make)
    merged = ours.merged()
    torch.testing.assert_close(inputs() @ merged.T + ours.base.bias, ours(inputs()), atol=1e-5, rtol=1e-5)
    assert (merged - ours.base.weight).norm() > 0.02


@forms
def test_only_the_new_numbers_are_trained(make):
    """The base has no gradient; something has one at once."""
    ours = make(layer())
    ours(inputs()).square().sum().backward()
    assert all(value.grad is None for value in ours.base.parameters())
    assert any(value.grad is not None and value.grad.norm() > 0 for value in ours.parameters())


@pytest.mark.parametrize("name", FORMS)
def test_a_form_computes_what_peft_does(name):
    """Outputs, merged weight and all gradients agree, also where a rank does not divide the width."""
    make, (config, names, turned) = FORMS[name]
    ours, theirs = trained(make), adapted_by_peft(config)
    pairs = [(getattr(ours, mine), of_peft(theirs, other)) for mine, other in names.items()]
    for mine, other in pairs:
        other.data.copy_(turned(mine.data))
    torch.testing.assert_close(ours(inputs()), theirs(inputs()), atol=1e-5, rtol=1e-5)
    for one in (ours, theirs):
        one(inputs()).square().sum().backward()
    for mine, other in pairs:
        torch.testing.assert_close(turned(mine.grad), other.grad, atol=1e-4, rtol=1e-4)
    theirs.merge()
    torch.testing.assert_close(ours.merged(), theirs.base_layer.weight.detach(), atol=1e-6, rtol=1e-5)


def test_the_rows_of_a_merged_dora_have_the_learned_magnitudes():
    ours = trained(FORMS["dora"][0])
    torch.testing.assert_close(ours.merged().norm(dim=1), ours.magnitude.detach())


def test_a_rotation_keeps_every_length_and_angle_of_the_rows():
    """(W R)(W R)ᵀ = W Wᵀ: what OFT cannot change, and LoRA can."""
    ours = trained(FORMS["oft"][0]).double()
    W, rotated = ours.base.weight.detach(), ours.merged()
    torch.testing.assert_close(rotated @ rotated.T, W @ W.T)
    assert torch.linalg.matrix_rank(rotated - W) == D_OUT


@pytest.mark.parametrize("size", [0.02, 0.04])
def test_a_cut_series_is_a_rotation_up_to_its_order(size):
    """Halving Q divides the error by 2⁴ and more at order 3, and by 2² at order 1."""
    Q = size * torch.randn(6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(3))
    Q = Q - Q.T
    for order in (1, 3):
        errors = [(cayley(scale * Q, order) - cayley(scale * Q)).norm() for scale in (1.0, 0.5)]
        assert errors[0] / errors[1] == pytest.approx(2 ** (order + 1), rel=0.2)
    torch.testing.assert_close(torch.linalg.det(cayley(Q)), torch.ones((), dtype=torch.double))


def test_miss_is_lora_with_identities_for_a():
    """ΔW = D [I I …] with γ = 1: a low rank, and nothing random."""
    ours = trained(FORMS["miss"][0])
    lora = LoRALinear(layer(), rank=4, alpha=4)
    with torch.no_grad():
        lora.A.copy_(torch.eye(4).repeat(1, 3))
        lora.B.copy_(ours.D)
    torch.testing.assert_close(ours(inputs()), lora(inputs()))
    assert torch.linalg.matrix_rank(ours.merged() - ours.base.weight, atol=1e-5) == 4


def test_hiras_update_has_a_higher_rank_than_its_factors():
    """And leaves a zero weight zero, which LoRA does not."""
    ours = trained(FORMS["hira"][0])
    with torch.no_grad():
        ours.base.weight[2, 3] = 0
    update = ours.merged() - ours.base.weight
    assert torch.linalg.matrix_rank(ours.B @ ours.A, atol=1e-6) == 3
    assert torch.linalg.matrix_rank(update, atol=1e-6) == D_OUT
    assert update[2, 3] == 0


def test_blocks_must_divide_the_input():
    """Said by name, not by a shape error later."""
    with pytest.raises(ValueError, match="blocks of 5 do not divide 12"):
        OFTLinear(layer(), 5)
