"""LoRA from scratch: the laws of section 4.1 of the paper; test_scratch_layers.py has those of a whole model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SEVEN, scatter, tiny_llama, tokens, trained_numbers
from torch import nn

from peftbook.scratch.lora import LoRALinear, add_lora, load_lora_state, lora_state, trainable_fraction

shapes = st.tuples(st.integers(2, 24), st.integers(2, 24), st.integers(1, 2))  # d_in, d_out, rank
few = settings(max_examples=20, deadline=None)


def a_layer(d_in: int, d_out: int, rank: int, bias: bool = True) -> LoRALinear:
    torch.manual_seed(d_in * 1000 + d_out * 10 + rank)
    layer = LoRALinear(nn.Linear(d_in, d_out, bias=bias), rank, alpha=3.0)
    nn.init.normal_(layer.B)
    return layer


@few
@given(shapes, st.booleans())
def test_forward_is_the_formula(shape, bias):
    """h = W x + b + (alpha / r) B A x, computed here as one dense matrix."""
    layer = a_layer(*shape, bias=bias)
    x = torch.randn(5, shape[0])
    w = layer.base.weight + layer.alpha / layer.rank * layer.B @ layer.A
    dense = x @ w.T + (layer.base.bias if bias else 0)
    torch.testing.assert_close(layer(x), dense, atol=1e-5, rtol=1e-4)


@few
@given(shapes)
def test_merged_equals_unmerged_and_unmerge_restores(shape):
    """Merging moves the update into W; float32 sums in another order differ by rounding only."""
    layer = a_layer(*shape)
    x, weight = torch.randn(5, shape[0]), layer.base.weight.clone()
    apart = layer(x)
    layer.merge()
    assert layer.merged
    torch.testing.assert_close(layer(x), apart, atol=1e-5, rtol=1e-4)
    layer.unmerge()
    assert not layer.merged
    torch.testing.assert_close(layer.base.weight, weight, atol=2e-6, rtol=0)
    torch.testing.assert_close(layer(x), apart, atol=1e-5, rtol=1e-4)


def test_merging_twice_is_merging_once():
    """A second merge would add the update again, a second unmerge subtract it again."""
    layer = a_layer(6, 5, 2)
    layer.merge()
    once = layer.base.weight.clone()
    layer.merge()
    assert torch.equal(layer.base.weight, once)
    layer.unmerge()
    restored = layer.base.weight.clone()
    layer.unmerge()
    assert torch.equal(layer.base.weight, restored)


def test_merge_refuses_a_base_without_a_dense_weight():
    """Adding to 4-bit codes would quantise again and lose part of the update."""

    class Packed(nn.Module):
        in_features = out_features = 4

        def __init__(self):
            super().__init__()
            self.register_buffer("packed", torch.zeros(8, dtype=torch.uint8))

    with pytest.raises(ValueError, match="cannot merge into Packed"):
        LoRALinear(Packed(), 1, 1.0).merge()


@few
@given(shapes)
def test_trainable_parameters_are_r_times_d_in_plus_d_out(shape):
    """The count on which every table of the book rests."""
    d_in, d_out, rank = shape
    layer = a_layer(*shape)
    assert trained_numbers(layer) == rank * (d_in + d_out)


def test_trainable_fraction_counts_the_whole_model():
    """Trainable over all, the new A and B included in both."""
    model = tiny_llama()
    base = sum(p.numel() for p in model.parameters())
    add_lora(model, {"q_proj", "v_proj"}, rank=4, alpha=8)
    new = 2 * 4 * ((64 + 64) + (64 + 32))  # q: 64 to 64, v: 64 to 32, two layers
    assert trainable_fraction(model) == new / (base + new)


def test_first_step_moves_b_only():
    """With B = 0 the gradient of A is zero: dL/dA = (alpha / r) Bᵀ (dL/dh) xᵀ."""
    model = tiny_llama()
    add_lora(model, {"q_proj"}, rank=4, alpha=8)
    model(tokens(), labels=tokens()).loss.backward()
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.A.grad.abs().max() == 0
    assert layer.B.grad.abs().max() > 0


@pytest.mark.parametrize("rank", [1, 4, 16, 64])
def test_the_first_step_of_sgd_goes_with_the_rank_in_its_mean_and_not_in_its_norm(rank):
    """ΔW = −η γ² G Aᵀ A has the mean −η γ² r σ² G over A; its norm is larger, by about √(1 + d_in / r)."""
    torch.manual_seed(rank)
    width, rate, x, g = 64, 0.1, torch.randn(64), torch.randn(64)
    means, squares = [], []
    for _ in range(200):
        layer = LoRALinear(nn.Linear(width, width, bias=False), rank, alpha=8.0)
        (layer(x) @ g).backward()
        step = -rate * layer.scaling * layer.B.grad @ layer.A.detach()
        unit = rate * layer.scaling**2 * rank / (3 * width)  # σ² = 1 / (3 d_in)
        means.append(-(g @ step @ x) / (unit * (g @ g) * (x @ x)))
        squares.append(step.square().sum() / (unit**2 * (g @ g) * (x @ x)))
    assert torch.stack(means).mean() == pytest.approx(1, rel=0.2)
    assert torch.stack(squares).mean() == pytest.approx(1 + width / rank, rel=0.2)


def test_a_starts_as_torch_starts_a_linear_layer():
    """Kaiming-uniform with a = √5 is uniform in ±1/√d_in, the default of nn.Linear, and peft keeps it for A."""
    torch.manual_seed(0)
    a = LoRALinear(nn.Linear(100, 3), 2, 1.0).A
    torch.manual_seed(0)
    nn.Linear(100, 3)
    assert torch.equal(a, nn.Linear(100, 2, bias=False).weight)
    assert 0.09 < a.abs().max() <= 0.1


def test_state_moves_an_adapter_between_models():
    """A fine-tune is its A and B: loaded into a fresh copy they give the same logits."""
    source, target = tiny_llama(), tiny_llama()
    for model in (source, target):
        add_lora(model, set(SEVEN), rank=4, alpha=8)
    scatter(source)
    state = lora_state(source)
    assert len(state) == 2 * 2 * 7
    load_lora_state(target, state)
    assert torch.equal(source(tokens()).logits, target(tokens()).logits)
    scatter(source, seed=9)
    assert not torch.equal(state["model.layers.0.mlp.up_proj.B"], source.model.layers[0].mlp.up_proj.B)  # a copy


@pytest.mark.parametrize("change", ["missing", "unknown", "broadcastable"])
def test_loading_refuses_a_state_that_does_not_fit(change):
    """A rank-1 A would broadcast into any rank without an error from torch."""
    model = tiny_llama()
    (first, *_) = add_lora(model, {"q_proj"}, rank=4, alpha=8)
    state = lora_state(model)
    if change == "missing":
        del state[f"{first}.A"]
    elif change == "unknown":
        state["lm_head.A"] = torch.zeros(4, 32)
    else:
        state[f"{first}.A"] = state[f"{first}.A"][:1]
    with pytest.raises(ValueError, match="disagree about"):
        load_lora_state(model, state)


def test_loading_refuses_a_merged_model():
    """Unmerging afterwards would subtract the new update from a weight that holds the old one."""
    model = tiny_llama()
    (first, *_) = add_lora(model, {"q_proj"}, rank=4, alpha=8)
    model.get_submodule(first).merge()
    with pytest.raises(ValueError, match="unmerge"):
        load_lora_state(model, lora_state(model))


@pytest.mark.parametrize("rank", [0, -1])
def test_rank_below_one_is_refused(rank):
    """r = 0 would divide alpha by zero."""
    with pytest.raises(ValueError, match=f"rank {rank} leaves nothing to train"):
        LoRALinear(nn.Linear(4, 4), rank, 1.0)


def test_rank_above_the_matrix_warns_with_the_effective_rank():
    """It works, but B A cannot have more rank than the smaller side."""
    with pytest.warns(UserWarning, match="rank 9 is stored, but B A has rank at most 3"):
        layer = LoRALinear(nn.Linear(5, 3), 9, 1.0)
    nn.init.normal_(layer.B)
    assert torch.linalg.matrix_rank(layer.delta()) == 3


def test_add_lora_refuses_a_second_time():
    """It would nest the layers."""
    model = tiny_llama()
    add_lora(model, {"q_proj"}, rank=4, alpha=8)
    with pytest.raises(ValueError, match="already has LoRA"):
        add_lora(model, {"v_proj"}, rank=4, alpha=8)
