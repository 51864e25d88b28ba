"""Bottleneck adapters from scratch: what they compute, where they stand, what they cost."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import scatter, tiny_llama, tokens, trained_numbers
from torch import nn

from peftbook.methods.adapter import Adapter
from peftbook.scratch.adapter import BottleneckAdapter
from peftbook.training.forward import apply_method

few = settings(max_examples=10, deadline=None)
WIDTH = 8


def adapted(width: int = WIDTH) -> nn.Module:
    """The tiny model as training prepares it: adapters in, all else frozen."""
    return apply_method(tiny_llama(), Adapter(width=width), seed=0)


@few
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 6))
def test_a_layer_computes_its_definition(d_in, d_out, width):
    """h + W_up gelu(W_down h + b_down) + b_up with h = W x + b, written out with matrices."""
    torch.manual_seed(d_in + 10 * d_out + 100 * width)
    layer = BottleneckAdapter(nn.Linear(d_in, d_out), width)
    scatter(layer)
    x = torch.randn(3, 4, d_in)
    h = x @ layer.linear.weight.T + layer.linear.bias
    inner = h @ layer.down.weight.T + layer.down.bias
    gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    torch.testing.assert_close(layer(x), h + gelu @ layer.up.weight.T + layer.up.bias, atol=1e-5, rtol=1e-5)


@few
@given(st.integers(1, 70))
def test_parameter_count_is_the_formula(width):
    """Two adapters in each of two layers: two matrices each, width + 64 biases."""
    model = adapted(width)
    assert trained_numbers(model) == 2 * 2 * (2 * width * 64 + width + 64)


def test_at_the_start_only_the_upper_half_learns():
    """With W_up = 0 no gradient reaches W_down: the first step moves W_up and b_up alone, as with LoRA's B."""
    model = adapted()
    model(tokens()).logits.square().sum().backward()
    for part in model.modules():
        if isinstance(part, BottleneckAdapter):
            assert part.up.weight.grad.abs().max() > 0
            assert part.down.weight.grad.abs().max() == 0


def test_adapters_stand_before_the_residual_sum():
    """Each layer is x + A₁(attention(norm x)), then y + A₂(mlp(norm y)): the adapter never sees the residual stream."""
    plain, model = tiny_llama(), adapted()
    scatter(model)
    layer, twin = model.model.layers[0], plain.model.layers[0]
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(3))
    position = torch.arange(5)[None].expand(2, -1)
    angles = model.model.rotary_emb(x, position)

    def adapter(part: BottleneckAdapter, h: torch.Tensor) -> torch.Tensor:
        return h + part.up(nn.functional.gelu(part.down(h)))

    attended = twin.self_attn(twin.input_layernorm(x), position_embeddings=angles, attention_mask=None)[0]
    y = x + adapter(layer.self_attn.o_proj, attended)
    expected = y + adapter(layer.mlp.down_proj, twin.mlp(twin.post_attention_layernorm(y)))
    found = layer(x, position_embeddings=angles, attention_mask=None)
    torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, expected, atol=1e-5, rtol=1e-5)


def test_an_adapter_cannot_be_merged_into_one_matrix():
    """Unlike LoRA's, the update is not linear in the input: doubling x does not double it."""
    layer = BottleneckAdapter(nn.Linear(6, 6, bias=False), 3)
    scatter(layer, std=1.0)
    layer.up.bias.data.zero_()
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
    assert (layer(2 * x) - 2 * layer(x)).abs().max() > 1e-3
