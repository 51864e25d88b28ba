"""NF4 and double quantisation from scratch: bitsandbytes as the oracle, the bounds, and a QLoRA made of both.

bitsandbytes 0.50 on a CPU departs from its own definition in two places, and the tests say where:
- `quantize_blockwise` looks 8-bit codes up in a table of 65,536 cells (`on_the_cpu_grid`), so it may miss the nearest
  level, and a zero becomes 2e-5. Snapped to the same cells, the scratch codes are identical.
- `dequantize_4bit` gives a row of d_in weights d_in // 64 constants, so rows that are not whole blocks come out wrong.
  The oracle here dequantises the flat vector, which is right.
"""

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import SEVEN, scatter, tiny_llama, tokens
from torch import nn

from peftbook.scratch.double_quant import bits_per_parameter, double_dequantize, double_quantize, dynamic_levels
from peftbook.scratch.lora import add_lora, trainable_fraction
from peftbook.scratch.nf4 import dequantize_nf4, nf4_levels, pack, quantize_blocks, quantize_nf4, unpack
from peftbook.scratch.nf4_linear import NF4Linear, quantize_linears

few = settings(max_examples=15, deadline=None)
block_counts = st.integers(1, 600)  # beyond 256, so that double quantisation has full and partial blocks
exponents = st.integers(-30, 30)
seeds = st.integers(0, 2**32 - 1)
CELL = 2 / 65535  # width of a cell of bitsandbytes' CPU table on [-1, 1]


def normal(*shape: int, seed: int = 0, exponent: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent


def quantize_4bit(w: torch.Tensor, double_quant: bool = False):
    return bnb.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=double_quant)


def on_the_cpu_grid(scaled: torch.Tensor) -> torch.Tensor:
    """The centre of the cell into which bitsandbytes' CPU code puts a value in [-1, 1]."""
    return torch.floor((scaled + 1) * 32767.5 + 0.5) * CELL - 1


def test_levels_are_those_of_bitsandbytes():
    """All 16, to the last bit, from a formula instead of a table."""
    assert torch.equal(nf4_levels(), bnb.get_4bit_type("nf4", device="cpu"))


@few
@given(block_counts, exponents, seeds)
def test_codes_bytes_and_absmax_are_those_of_bitsandbytes(blocks, exponent, seed):
    """Identical over sizes and scales: the same level for every weight, the same bytes in the same order."""
    w = normal(blocks * 64, seed=seed, exponent=exponent)
    theirs, state = quantize_4bit(w)
    codes, absmax = quantize_nf4(w)
    assert torch.equal(pack(codes), theirs.flatten())
    assert torch.equal(absmax, state.absmax)
    assert torch.equal(dequantize_nf4(codes, absmax), bnb.dequantize_4bit(theirs, state).flatten())


@few
@given(st.integers(1, 40), st.sampled_from([64, 128, 192]), seeds)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matrices_of_each_type_agree_with_bitsandbytes(dtype, rows, columns, seed):
    """A matrix is read row by row, and half precision is quantised as the float32 it stands for."""
    w = normal(rows, columns, seed=seed).to(dtype)
    theirs, state = quantize_4bit(w)
    codes, absmax = quantize_nf4(w)
    assert torch.equal(pack(codes), theirs.flatten())
    assert torch.equal(dequantize_nf4(codes, absmax).view(w.shape).to(dtype), bnb.dequantize_4bit(theirs, state))


def test_weights_on_the_midpoints_take_the_lower_level_as_in_bitsandbytes():
    """The tie rule, met exactly: absmax 1 makes the scaled weights the midpoints themselves."""
    levels = nf4_levels()
    midpoints = (levels[1:] + levels[:-1]) / 2
    above = torch.nextafter(midpoints, torch.ones(15))
    w = torch.cat([midpoints, above, torch.ones(34)])
    codes, _ = quantize_nf4(w)
    assert codes[:15].tolist() == list(range(15))
    assert codes[15:30].tolist() == list(range(1, 16))
    assert torch.equal(pack(codes), quantize_4bit(w)[0].flatten())


@few
@given(st.floats(2**-10, 2**10, width=32))
def test_weights_beside_the_midpoints_agree_with_bitsandbytes_at_any_scale(absmax):
    """A reciprocal and a division round differently; only here can one see which of them is used."""
    levels = nf4_levels()
    midpoints = (levels[1:] + levels[:-1]) / 2 * absmax
    w = torch.cat([midpoints, torch.nextafter(midpoints, torch.zeros(15)), torch.full((34,), absmax)])
    assert torch.equal(pack(quantize_nf4(w)[0]), quantize_4bit(w)[0].flatten())


@few
@given(st.integers(1, 9), st.sampled_from([32, 96, 160]), seeds)
def test_rows_that_are_not_whole_blocks_agree_with_the_flat_oracle(rows, columns, seed):
    """Blocks run across the ends of rows. bitsandbytes quantises so, and dequantises so on the flat vector."""
    w = normal(rows * 2, columns, seed=seed)
    theirs, _ = quantize_4bit(w)
    _, flat_state = quantize_4bit(w.flatten())
    codes, absmax = quantize_nf4(w)
    assert torch.equal(pack(codes), theirs.flatten())
    assert torch.equal(dequantize_nf4(codes, absmax), bnb.dequantize_4bit(theirs, flat_state).flatten())


@pytest.mark.parametrize("size", [1, 63, 100])
def test_sizes_that_leave_a_partial_block_are_refused(size):
    """bitsandbytes scales a short last block by division, the others by a reciprocal; here it is an error."""
    with pytest.raises(ValueError, match=f"{size} weights do not fill blocks of 64"):
        quantize_nf4(torch.ones(size))


def test_a_block_of_zeros_stays_zero():
    """absmax 0 must not divide."""
    w = torch.zeros(128)
    codes, absmax = quantize_nf4(w)
    theirs, state = quantize_4bit(w)
    assert torch.equal(pack(codes), theirs.flatten()) and torch.equal(absmax, state.absmax)
    assert torch.equal(dequantize_nf4(codes, absmax), w)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_weight_spoils_its_block_and_no_other(bad):
    """absmax is not finite, so all 64 weights are lost, as in bitsandbytes."""
    w = torch.ones(128)
    w[3] = bad
    codes, absmax = quantize_nf4(w)
    theirs, state = quantize_4bit(w)
    ours = dequantize_nf4(codes, absmax)
    assert torch.equal(pack(codes), theirs.flatten())
    torch.testing.assert_close(ours, bnb.dequantize_4bit(theirs, state).flatten(), equal_nan=True, atol=0, rtol=0)
    assert not ours[:64].isfinite().any()
    assert torch.equal(ours[64:], w[64:])


@few
@given(block_counts, exponents, seeds)
def test_quantising_twice_is_quantising_once(blocks, exponent, seed):
    """Dequantised weights are on the grid already, and the largest keeps its block's absmax."""
    codes, absmax = quantize_nf4(normal(blocks * 64, seed=seed, exponent=exponent))
    again, absmax_again = quantize_nf4(dequantize_nf4(codes, absmax))
    assert torch.equal(again, codes) and torch.equal(absmax_again, absmax)


@few
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=64, max_size=64))
@example([1.0] + [-0.8481] * 63)  # the middle of the largest gap
def test_error_is_at_most_half_the_largest_gap(values):
    """|w - ŵ| ≤ absmax · max gap / 2; the widest gap is between -1 and -0.696."""
    w = torch.tensor(values)
    codes, absmax = quantize_nf4(w)
    half_gap = nf4_levels().diff().max() / 2
    assert (dequantize_nf4(codes, absmax) - w).abs().max() <= half_gap * absmax * (1 + 1e-5) + 1e-37


@few
@given(st.lists(st.integers(0, 15), max_size=60).filter(lambda codes: len(codes) % 2 == 0))
def test_unpack_inverts_pack(codes):
    """Two codes a byte and back."""
    codes = torch.tensor(codes, dtype=torch.uint8)
    assert pack(codes).numel() == codes.numel() / 2
    assert torch.equal(unpack(pack(codes)), codes)


def test_pack_puts_the_first_code_in_the_high_half_and_refuses_odd_numbers():
    """The order of bitsandbytes, fixed on an example that a reader can check."""
    assert pack(torch.tensor([0xA, 0x3], dtype=torch.uint8)).tolist() == [0xA3]
    with pytest.raises(ValueError, match="3 codes do not fill whole bytes"):
        pack(torch.zeros(3, dtype=torch.uint8))


@pytest.mark.parametrize("block_size, least", [(64, 3), (4096, 50)])
def test_bins_of_normal_weights_are_not_equally_full(block_size, least):
    """ "Equal number of values in each bin" fails: block 64 spreads N(0, 1) unevenly, larger blocks far more."""
    codes, _ = quantize_nf4(normal(2**21), block_size)
    mass = codes.bincount(minlength=16).double() / codes.numel()
    assert mass.max() / mass.min() > least
    assert -(mass * mass.log2()).sum() < 3.95  # of 4 bits


def test_dynamic_levels_are_those_of_bitsandbytes():
    """All 256, to the last bit. The map holds +1 but not -1."""
    levels = dynamic_levels()
    assert torch.equal(levels, bnb.create_dynamic_map(signed=True))
    assert levels[0] > -1 and levels[127] == 0 and levels[255] == 1


@few
@given(block_counts, exponents, seeds)
def test_double_quantised_constants_are_those_of_bitsandbytes(blocks, exponent, seed):
    """Offset and second constants identical; codes identical once values are snapped to its CPU table."""
    w = normal(blocks * 64, seed=seed, exponent=exponent)
    _, state = quantize_4bit(w, double_quant=True)
    _, absmax = quantize_nf4(w)
    _, absmax2, offset = double_quantize(absmax)
    assert torch.equal(offset, state.offset)
    assert torch.equal(absmax2, state.state2.absmax)
    inverse = (1 / absmax2).repeat_interleave(256)[: absmax.numel()]
    snapped = on_the_cpu_grid((absmax - offset) * inverse) if blocks > 1 else torch.zeros(1)
    midpoints = (dynamic_levels()[1:] + dynamic_levels()[:-1]) / 2
    expected = torch.bucketize(snapped, midpoints) * (blocks > 1)  # a block of zeros gets code 0 there
    assert torch.equal(expected.to(torch.uint8), state.absmax)


@few
@given(st.integers(2, 700), exponents, seeds)
def test_double_quantised_constants_are_as_close_as_those_of_bitsandbytes(blocks, exponent, seed):
    """The scratch code is the nearest level; the CPU table of bitsandbytes is worse by a cell at most."""
    w = normal(blocks * 64, seed=seed, exponent=exponent)
    _, state = quantize_4bit(w, double_quant=True)
    _, absmax = quantize_nf4(w)
    codes, absmax2, offset = double_quantize(absmax)
    scale = absmax2.repeat_interleave(256)[: len(absmax)]
    ours = (double_dequantize(codes, absmax2, offset) - absmax).abs()
    theirs = (double_dequantize(state.absmax, absmax2, offset) - absmax).abs()
    rounding = 1e-6 * absmax.max()
    assert (ours <= theirs + rounding).all()
    assert (theirs <= ours + CELL * scale + rounding).all()
    assert (codes != state.absmax).float().mean() <= 0.02 + 2 / blocks


@few
@given(block_counts, exponents, seeds)
def test_double_dequantising_is_that_of_bitsandbytes(blocks, exponent, seed):
    """From the same stored bytes come the same weights, to the last bit."""
    w = normal(blocks * 64, seed=seed, exponent=exponent)
    packed, state = quantize_4bit(w, double_quant=True)
    absmax = double_dequantize(state.absmax, state.state2.absmax, state.offset)
    ours = dequantize_nf4(unpack(packed.flatten()), absmax)
    assert torch.equal(ours, bnb.dequantize_4bit(packed, state).flatten())


def test_equal_constants_survive_double_quantisation():
    """All blocks alike: nothing is left after the mean, and a scale of 0 must not divide."""
    codes, absmax2, offset = double_quantize(torch.full((5,), 2.5))
    assert absmax2.tolist() == [0.0]
    assert torch.equal(double_dequantize(codes, absmax2, offset), torch.full((5,), 2.5))


@few
@given(st.integers(1, 600), st.sampled_from([1, 7, 256]), seeds)
def test_any_codebook_gives_the_nearest_level(n, block_size, seed):
    """`quantize_blocks` against the definition, argmin over all levels, short last block included."""
    w, levels = normal(n, seed=seed), dynamic_levels()
    codes, absmax = quantize_blocks(w, levels, block_size)
    scaled = w / absmax.repeat_interleave(block_size)[:n]
    best = (scaled[:, None] - levels).abs().amin(dim=1)
    torch.testing.assert_close((scaled - levels[codes.long()]).abs(), best, atol=1e-6, rtol=0)


def test_bits_per_parameter_are_the_papers():
    """4.5 bits without and 4.127 with double quantisation: 0.373 saved."""
    assert bits_per_parameter(64, double_quant=False) == 4.5
    assert bits_per_parameter(64, double_quant=True) == 4 + 8 / 64 + 32 / (64 * 256)
    assert round(bits_per_parameter(64, False) - bits_per_parameter(64, True), 3) == 0.373


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("block_size", [64, 128])
def test_bits_formula_is_the_bytes_stored(block_size, double_quant):
    """Counted on a layer whose blocks are full; the offset's four bytes come on top."""
    linear = nn.Linear(512, 256, bias=False)
    layer = NF4Linear(linear, block_size, double_quant)
    stored = sum(buffer.nbytes for buffer in layer.buffers()) - 4 * double_quant
    assert stored * 8 == bits_per_parameter(block_size, double_quant) * linear.weight.numel()


@pytest.mark.parametrize("double_quant", [False, True])
def test_nf4_linear_computes_with_its_dequantised_weight(double_quant):
    """The layer is exactly a linear layer with other weights, its bias untouched, nothing trainable."""
    linear = nn.Linear(64, 6)
    layer = NF4Linear(linear, double_quant=double_quant)
    x = normal(3, 64).requires_grad_()
    dense = x @ layer.dequantize().T + linear.bias
    torch.testing.assert_close(layer(x), dense, atol=1e-6, rtol=1e-5)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dequantize().sum(0).expand(3, -1), atol=1e-5, rtol=1e-5)
    assert not any(p.requires_grad for p in layer.parameters())
    error = (layer.dequantize() - linear.weight).abs().max() / linear.weight.abs().max()
    assert 0 < error < 0.16


def test_qlora_trains_like_lora_on_the_dequantised_weights():
    """QLoRA is LoRA on other frozen weights: same logits, same gradients of A and B."""
    quantized, dense = tiny_llama(), tiny_llama()
    names = quantize_linears(quantized, set(SEVEN))
    for name in names:
        dense.get_submodule(name).weight.data.copy_(quantized.get_submodule(name).dequantize())
    for model in (quantized, dense):
        torch.manual_seed(3)
        assert add_lora(model, set(SEVEN), rank=4, alpha=8) == names
        scatter(model)
    outputs = [model(tokens(), labels=tokens()) for model in (quantized, dense)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, atol=1e-6, rtol=0)
    for output in outputs:
        output.loss.backward()
    for name in names:
        ours, theirs = quantized.get_submodule(name), dense.get_submodule(name)
        torch.testing.assert_close(ours.A.grad, theirs.A.grad, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(ours.B.grad, theirs.B.grad, atol=1e-6, rtol=1e-5)
    assert trainable_fraction(quantized) == trainable_fraction(dense)
    with pytest.raises(ValueError, match="cannot merge into NF4Linear"):
        quantized.get_submodule(names[0]).merge()
