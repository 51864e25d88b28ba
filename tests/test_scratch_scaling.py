"""(IA)³ from scratch: it starts as the old model, merges into it, and is what peft computes."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, get_peft_model
from tiny import tiny_llama
from torch import nn

from peftbook.scratch.nf4_linear import quantize_linears
from peftbook.scratch.scaling import ScaledLinear, add_ia3
from peftbook.scratch.vera import add_vera

few = settings(max_examples=10, deadline=None)
sides = st.sampled_from(["input", "output"])


def tokens(length: int = 9) -> torch.Tensor:
    return torch.randint(3, 96, (2, length), generator=torch.Generator().manual_seed(1))


def scatter(model: nn.Module) -> None:
    """Give every scale a value, as training would; at one all laws hold trivially."""
    generator = torch.Generator().manual_seed(2)
    for part in model.modules():
        if isinstance(part, ScaledLinear):
            part.scale.data = 1 + 0.3 * torch.randn(part.scale.shape, generator=generator)


def test_scales_of_one_change_nothing():
    """Training starts from the model as it is, bit for bit."""
    model = tiny_llama()
    before = model(tokens()).logits
    add_ia3(model)
    assert torch.equal(model(tokens()).logits, before)


@few
@given(st.integers(1, 8), st.integers(1, 8), sides, st.booleans())
def test_merged_equals_unmerged(d_in, d_out, side, bias):
    """Scaled rows or columns of W give the same outputs; with a bias on the output's side it is scaled too."""
    torch.manual_seed(d_in + 10 * d_out)
    layer = ScaledLinear(nn.Linear(d_in, d_out, bias=bias), side)
    scatter(layer)
    x = torch.randn(3, d_in)
    apart = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), apart, atol=1e-6, rtol=1e-5)
    layer.merge()
    torch.testing.assert_close(layer(x), apart, atol=1e-6, rtol=1e-5)


def test_a_merged_model_equals_the_unmerged_one():
    """Keys, values and the MLP through two layers, up to the logits."""
    model = tiny_llama()
    plain = model(tokens()).logits
    add_ia3(model)
    scatter(model)
    apart = model(tokens()).logits
    assert (apart - plain).abs().max() > 1e-2
    for part in model.modules():
        if isinstance(part, ScaledLinear):
            part.merge()
    torch.testing.assert_close(model(tokens()).logits, apart, atol=1e-5, rtol=1e-5)


def test_the_update_has_full_rank():
    """One number for each output, and still no low rank: (diag(l) − 1) W has the rank of W."""
    torch.manual_seed(0)
    layer = ScaledLinear(nn.Linear(6, 5, bias=False))
    before = layer.base.weight.clone()
    scatter(layer)
    layer.merge()
    assert torch.linalg.matrix_rank(layer.base.weight - before) == 5


@pytest.mark.filterwarnings("ignore")
def test_logits_and_gradients_equal_peft():
    """peft is the oracle, with the targets that it has for a Llama."""
    ours = tiny_llama()
    config = IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    theirs = get_peft_model(copy.deepcopy(ours), config)
    names = add_ia3(ours)
    scatter(ours)
    pairs = [(ours.get_submodule(name).scale, theirs.get_submodule(f"base_model.model.{name}").ia3_l["default"])
             for name in names]  # fmt: skip
    for mine, other in pairs:
        other.data.copy_(mine.data.view(other.shape))
    mine, peft = (model(tokens(), labels=tokens()) for model in (ours, theirs))
    torch.testing.assert_close(mine.logits, peft.logits, atol=1e-6, rtol=0)
    mine.loss.backward()
    peft.loss.backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad.flatten(), atol=1e-6, rtol=1e-5)
    assert all(value.grad is None for name, value in ours.named_parameters() if not name.endswith(".scale"))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: add_ia3(model, outputs=("key",), inputs=()),
        lambda model: add_vera(model, {"query"}, 4),
        lambda model: quantize_linears(model, {"query"}),
    ],
    ids=["ia3", "vera", "nf4"],
)
def test_no_match_is_refused(wrap):
    """A misspelt target would train nothing."""
    with pytest.raises(ValueError, match="no linear layer is named any of"):
        wrap(tiny_llama())
