"""OFT, MiSS and HiRA from scratch: laws of their forms, and peft as the oracle."""

from __future__ import annotations

import pytest
import torch
from peft import HiraConfig, MissConfig, OFTConfig, get_peft_model
from torch import nn

from peftbook.scratch.lora import LoRALinear
from peftbook.scratch.newer import HiRALinear, MiSSLinear, OFTLinear, cayley

D_IN, D_OUT = 12, 7
FORMS = {
    "oft": (lambda base: OFTLinear(base, 4), "upper"),
    "oft, cut": (lambda base: OFTLinear(base, 4, order=3), "upper"),
    "miss": (lambda base: MiSSLinear(base, 4), "D"),
    "miss, filled up": (lambda base: MiSSLinear(base, 5), "D"),
    "hira": (lambda base: HiRALinear(base, 3), "B"),
}
forms = pytest.mark.parametrize("name", FORMS)


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D_IN, D_OUT)


def trained(name: str) -> nn.Module:
    """The form around the layer, with random values where it starts from zero."""
    make, parameter = FORMS[name]
    ours = make(layer())
    with torch.no_grad():
        getattr(ours, parameter).normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    return ours


def adapted_by_peft(config) -> nn.Module:
    """peft's layer around the same linear one."""
    model = nn.Sequential()
    model.add_module("up", layer())
    return get_peft_model(model, config).base_model.model.up


def inputs() -> torch.Tensor:
    return torch.randn(2, 5, D_IN, generator=torch.Generator().manual_seed(2))


@forms
def test_every_form_starts_as_the_old_layer(name):
    """R = I, D = 0 and B = 0 leave the function what it was."""
    torch.testing.assert_close(FORMS[name][0](layer())(inputs()), layer()(inputs()))


@forms
def test_a_merged_form_computes_the_same(name):
    """All three are one matrix in the end, and none is the old one."""
    ours = trained(name)
    merged = ours.merged()
    torch.testing.assert_close(inputs() @ merged.T + ours.base.bias, ours(inputs()), atol=1e-5, rtol=1e-5)
    assert (merged - ours.base.weight).norm() > 0.02


@forms
def test_only_the_new_numbers_are_trained(name):
    """The base has no gradient; what starts at zero has one at once."""
    ours = FORMS[name][0](layer())
    ours(inputs()).square().sum().backward()
    assert all(value.grad is None for value in ours.base.parameters())
    assert getattr(ours, FORMS[name][1]).grad.norm() > 0


@pytest.mark.parametrize("cut", [False, True])
def test_oft_computes_what_peft_does(cut):
    """Outputs, merged weight and gradients agree. peft's series turns the other way than its solve: Q changes sign."""
    ours = OFTLinear(layer(), 4, order=3 if cut else None)
    theirs = adapted_by_peft(OFTConfig(oft_block_size=4, target_modules=["up"], use_cayley_neumann=cut))
    values = 0.3 * torch.randn(ours.upper.shape, generator=torch.Generator().manual_seed(1))
    vector, sign = theirs.oft_R["default"].weight, -1 if cut else 1
    with torch.no_grad():
        ours.upper.copy_(sign * values)
        vector.copy_(values)
    torch.testing.assert_close(ours(inputs()), theirs(inputs()), atol=1e-6, rtol=1e-5)
    for one in (ours, theirs):
        one(inputs()).square().sum().backward()
    torch.testing.assert_close(sign * ours.upper.grad, vector.grad, atol=1e-4, rtol=1e-4)
    theirs.merge()
    torch.testing.assert_close(ours.merged(), theirs.base_layer.weight.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("rank", [4, 5])
def test_miss_computes_what_peft_does(rank):
    """Also where the rank does not divide the width and the last piece is filled up."""
    ours, theirs = MiSSLinear(layer(), rank), adapted_by_peft(MissConfig(r=rank, target_modules=["up"]))
    values = torch.randn(D_OUT, rank, generator=torch.Generator().manual_seed(1))
    block = theirs.miss_block["default"]
    with torch.no_grad():
        ours.D.copy_(values)
        block.copy_(values.T)
    torch.testing.assert_close(ours(inputs()), theirs(inputs()), atol=1e-5, rtol=1e-5)
    for one in (ours, theirs):
        one(inputs()).square().sum().backward()
    torch.testing.assert_close(ours.D.grad, block.grad.T, atol=1e-3, rtol=1e-4)
    theirs.merge()
    torch.testing.assert_close(ours.merged(), theirs.base_layer.weight.detach(), atol=1e-6, rtol=1e-5)


def test_hira_computes_what_peft_does():
    """Outputs, merged weight and the gradients of both factors agree."""
    ours, theirs = trained("hira"), adapted_by_peft(HiraConfig(r=3, target_modules=["up"]))
    A, B = theirs.hira_A["default"], theirs.hira_B["default"]
    with torch.no_grad():
        A.copy_(ours.A)
        B.copy_(ours.B)
    torch.testing.assert_close(ours(inputs()), theirs(inputs()), atol=1e-6, rtol=1e-5)
    for one in (ours, theirs):
        one(inputs()).square().sum().backward()
    torch.testing.assert_close(ours.A.grad, A.grad, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.B.grad, B.grad, atol=1e-4, rtol=1e-4)
    theirs.merge()
    torch.testing.assert_close(ours.merged(), theirs.base_layer.weight.detach(), atol=1e-6, rtol=1e-5)


def test_a_rotation_keeps_every_length_and_angle_of_the_rows():
    """(W R)(W R)ᵀ = W Wᵀ: what OFT cannot change, and LoRA can."""
    ours = trained("oft").double()
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
    ours = trained("miss")
    lora = LoRALinear(layer(), rank=4, alpha=4)
    with torch.no_grad():
        lora.A.copy_(torch.eye(4).repeat(1, 3))
        lora.B.copy_(ours.D)
    torch.testing.assert_close(ours(inputs()), lora(inputs()))
    assert torch.linalg.matrix_rank(ours.merged() - ours.base.weight, atol=1e-5) == 4


def test_hiras_update_has_a_higher_rank_than_its_factors():
    """And leaves a zero weight zero, which LoRA does not."""
    ours = trained("hira")
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
