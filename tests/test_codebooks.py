"""Codebooks: published tables and packages as oracles, the laws of nearest levels, and what makes a level optimal."""

from __future__ import annotations

import copy

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_llama

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store
from peftbook.evidence import stats
from peftbook.scratch.codebooks import (
    BLOCK_DEPENDENT,
    NAMES,
    codebook,
    expected_error,
    half_steps,
    linear_layers,
    quantize_affine,
    round_trip,
)
from peftbook.scratch.nf4 import quantize_blocks
from peftbook.studies import codebooks as study
from peftbook.studies import get_study, weight_error
from peftbook.training.probes import codebooks as probes
from peftbook.training.probes import measure

CLAIMS = ("codebooks_squared", "codebooks_absolute", "codebooks_bins")
names = pytest.mark.parametrize("name", NAMES)
few = settings(max_examples=15, deadline=None)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@names
def test_levels_ascend_within_one(name):
    """At most 16 of them, so that a code fits four bits."""
    for block in (32, 64, 4096):
        levels = codebook(name, block)
        assert len(levels) in ((4,) if name == "nf2" else (15, 16)) and levels.dtype == torch.float32
        assert (levels.diff() > 0).all() and levels.abs().max() <= 1


@pytest.mark.parametrize("name", ["nf4", "fp4", "af4"])
def test_levels_are_those_of_bitsandbytes(name):
    """Its tables are the published ones; that of AF4 was found by bisection to about 1e-5."""
    table = bnb.get_4bit_type(name, device="cpu", blocksize=64).unique()
    torch.testing.assert_close(codebook(name, 64), table, atol=2e-5, rtol=0)


def test_int4_is_symmetric_round_to_nearest():
    """round(7 w / M) M / 7, without a table: that of bitsandbytes cannot be built (it divides integers in place)."""
    w = normal(512, 64)
    M = w.abs().amax(1, keepdim=True)
    torch.testing.assert_close(round_trip(w, "int4"), (7 * w / M).round() * M / 7, atol=1e-6, rtol=0)


@pytest.mark.parametrize("block", [64, 128, 256])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_round_trip_is_that_of_bitsandbytes(name, block):
    """Quantise and dequantise on a CPU, whole blocks."""
    w = normal(32, 1024, seed=block)
    theirs = bnb.dequantize_4bit(*bnb.quantize_4bit(w, blocksize=block, quant_type=name))
    torch.testing.assert_close(round_trip(w, name, block), theirs, atol=1e-6, rtol=0)


def test_affine_code_is_that_of_gguf():
    """Q4_1 as the package that writes the files computes it."""
    w = normal(64, 256)
    kind = gguf.GGMLQuantizationType.Q4_1
    theirs = gguf.quants.dequantize(gguf.quants.quantize(w.numpy(), kind), kind)
    np.testing.assert_allclose(round_trip(w, "q4_1", 32).numpy(), theirs, atol=1e-6)


def test_affine_code_reproduces_what_it_stored():
    """So a model that comes from a Q4_1 file shows no error under this code: comparisons on it are confounded."""
    stored = round_trip(normal(64, 256), "q4_1", 32)
    torch.testing.assert_close(round_trip(stored, "q4_1", 32), stored, atol=2e-6, rtol=0)


def test_affine_code_needs_whole_blocks():
    """Silent padding would invent a constant."""
    with pytest.raises(ValueError, match="33 weights"):
        quantize_affine(torch.ones(33), 32)


@few
@given(st.sampled_from(NAMES), st.integers(0, 2**31), st.sampled_from([32, 64, 128]))
def test_every_weight_gets_its_nearest_level(name, seed, block):
    """Nothing else in the codebook, scaled by the block's largest magnitude, is nearer."""
    w = normal(4 * block, seed=seed).view(4, block)
    grid = codebook(name, block) * w.abs().amax(1, keepdim=True)[..., None]  # (4, 1, levels)
    nearest = (w[..., None] - grid).abs().amin(-1)
    torch.testing.assert_close((w - round_trip(w, name, block)).abs(), nearest, atol=1e-6, rtol=0)


@few
@given(st.sampled_from(NAMES), st.integers(0, 2**31), st.integers(-20, 20))
def test_scaling_the_weights_scales_the_result(name, seed, exponent):
    """Exactly so for powers of two."""
    w = normal(256, seed=seed)
    assert torch.equal(round_trip(w * 2.0**exponent, name), round_trip(w, name) * 2.0**exponent)


@few
@given(st.sampled_from(NAMES), st.integers(0, 2**31), st.sampled_from([32, 64, 128]))
def test_half_a_step_is_half_the_distance_to_the_nearest_other_level(name, seed, block):
    """By brute force over all pairs of levels, in the units of the weights."""
    w = normal(4, block, seed=seed)
    largest, levels = w.abs().amax(1, keepdim=True), codebook(name, block)
    own = (round_trip(w, name, block)[..., None] / largest[..., None] - levels).abs().argmin(-1)
    apart = (levels[:, None] - levels).abs().fill_diagonal_(torch.inf).amin(1)
    torch.testing.assert_close(half_steps(w, name, block), apart[own] / 2 * largest)


@pytest.mark.parametrize("name", ["nf4", "nf2", "fp4", "int4"])
def test_rounding_undoes_a_change_below_half_a_step_and_no_larger_one(name):
    """Of every weight but the block's largest, which sets all steps: towards the nearest level it moves there."""
    grid = round_trip(normal(16, 64), name)
    steps, levels = half_steps(grid, name), codebook(name)
    largest = grid.abs().amax(1, keepdim=True)
    own = (grid[..., None] / largest[..., None] - levels).abs().argmin(-1)
    nearest = (levels[:, None] - levels).abs().fill_diagonal_(torch.inf).argmin(1)
    towards = torch.where(grid.abs() == largest, 0.0, (levels[nearest[own]] * largest - grid).sign() * steps)
    torch.testing.assert_close(round_trip(grid + 0.9 * towards, name), grid, atol=1e-6, rtol=0)
    moved = round_trip(grid + 1.1 * towards, name)
    torch.testing.assert_close(moved, grid + 2 * towards, atol=1e-6, rtol=0)


def test_half_steps_have_the_constants_that_storage_gives_back():
    """With constants in 8 bits the steps change by as much as the weights do."""
    w = normal(64, 64)
    plain, stored = (half_steps(w, "nf4", double_quant=each) for each in (False, True))
    weights = [round_trip(w, "nf4", double_quant=each) for each in (False, True)]
    some = weights[0] != 0
    torch.testing.assert_close((stored / plain)[some], (weights[1] / weights[0])[some])
    assert not torch.equal(plain, stored)


@names
def test_a_block_of_zeros_stays_zero(name):
    """Its scale is zero, whatever the code."""
    assert not round_trip(torch.zeros(2, 64), name).any()


def test_unknown_codebook_is_refused():
    """With the names that there are."""
    with pytest.raises(ValueError, match="nf4"):
        codebook("nf5")


def scaled(block: int, blocks: int = 16384) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights over their block's largest magnitude, and that magnitude for each weight."""
    w = normal(blocks, block, seed=3).double()
    largest = w.abs().amax(1, keepdim=True)
    return w / largest, largest.expand_as(w)


@pytest.mark.parametrize("name", ["lloyd", "lloyd_pinned"])
@pytest.mark.parametrize("block", [64, 512])
def test_lloyd_levels_are_the_means_of_their_cells(name, block):
    """Lloyd's condition for squared error of the weights, on a sample; the pinned levels are exempt."""
    x, M = scaled(block, (1 << 20) // block)
    levels = codebook(name, block)
    codes = quantize_blocks(x.float(), levels, block)[0].view(x.shape)
    for k, level in enumerate(levels.tolist()):
        if name == "lloyd" or k not in (0, 7, 15):
            cell = codes == k
            mean = (M[cell] ** 2 * x[cell]).sum() / (M[cell] ** 2).sum()
            assert abs(mean - level) < 3e-3


def test_absolute_error_levels_are_the_medians_of_their_cells():
    """As much error from below as from above, each weight counted with its block's scale."""
    x, M = scaled(64)
    codes = quantize_blocks(x.float(), codebook("l1_pinned"), 64)[0].view(x.shape)
    for k, level in enumerate(codebook("l1_pinned").tolist()):
        if k not in (0, 7, 15):
            cell = codes == k
            assert abs((M[cell] * (x[cell] - level).sign()).sum() / M[cell].sum()) < 0.02


@pytest.mark.parametrize(("name", "power"), [("lloyd", 2), ("lloyd_pinned", 2), ("l1_pinned", 1)])
@pytest.mark.parametrize("block", [32, 64, 1024])
def test_optimal_levels_cannot_be_improved(name, power, block):
    """Moving any free level either way raises the expected error."""
    levels = codebook(name, block).double()
    best = expected_error(levels, block, power)
    for k in range(16):
        if name == "lloyd" or k not in (0, 7, 15):
            for step in (-5e-3, 5e-3):
                moved = levels.clone()
                moved[k] += step
                assert expected_error(moved, block, power) > best


def test_optimal_codebooks_err_least_in_their_own_measure():
    """Free below pinned, pinned below every published code with −1, 0 and 1."""
    for block in (64, 256, 4096):
        squared = {name: expected_error(codebook(name, block), block, 2) for name in NAMES}
        absolute = {name: expected_error(codebook(name, block), block, 1) for name in NAMES}
        assert min(squared, key=squared.get) == "lloyd"
        pinned = [name for name in NAMES if name != "lloyd" and name != "int4_16"]
        assert min(pinned, key=squared.get) == "lloyd_pinned" and min(pinned, key=absolute.get) == "l1_pinned"


@names
@pytest.mark.parametrize("power", [1, 2])
def test_expected_error_is_that_of_a_sample(name, power):
    """Quadrature against 2^20 draws, within a half per cent."""
    w = normal(1 << 14, 64, seed=9)
    sample = (w - round_trip(w, name)).double().abs().pow(power).mean().item()
    assert expected_error(codebook(name), 64, power) == pytest.approx(sample, rel=5e-3)


def test_block_dependent_codebooks_depend_on_the_block():
    """And the others do not."""
    for name in NAMES:
        assert torch.equal(codebook(name, 64), codebook(name, 256)) == (name not in BLOCK_DEPENDENT)


def test_codebook_probe_agrees_with_quadrature(monkeypatch):
    """Errors, code use and the block-size axis of one draw."""
    monkeypatch.setattr(probes, "DRAWS", 1 << 16)
    one = study.probe("normal").model_copy(
        update={"settings": {"source": "normal", "codebooks": ("nf4", "lloyd"), "blocks": (64.0, 256.0)}}
    )
    found = measure(one)
    assert found.curve["block"] == [64, 256]
    for at, block in enumerate((64, 256)):
        for power, name in ((2, "mse"), (1, "mae")):
            expected = expected_error(codebook("nf4"), block, power)
            assert found.curve[f"nf4_{name}"][at] == pytest.approx(expected, rel=0.03)
        assert 3.5 < found.curve["nf4_entropy_bits"][at] < 4
        assert found.curve["nf4_fullest_over_emptiest"][at] > 1
    assert found.measurements["values"] == 1 << 16


@pytest.mark.parametrize("tied", [True, False])
def test_units_in_another_order_compute_the_same_function_from_other_codes(tied):
    """A symmetry of the network: the logits stay, the values that share a block do not."""
    model = tiny_llama()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(normal(*model.lm_head.weight.shape, seed=1))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name:
                value.copy_(1 + 0.3 * normal(*value.shape, seed=2))
    copied = copy.deepcopy(model)
    probes.permute_units(copied, 3)
    ids = torch.arange(2 * 20).view(2, 20) % 90
    with torch.no_grad():
        torch.testing.assert_close(copied(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    layers, others = linear_layers(model), linear_layers(copied)
    for name, part in layers.items():
        one, two = part.weight.detach(), others[name].weight.detach()
        assert not torch.equal(one, two) and torch.equal(one.flatten().sort().values, two.flatten().sort().values)
        if not name.endswith("o_proj"):  # its rows are whole heads, so a block of 64 or less keeps its values
            kept = [round_trip(w, "nf4", 32).flatten().sort().values for w in (one, two)]
            assert not torch.equal(*kept)


def test_copies_differ_by_seed_and_repeat():
    """A seed is one order of the units."""
    weights = []
    for seed in (1, 1, 2):
        model = tiny_llama()
        probes.permute_units(model, seed)
        weights.append(model.model.layers[0].mlp.down_proj.weight.detach())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_only_the_small_llama_has_copies():
    """The encoder has no such seed."""
    one = weight_error.probe("minilm").model_copy(update={"seed": 1})
    one = one.model_copy(update={"settings": {**one.settings, "texts": 1}})
    with pytest.raises(InputError, match="seed 0"):
        measure(one)


def test_codebook_probe_refuses_an_unknown_source():
    """Naming the ones there are."""
    one = specs.Probe(measure="codebooks.codebook_error", settings={"source": "uniform", "codebooks": (), "blocks": ()})
    with pytest.raises(InputError, match="uniform"):
        measure(one)


def fake(probe: specs.Probe, errors: dict[str, float], unevenness: float) -> Record:
    """A record whose error at every block is as given, for the codebooks named; 0.02 for the others."""
    blocks = [float(block) for block in probe.settings["blocks"]]
    curve = {"block": blocks}
    for name in study.CODEBOOKS:
        value = errors.get(name, 0.02) * (1 + 1e-4 * probe.seed)
        row = {"mse": value, "mae": value, "entropy_bits": 3.9, "fullest_over_emptiest": unevenness}
        curve |= {f"{name}_{part}": [number] * len(blocks) for part, number in row.items()}
    measured = {"values": 1, "matrices": 1, "q4_1_mse": 0.01, "q4_1_mae": 0.01}
    return Record(key=probe.key, spec=probe, curve=curve, measurements=measured)


@pytest.mark.parametrize(
    ("best", "unevenness", "outcome", "bins"),
    [
        (0.0080, 5.0, "refuted", "refuted"),
        (0.00839, 1.2, "equivalent", "equivalent"),
        (0.009, 5.0, "reproduced", "refuted"),
    ],
)
def test_codebook_verdicts_follow_the_errors(tmp_path, best, unevenness, outcome, bins):
    """NF4 is refuted, equivalent or optimal as the rival's error says, and its bins as their counts do."""
    store = Store(tmp_path)
    for probe in study.runs(store):
        store.save(fake(probe, {"nf4": 0.0084, "lloyd_pinned": best, "l1_pinned": best}, unevenness))
    found = {name: get_study(name).verdict(store) for name in CLAIMS}
    assert found["codebooks_squared"].outcome == found["codebooks_absolute"].outcome == outcome
    assert found["codebooks_bins"].outcome == bins
    quantities = study.quantities(store)
    for verdict in found.values():
        assert set(verdict.quantities) <= set(quantities)
    assert quantities["nf4_excess_mse_over_lloyd_pinned"].value == pytest.approx(0.0084 / best - 1)


def test_partial_records_give_partial_quantities(tmp_path):
    """Trained weights alone decide nothing and raise nothing."""
    store = Store(tmp_path)
    store.save(fake(study.probe("minilm"), {"nf4": 0.01}, 5.0))
    found = study.quantities(store)
    assert found and all(name.startswith("minilm_") for name in found)
    assert get_study("codebooks_squared").verdict(store).outcome == "not yet run"
    assert isinstance(study.excess([store.get(study.probe("minilm"))] * 2, "lloyd", "mse"), stats.Interval)
