"""Figures: the numbers they draw obey laws, and the same records give the same bytes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from fake_records import fill_store

from peftbook import figures
from peftbook.errors import InputError
from peftbook.figures import costs, lora, methods, prompt, quantisation, style
from peftbook.records import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return fill_store(tmp_path_factory.mktemp("records"))


def test_every_figure_is_rendered_and_rendering_twice_gives_the_same_bytes(store: Store, tmp_path: Path):
    """Committed figures must not change without a change of records or code."""
    first = figures.render_all(tmp_path / "a", store)
    assert [path.stem for path in first] == list(figures.FIGURES)
    for path in first:
        body = path.read_bytes()
        assert body == figures.svg(path.stem, store)
        assert b"<dc:date>" not in body
        assert b"<text" not in body  # glyphs are paths: no font is needed to read it


def test_an_empty_store_renders_only_what_is_computed(tmp_path: Path):
    """A figure without records is left out, and asking for it names the command that makes them."""
    empty = Store(tmp_path / "none")
    names = {path.stem for path in figures.render_all(tmp_path / "out", empty)}
    assert names == {name for name, entry in figures.FIGURES.items() if not entry.needs}
    with pytest.raises(InputError, match="peftbook run methods"):
        figures.svg("head_to_head", empty)
    with pytest.raises(InputError, match="Unknown figure"):
        figures.svg("no_such_figure", empty)


def test_dark_mode_changes_colours_and_leaves_no_trace():
    """A page holds both modes; drawing one must not leak into the next."""
    before = style.colour("lora")
    light = style.render_svg(lora.low_rank_update)
    dark = style.render_svg(lora.low_rank_update, mode="dark")
    assert light != dark
    assert style.PAPER["dark"].encode() in dark
    assert style.colour("lora") == before
    assert style.render_svg(lora.low_rank_update) == light
    with pytest.raises(ValueError, match="mode"):
        style.render_svg(lora.low_rank_update, mode="sepia")


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_reach_contrast_on_paper(mode: str):
    """WCAG AA asks 4.5:1 for text, and every method's colour is used for text."""
    paper = luminance(style.PAPER[mode])
    tones = [style.TONES[mode][name] for name in ("ink", "muted", "accent")]
    for colour in [*tones, *(getattr(look, mode) for look in style.METHODS.values())]:
        light, dark = sorted((paper, luminance(colour)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_methods_differ_without_colour():
    """A reader who sees no colour has the marker."""
    assert len({look.marker for look in style.METHODS.values()}) == len(style.METHODS)


def test_nf4_levels_are_those_of_the_scratch_code():
    """The page's figure and the page's code must show the same codebook."""
    from peftbook.scratch.nf4 import nf4_levels

    assert np.abs(quantisation.nf4_levels() - nf4_levels().numpy()).max() < 1e-6


@pytest.mark.parametrize("double", [False, True])
def test_bits_are_those_of_the_scratch_code(double: bool):
    """One formula, two places: numpy here, torch there."""
    from peftbook.scratch.double_quant import bits_per_parameter

    assert quantisation.bits_per_parameter(64, double) == bits_per_parameter(64, double)


@pytest.mark.parametrize("name", list(quantisation.codebooks()))
def test_quadrature_agrees_with_sampled_weights(name: str):
    """The error and the shares are integrals; quantising normal draws must give them within sampling noise."""
    block, levels = 64, quantisation.codebooks()[name]
    weights = np.random.default_rng(0).normal(size=(8000, block))
    largest = np.abs(weights).max(axis=1, keepdims=True)
    codes = np.searchsorted((levels[1:] + levels[:-1]) / 2, weights / largest)
    error = np.mean((levels[codes] * largest - weights) ** 2)
    assert quantisation.mean_squared_error(levels, block) == pytest.approx(error, rel=0.02)
    shares = np.bincount(codes.ravel(), minlength=len(levels)) / codes.size
    assert np.abs(quantisation.bin_shares(levels, block) - shares).max() < 0.002
    assert quantisation.bin_shares(levels, block).sum() == pytest.approx(1)


def test_nf4_errs_least_at_every_block_drawn():
    """A slide's title says so."""
    for block in quantisation.BLOCKS:
        errors = {
            name: quantisation.mean_squared_error(levels, block) for name, levels in quantisation.codebooks().items()
        }
        assert min(errors, key=errors.__getitem__) == "NF4"


def test_parameter_counts_add_up():
    """Rank 1: q and v, attention, MLP and all linear layers of SmolLM2-135M, and the weights of those layers."""
    counts = {name: lora.parameters_per_rank(targets) for name, targets in lora.TARGETS.items()}
    assert counts == {"q and v": 57_600, "attention": 115_200, "MLP": 190_080, "all linear": 305_280}
    assert lora.LAYERS * sum(d_out * d_in for d_out, d_in in lora.SHAPES.values()) == 106_168_320
    assert prompt.prompt_parameters(100) == counts["q and v"]


def test_training_state_is_sixteen_bytes_a_trained_weight():
    """Full fine-tuning holds weight, gradient, master copy and two moments: 2 + 2 + 4 + 8."""
    assert sum(costs.state_bytes("full").values()) == 16 * costs.TOTAL
    assert costs.state_bytes("lora")["weights"] == 2 * (costs.TOTAL + 16 * costs.PER_RANK)
    assert costs.state_bytes("qlora")["weights"] < costs.state_bytes("lora")["weights"] / 3


def test_differences_average_to_the_difference_of_means(store: Store):
    """The seeds drawn in a forest must average to the mean drawn there."""
    first, second = methods.chosen_records("lora", store), methods.chosen_records("full", store)
    for score in methods.SCORES:
        interval, seeds = methods.difference(first, second, score)
        assert np.mean(seeds) == pytest.approx(interval.mean)


def test_smoothing_keeps_a_constant_and_the_length():
    """Window cut at the ends, never padded: a flat curve stays flat."""
    assert methods.smooth([2.0] * 30) == [2.0] * 30
    assert len(methods.smooth(list(range(7)))) == 7


def test_a_figure_names_the_runs_behind_it(store: Store):
    """Pages and slides link a figure to its runs; computed figures have none."""
    assert figures.runs("low_rank_update", store) == []
    keys = figures.runs("lora_against_full", store)
    assert len(keys) == 6
    assert all(re.fullmatch(r"[0-9a-f]{64}", key) for key in keys)
