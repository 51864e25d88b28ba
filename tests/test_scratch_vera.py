"""VeRA from scratch: the laws that LoRA obeys, one shared pair of matrices, and peft as the oracle."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import VeraConfig, get_peft_model
from tiny import SEVEN, tiny_llama
from torch import nn

from peftbook.scratch.vera import VeRALinear, add_vera

few = settings(max_examples=10, deadline=None)
RANK = 6


def tokens(length: int = 9) -> torch.Tensor:
    return torch.randint(3, 96, (2, length), generator=torch.Generator().manual_seed(1))


def fill(model: nn.Module) -> None:
    """Give β a value, as training would; at zero half of the laws hold trivially."""
    generator = torch.Generator().manual_seed(2)
    for part in model.modules():
        if isinstance(part, VeRALinear):
            part.beta_scale.data = torch.randn(part.beta_scale.shape, generator=generator)


def test_a_beta_of_zero_leaves_the_model_unchanged():
    """Training starts from the pretrained model, bit for bit."""
    model = tiny_llama()
    before = model(tokens()).logits
    add_vera(model, set(SEVEN), RANK)
    assert torch.equal(model(tokens()).logits, before)


@few
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 5))
def test_merged_equals_unmerged_and_is_of_low_rank(d_in, d_out, rank):
    """diag(β) B diag(δ) A, from matrices that are wider than the layer, added to W."""
    torch.manual_seed(d_in + 10 * d_out + 100 * rank)
    layer = VeRALinear(nn.Linear(d_in, d_out), torch.randn(rank, 9), torch.randn(9, rank))
    fill(layer)
    before, x = layer.base.weight.clone(), torch.randn(3, d_in)
    apart = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), apart, atol=1e-5, rtol=1e-4)
    expected = layer.beta_scale.diag() @ layer.B @ layer.delta_scale.diag() @ layer.A
    torch.testing.assert_close(layer.base.weight - before, expected.detach(), atol=1e-5, rtol=1e-4)


def test_only_scales_are_trained_and_only_scales_are_stored():
    """A and B come from the seed: neither among the parameters nor in the file."""
    model = tiny_llama()
    names = add_vera(model, set(SEVEN), RANK)
    fill(model)
    model(tokens(), labels=tokens()).loss.backward()
    scales = {f"{name}.{scale}" for name in names for scale in ("delta_scale", "beta_scale")}
    assert {name for name, value in model.named_parameters() if value.grad is not None} == scales
    assert not any(name.endswith((".A", ".B")) for name in model.state_dict())


@pytest.mark.filterwarnings("ignore")
def test_logits_and_gradients_equal_peft():
    """The same seed gives peft's random matrices, and the same scales its logits and gradients."""
    ours = tiny_llama()
    config = VeraConfig(r=RANK, target_modules=list(SEVEN), projection_prng_key=4)
    theirs = get_peft_model(copy.deepcopy(ours), config)
    names = add_vera(ours, set(SEVEN), RANK, seed=4)
    fill(ours)
    pairs = []
    for name in names:
        layer, other = ours.get_submodule(name), theirs.get_submodule(f"base_model.model.{name}")
        pairs += [
            (layer.delta_scale, other.vera_lambda_d["default"]),
            (layer.beta_scale, other.vera_lambda_b["default"]),
        ]
    for mine, other in pairs:
        other.data.copy_(mine.data)
    mine, peft = (model(tokens(), labels=tokens()) for model in (ours, theirs))
    torch.testing.assert_close(mine.logits, peft.logits, atol=1e-5, rtol=0)
    mine.loss.backward()
    peft.loss.backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-4)
