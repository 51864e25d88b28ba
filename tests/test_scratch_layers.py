"""LoRA, VeRA, (IA)³ and bottleneck adapters from scratch in a model: the laws that all obey, and peft as the oracle."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, VeraConfig, get_peft_model
from tiny import SEVEN, of_peft, scatter, tiny_llama, tokens
from torch import nn

from peftbook.scratch.adapter import add_adapters
from peftbook.scratch.lora import add_lora
from peftbook.scratch.nf4_linear import quantize_linears
from peftbook.scratch.scaling import ScaledLinear, add_ia3
from peftbook.scratch.vera import VeRALinear, add_vera

few = settings(max_examples=10, deadline=None)
RANK = 6
QV, ALL = {"q_proj", "v_proj"}, set(SEVEN)


def with_adapters(model: nn.Module) -> nn.Module:
    """Bottleneck adapters in a frozen model."""
    return add_adapters(model.requires_grad_(False), 8)


METHODS = {  # how a model gets it, and what its trained parameters are called
    "lora": (lambda model: add_lora(model, ALL, rank=4, alpha=8), (".A", ".B")),
    "vera": (lambda model: add_vera(model, ALL, RANK, seed=4), (".delta_scale", ".beta_scale")),
    "ia3": (add_ia3, (".scale",)),
    "adapter": (with_adapters, (".down.weight", ".down.bias", ".up.weight", ".up.bias")),
}
methods = pytest.mark.parametrize(("add", "names"), METHODS.values(), ids=METHODS)


@methods
def test_training_starts_from_the_model_as_it_is(add, names):
    """Bit for bit: B, β and W_up are zero, scales are one."""
    model = tiny_llama()
    before = model(tokens()).logits
    add(model)
    assert torch.equal(model(tokens()).logits, before)


@methods
def test_frozen_weights_get_no_gradient(add, names):
    """Only the new parameters are trained, and all of them are reached once none is zero."""
    model = tiny_llama()
    add(model)
    scatter(model)
    model(tokens(), labels=tokens()).loss.backward()
    for name, parameter in model.named_parameters():
        if name.endswith(names):
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@pytest.mark.parametrize("name", ["lora", "vera", "ia3"])
def test_a_merged_model_equals_the_unmerged_one(name):
    """Through two layers of attention, where the update reaches every logit, in float64."""
    model = tiny_llama()
    plain = model(tokens()).logits
    METHODS[name][0](model)
    scatter(model)
    model.double()
    apart = model(tokens()).logits
    assert (apart - plain).abs().max() > 1e-2
    for part in model.modules():
        if hasattr(part, "merge"):
            part.merge()
    torch.testing.assert_close(model(tokens()).logits, apart, atol=1e-5, rtol=1e-5)


PEFT = {  # how a model gets it, the same for peft, and what peft calls each parameter
    "lora": (
        METHODS["lora"][0],
        LoraConfig(r=4, lora_alpha=8, target_modules=ALL),
        {"A": "lora_A", "B": "lora_B"},
    ),
    "lora on two": (
        lambda model: add_lora(model, QV, rank=4, alpha=8),
        LoraConfig(r=4, lora_alpha=8, target_modules=QV),
        {"A": "lora_A", "B": "lora_B"},
    ),
    "vera": (
        METHODS["vera"][0],
        VeraConfig(r=RANK, target_modules=ALL, projection_prng_key=4),
        {"delta_scale": "vera_lambda_d", "beta_scale": "vera_lambda_b"},
    ),
    "ia3": (
        add_ia3,
        IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        {"scale": "ia3_l"},
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("add", "config", "names"), PEFT.values(), ids=PEFT)
def test_logits_and_gradients_equal_peft(add, config, names):
    """From the same values; the same seed gives peft's random matrices of VeRA."""
    ours = tiny_llama()
    theirs = get_peft_model(copy.deepcopy(ours), config)
    layers = add(ours)
    scatter(ours)
    pairs = [
        (getattr(ours.get_submodule(layer), mine), of_peft(theirs.get_submodule(f"base_model.model.{layer}"), other))
        for layer in layers
        for mine, other in names.items()
    ]
    for mine, other in pairs:
        other.data.copy_(mine.data.view(other.shape))
    mine, peft = (model(tokens(), labels=tokens()) for model in (ours, theirs))
    torch.testing.assert_close(mine.logits, peft.logits, atol=2e-6, rtol=0)
    mine.loss.backward()
    peft.loss.backward()
    for mine, other in pairs:
        torch.testing.assert_close(mine.grad, other.grad.view(mine.shape), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: add_lora(model, {"query"}, rank=4, alpha=8),
        lambda model: add_ia3(model, outputs=("key",), inputs=()),
        lambda model: add_vera(model, {"query"}, 4),
        lambda model: quantize_linears(model, {"query"}),
        lambda model: add_adapters(model, 8, targets=("out_proj",)),
    ],
    ids=["lora", "ia3", "vera", "nf4", "adapter"],
)
def test_no_match_is_refused(wrap):
    """A misspelt target would train nothing; it leaves the model as it was."""
    model = tiny_llama()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="no linear layer is named any of"):
        wrap(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@few
@given(st.integers(1, 8), st.integers(1, 8), st.sampled_from(["input", "output"]), st.booleans())
def test_a_merged_scale_equals_the_unmerged_one(d_in, d_out, side, bias):
    """Scaled rows or columns of W give the same outputs; with a bias on the output's side it is scaled too."""
    torch.manual_seed(d_in + 10 * d_out)
    layer = ScaledLinear(nn.Linear(d_in, d_out, bias=bias), side)
    scatter(layer)
    x = torch.randn(3, d_in)
    apart = layer(x)
    for _ in range(2):  # merging twice is merging once
        layer.merge()
        torch.testing.assert_close(layer(x), apart, atol=1e-6, rtol=1e-5)


def test_the_update_of_a_scale_has_full_rank():
    """One number for each output, and still no low rank: (diag(l) − 1) W has the rank of W."""
    torch.manual_seed(0)
    layer = ScaledLinear(nn.Linear(6, 5, bias=False))
    before = layer.base.weight.clone()
    scatter(layer)
    layer.merge()
    assert torch.linalg.matrix_rank(layer.base.weight - before) == 5


@few
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 5))
def test_a_merged_vera_equals_the_unmerged_one_and_is_of_low_rank(d_in, d_out, rank):
    """diag(β) B diag(δ) A, from matrices that are wider than the layer, added to W."""
    torch.manual_seed(d_in + 10 * d_out + 100 * rank)
    layer = VeRALinear(nn.Linear(d_in, d_out), torch.randn(rank, 9), torch.randn(9, rank))
    scatter(layer)
    before, x = layer.base.weight.clone(), torch.randn(3, d_in)
    apart = layer(x)
    layer.merge()
    torch.testing.assert_close(layer(x), apart, atol=1e-5, rtol=1e-4)
    expected = layer.beta_scale.diag() @ layer.B @ layer.delta_scale.diag() @ layer.A
    torch.testing.assert_close(layer.base.weight - before, expected.detach(), atol=1e-5, rtol=1e-4)


def test_of_vera_only_scales_are_stored():
    """A and B come from the seed, and are not in the file."""
    model = tiny_llama()
    add_vera(model, ALL, RANK)
    assert not any(name.endswith((".A", ".B")) for name in model.state_dict())
