"""Figures: the numbers they draw obey laws, their texts are readable, and equal records give equal bytes."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text
from peft import LoraConfig, get_peft_model
from scipy import stats as oracle
from torch import nn

from peftbook.core.errors import InputError
from peftbook.core.records import Missing, Store, default_store
from peftbook.evidence import stats
from peftbook.evidence.chart import spread_out
from peftbook.evidence.results import study_quantities
from peftbook.memory import SHAPES, training_step
from peftbook.methods import arm_looks
from peftbook.runtime.processes import run_child
from peftbook.scratch.codebooks import expected_error
from peftbook.scratch.double_quant import bits_per_parameter
from peftbook.scratch.nf4 import nf4_levels
from peftbook.studies import (
    NAMES,
    benchmark,
    codebooks,
    forgetting,
    frontier,
    learning_rate,
    prompt_design,
    subspace,
)
from peftbook.studies import methods as head_to_head
from peftbook.views import figures
from peftbook.views.figures import (
    bits,
    costs,
    evidence,
    four_bits,
    lora,
    measuring,
    methods,
    parts,
    prompt,
    quantisation,
    retention,
    style,
    updates,
)

FROM_RECORDS = [name for name in figures.FIGURES if figures.from_records(name)]


@dataclass(frozen=True)
class Drawn:
    """A figure, laid out once: its width and height in points, its texts with their boxes, and which slant."""

    size: tuple[float, float]
    texts: tuple[tuple[str, float, tuple[float, float, float, float]], ...]
    slanting: frozenset[str]


@pytest.fixture(scope="module")
def store() -> Store:
    """The shipped records."""
    return default_store()


@pytest.fixture(scope="module")
def drawn(store: Store) -> dict[str, Drawn]:
    """Every figure, but for those of a study that is still to be run."""
    found: dict[str, Drawn] = {}
    for name in figures.FIGURES:
        with contextlib.suppress(Missing):
            found[name] = drawn_once(name, store)
    return found


def drawn_once(name: str, store: Store) -> Drawn:
    """Where the file of a figure has its texts. Raises Missing."""
    with style.mode_context("light"):
        figure = figures.draw(name, store)
        FigureCanvasSVG(figure)
        figure.draw_without_rendering()
        shown = visible_texts(figure)
        texts = tuple((text.get_text(), text.get_fontsize(), box) for text, box in shown.items())
        slanting = frozenset(text.get_text() for text in shown if text.get_rotation() % 90)
        return Drawn((figure.bbox.width, figure.bbox.height), texts, slanting)


def test_a_figure_brings_its_own_module_and_studies_alone():
    """So that a chapter rests on no others."""
    code = (
        "import sys\nfrom peftbook.views import figures\n"
        "assert not [name for name in sys.modules if name.startswith('peftbook.studies.')]\n"
        "figures.FIGURES['break_even'], figures.lora\n"
        "assert 'peftbook.studies.codebooks' not in sys.modules\n"
        "names = ('restraint', 'lora', 'bits', 'qlora')\n"
        "print(*(name for name in names if f'peftbook.views.figures.{name}' in sys.modules))"
    )
    assert run_child("-c", code) == ["restraint lora"]
    assert all(function.__name__ == name for name, function in figures.FIGURES.items())
    with pytest.raises(AttributeError, match="no attribute 'unheard_of'"):
        _ = figures.unheard_of


def test_what_returns_a_figure_and_needs_a_store_at_most_is_one():
    """The signature is read from the source: however it is written, none is left out."""
    for path in Path(figures.__file__).parent.glob("[!_]*.py"):
        module = importlib.import_module(f"{figures.__name__}.{path.stem}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            signature = inspect.signature(function)
            if function.__module__ == module.__name__ and signature.return_annotation == "Figure":
                needed = {one.name for one in signature.parameters.values() if one.default is one.empty}
                assert (needed <= {"store"}) == (name in figures.places()), name


def test_a_title_says_no_more_than_the_records(store: Store, tmp_path: Path):
    """An order is the word that the interval carries; a number alone that may be zero, or a ratio 1, is refused."""
    figure, _ = style.canvas()
    words = "LoRA's ROUGE-L is {methods.lora_minus_full_rougeL;below|not separable from|above} full fine-tuning's"
    assert "is not separable from full" in visible_title(style.finding(figure, words, store))
    assert visible_title(style.finding(figure, "{A | B} in braces")) == "{A | B} in braces"
    for name in (
        "methods.lora_minus_full_rougeL;value",
        "merging_latency.merged_over_base_forward_fp32_batch1;value;1",
    ):
        with pytest.raises(InputError, match="which may be"):
            style.finding(figure, f"It is {{{name}}}", store)
    with pytest.raises(Missing, match="peftbook run methods"):
        style.finding(figure, words, Store(tmp_path / "none"))


def visible_title(figure: Figure) -> str:
    """The title in one line."""
    return " ".join(figure.get_suptitle().split("\n"))


@pytest.mark.parametrize("name", figures.FIGURES)
def test_a_title_states_a_finding(name: str, drawn: dict[str, Drawn]):
    """In two lines at most, and asks nothing."""
    if name not in drawn:
        pytest.skip("its study is still to be run")
    title = drawn[name].texts[0][0]
    assert title.count("\n") <= 1 and not re.search(r"[?.!]$|[{}]|TODO", title), title


def test_an_empty_store_renders_only_what_is_computed(tmp_path: Path, monkeypatch):
    """A figure without records is left out; without a date and with glyphs as paths, a file is the same everywhere."""
    tried = {name: figures.FIGURES[name] for name in ("low_rank_update", "head_to_head", "token_strip")}
    monkeypatch.setattr(figures, "FIGURES", tried)
    empty = Store(tmp_path / "none")
    written = figures.render_all(tmp_path / "out", empty)
    assert [path.stem for path in written] == [name for name in tried if not figures.from_records(name)]
    assert not any(mark in path.read_bytes() for path in written for mark in (b"<dc:date>", b"<text"))
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


@pytest.mark.parametrize("name", ["low_rank_update", "head_to_head", "adapters_served", "public_ranking", "rate_map"])
def test_a_figure_drawn_once_for_both_modes_is_that_of_each_mode(store, name):
    """But for identifiers, which hash colours; what is neither `colour` nor `shade` (a map's steps) is drawn again."""

    def numbered(body: bytes) -> bytes:
        identifiers = {name: b"%d" % at for at, name in enumerate(re.findall(rb'id="([^"]+)"', body))}
        links = re.compile(rb'(id="|url\(#|href="#)([^")]+)')
        return links.sub(lambda one: one[1] + identifiers.get(one[2], one[2]), body)

    modes = style.render_modes(figures.draw, name, store)
    assert modes["light"] == figures.svg(name, store)
    assert numbered(modes["dark"]) == numbered(figures.svg(name, store, mode="dark"))


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_colours_reach_contrast_on_paper(mode: str):
    """WCAG AA asks 4.5:1 for text, and every method's colour is used for text."""
    paper = luminance(style.PAPER[mode])
    tones = [style.TONES[mode][name] for name in ("ink", "muted", "accent")]
    for colour in [*tones, *(getattr(look, mode) for look in arm_looks().values() if look.light)]:
        light, dark = sorted((paper, luminance(colour)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


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


@pytest.mark.parametrize("bits", quantisation.RATES)
def test_the_best_levels_err_least_and_no_code_passes_the_bound(bits: int):
    """Lloyd's levels below NF4's recipe and even ones, and all above 4^−R with the bits of their constants."""
    books = quantisation.best_levels(bits, 64), nf4_levels(bits).double().numpy(), np.linspace(-1, 1, 2**bits - 1)
    best, normal, even = (expected_error(torch.from_numpy(levels), 64, 2) for levels in books)
    assert 4.0 ** -(bits - 4 + bits_per_parameter(64)) < best < normal < even


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
    assert lora.SMOLLM2.linear_parameters == 106_168_320
    assert prompt.prompt_parameters(100) == counts["q and v"]


def test_training_state_is_sixteen_bytes_a_trained_weight():
    """Full fine-tuning holds weight, gradient, master copy and two moments: 2 + 2 + 4 + 8."""
    assert sum(costs.state_bytes("full").values()) == 16 * 6_738_415_616
    assert costs.state_bytes("lora")["weights"] == 2 * (6_738_415_616 + 16 * 2_498_560)
    assert costs.state_bytes("qlora")["weights"] < costs.state_bytes("lora")["weights"] / 3


def test_the_parts_of_a_step_are_its_peak():
    """No term of the byte model is left out of the bars."""
    for setup in costs.STEPS_7B.values():
        peak = training_step(SHAPES["llama-2-7b"], setup).peak()
        assert sum(costs.bytes_by_part(setup).values()) == pytest.approx(peak.total)


def test_differences_average_to_the_difference_of_means(store: Store):
    """The seeds drawn in a forest must average to the mean drawn there."""
    first, second = head_to_head.final_records("lora", store), head_to_head.final_records("full", store)
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


def test_the_runs_of_a_figure_are_those_that_it_draws(store: Store):
    """A curve of sweeps names its sweeps, whatever other runs its study has."""
    comparison = prompt_design.COMPARISON
    arms = [comparison.arm(prompt_design.arm_name(length, "vocabulary")) for length in (1, 5, 20, 100)]
    drawn = {comparison.sweep_run(arm, rate, 0).key for arm in arms for rate in comparison.tuning(arm).rates(store.get)}
    assert set(figures.runs("prompt_rates", store)) == drawn


# The figures of the studies.


def visible_texts(figure: Figure) -> dict[Text, tuple[float, float, float, float]]:
    """Every text that a file was seen to have, with its box in points (left, bottom, right, top)."""
    texts = [one for one in (figure._suptitle, figure._supxlabel, figure._supylabel) if one]
    legends = [*figure.legends, *(legend for axes in figure.axes if (legend := axes.get_legend()))]
    texts += [text for legend in legends for text in (*legend.get_texts(), legend.get_title())]
    for axes in figure.axes:
        texts += [*axes.texts, axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            texts += [tick.label1 for tick in axis._update_ticks() if tick.label1.get_visible()]
    said = [text for text in texts if text.get_text().strip() and text.get_visible()]
    return {text: Text.get_window_extent(text).extents for text in said}


@pytest.mark.parametrize("name", figures.FIGURES)
def test_no_text_is_clipped_or_covered_or_tiny(name: str, drawn: dict[str, Drawn]):
    """Readable on a phone and a slide: every text lies inside the figure and on no other text."""
    if name not in drawn:
        pytest.skip("its study is still to be run")
    one = drawn[name]
    assert len(one.texts) > 5
    for text, size, (left, bottom, right, top) in one.texts:
        assert size >= style.SIZE - 2, text
        assert min(left, bottom, one.size[0] - right, one.size[1] - top) > -0.72, text
    for (text, _, first), (other, _, second) in itertools.combinations(one.texts, 2):
        width = min(first[2], second[2]) - max(first[0], second[0])
        height = min(first[3], second[3]) - max(first[1], second[1])
        parallel = {text, other} <= one.slanting  # whose boxes say little
        assert parallel or width <= 0.72 or height <= 1.44, (text, other)


@pytest.mark.parametrize("name", FROM_RECORDS)
def test_a_figure_of_a_study_names_what_it_lacks(name: str, tmp_path: Path):
    """Without records the answer is the command that makes them, not a crash."""
    with pytest.raises(InputError, match="peftbook run (" + "|".join(NAMES) + ")"):
        figures.svg(name, Store(tmp_path))


@pytest.mark.parametrize("seeds", [3, 5, 20])
def test_the_chance_to_find_an_effect_is_that_of_the_noncentral_t(seeds: int):
    """The oracle is scipy's; without an effect an interval of 95 % is wrong once in twenty."""
    bar = oracle.t.ppf(0.975, seeds - 1)
    shift = math.sqrt(seeds)
    expected = oracle.nct.sf(bar, seeds - 1, shift) + oracle.nct.cdf(-bar, seeds - 1, shift)
    assert measuring.chance(1, seeds, bar) == pytest.approx(expected, abs=2e-4)
    assert measuring.chance(0, seeds, bar) == pytest.approx(0.05, abs=2e-4)
    assert measuring.chance(measuring.smallest_effect(seeds), seeds, bar) == pytest.approx(measuring.OFTEN)


def test_what_arms_share_widens_only_the_unpaired_interval():
    """Both have the same mean; hard examples that are hard for both arms are noise only to the one that ignores it."""
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 4, 50))
    hard = 5 * rng.normal(size=50)
    alone, together = (
        measuring.unpaired_interval(one + hard, two + hard),
        stats.paired_interval(one + hard, two + hard),
    )
    assert alone.mean == pytest.approx(together.mean)
    assert together.half95 == pytest.approx(stats.paired_interval(one, two).half95)
    assert alone.half95 > 2 * measuring.unpaired_interval(one, two).half95


@pytest.mark.parametrize("spread", measuring.SPREADS)
def test_the_winner_is_flattered_by_the_formula(spread: float):
    """e_1 = 0, e_2 = 1/√π, and the simulation that is drawn lies on the curve; a fresh score flatters nobody."""
    assert measuring.largest_of(1) == pytest.approx(0, abs=1e-9)
    assert measuring.largest_of(2) == pytest.approx(1 / math.sqrt(math.pi))
    for arms in (2, 16):
        shown, fresh = measuring.curse(arms, spread)
        assert shown.mean() == pytest.approx(measuring.inflation(arms, spread), abs=0.05)
        assert fresh.mean() == pytest.approx(0, abs=0.05)


def test_the_drawn_intervals_have_all_five_verdicts():
    """The chapter's text names them by their letters."""
    said = [stats.judge(measuring.case(*one), 1.0, (-math.inf, 0.0)) for one in measuring.CASES]
    undecided, direction = "undecided", "direction only"
    assert said == ["reproduced", "equivalent", direction, undecided, direction, undecided, "refuted"]


@pytest.mark.parametrize("seed", range(5))
def test_labels_are_moved_apart_and_keep_their_order(seed: int):
    """Direct labels must not touch, nor change places; those that stand well apart stay where they are."""
    values = np.random.default_rng(seed).uniform(0, 60, 8)
    moved = spread_out(values, 10)
    assert (np.argsort(moved) == np.argsort(values)).all()
    assert np.diff(np.sort(moved)).min() >= 10 - 1e-9
    assert moved.mean() == pytest.approx(values.mean())
    assert spread_out(values, 1e-9) == pytest.approx(values)
    held = spread_out(values, 10, 5, 90)
    assert held.min() >= 5 and held.max() <= 90 and np.diff(np.sort(held)).min() >= 10 - 1e-9


def test_the_drawn_quadratic_is_least_at_the_vertex(store: Store):
    """Curve and mark must come from one fit."""
    for arm in learning_rate.SHORT.arms:
        sweep = evidence.rate_sweep(arm.name, store)
        assert len(sweep.seeds) == (len(learning_rate.SEEDS) if arm.name in learning_rate.REPLICATED else 1)
        curve = sweep.near[0]
        rates, losses = evidence.parabola(curve, points=2001)
        assert rates[losses.argmin()] == pytest.approx(learning_rate.vertex(curve), rel=0.01)


def test_single_seeds_average_to_the_mean_drawn(store: Store):
    """The small strokes and the mark beside them are the same runs."""
    comparison, found = benchmark.COMPARISON, study_quantities("benchmark", store)
    for arm in comparison.arms:
        seeds = methods.per_seed(comparison.finals(arm.name, store), "loss")
        assert np.mean(seeds) == pytest.approx(found[f"{arm.name}_loss"].value)
    for first, second in benchmark.PAIRS:
        seeds = parts.seed_differences(comparison, first, second, store)
        assert np.mean(seeds) == pytest.approx(found[f"{first}_minus_{second}_loss"].value)


def test_prose_loss_at_equal_target_loss_is_the_studys(store: Store):
    """The seeds drawn beside a difference must average to it."""
    full, found = forgetting.best_full(store), study_quantities("forgetting", store)
    for arm in ("r8", "r64", "r256"):
        seeds = updates.matched_seeds(full, arm, store)
        assert np.mean(seeds) == pytest.approx(found[f"full_minus_{arm}_prose"].value, rel=1e-4)  # digits of a curve


def test_frontiers_at_equal_target_loss_are_the_studys(store: Store):
    """The seeds drawn beside each difference average to it, and every arm and pair is drawn."""
    assert tuple(retention.FRONTIERS) == tuple(frontier.ARMS) and tuple(retention.MATCHED) == tuple(frontier.PAIRS)
    found = study_quantities("frontier", store)
    for one, other in frontier.PAIRS:
        seeds = frontier.seed_differences(one, other, store)
        assert np.mean(seeds) == pytest.approx(found[f"{one}_minus_{other}"].value)


def test_the_benchmark_is_sorted(store: Store):
    """The first row is the best."""
    found = study_quantities("benchmark", store)
    losses = [found[f"{arm}_loss"].value for arm in evidence.benchmark_order(store)]
    assert losses == sorted(losses)
    assert len(losses) == len(benchmark.COMPARISON.arms)


def test_the_shown_overlaps_are_those_of_the_map_beyond_chance(store: Store):
    """Row i and column j of the small table are φ(i, j) − max(i, j) / d of the whole map."""
    record = subspace.records(store)[0]
    whole = np.reshape(record.curve["small_large_map"], (8, 64))
    for (row, column), value in np.ndenumerate(updates.shown_overlap(record, "small_large")):
        i, j = updates.SHOWN[0][row], updates.SHOWN[1][column]
        assert value == pytest.approx(whole[i - 1, j - 1] - max(i, j) / 576)
    assert np.abs(updates.shown_overlap(record, "start")).max() < 0.01  # random spaces


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_numbers_are_readable_on_the_darkest_fill(mode: str):
    """WCAG AA, 4.5:1, where the overlap is 1."""
    with style.mode_context(mode):  # type: ignore[arg-type]
        fill, ink = luminance(style.shade("lora", updates.FULL_OVERLAP)), luminance(style.colour("ink"))
    assert (max(fill, ink) + 0.05) / (min(fill, ink) + 0.05) >= 4.5


def test_what_is_drawn_is_what_the_studies_have():
    """Every codebook, arm and path has a look of its own, told apart without colour."""
    assert tuple(bits.BOOKS) == codebooks.CODEBOOKS
    assert tuple(updates.PATHS) == tuple(forgetting.ARMS)
    arms = [evidence.arm_look(arm.name) for arm in benchmark.COMPARISON.arms]
    ranks = [evidence.RANK_MARKS[rank] for rank in learning_rate.RANKS]
    for markers in ([m for _, m, _ in bits.BOOKS.values()], [m for _, _, m in arms], ranks):
        assert len(set(markers)) == len(markers)


@pytest.mark.parametrize(
    ("value", "text"), [(0.00123, "+0.0012"), (-0.25, "−0.25"), (12.0, "+12"), (0.0, "+0"), (5.5e-5, "+0.000055")]
)
def test_differences_are_printed_with_sign_and_two_digits(value: float, text: str):
    """A tiny difference must not be printed as zero."""
    assert parts.signed(value) == text


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_the_drawn_types_are_those_of_bitsandbytes_under_peft(own: torch.dtype):
    """What is stored, what is unpacked, and the gradients that a backward pass leaves."""
    linear = bitsandbytes.nn.Linear4bit(256, 192, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    linear.weight.data = torch.randn(192, 256, dtype=torch.bfloat16)
    config = LoraConfig(r=4, target_modules=["linear"])
    model = get_peft_model(nn.Sequential(OrderedDict(linear=linear.to("cpu"))), config,
                           autocast_adapter_dtype=own == torch.float32)  # fmt: skip
    layer = model.base_model.model.linear
    x = torch.randn(3, 256, dtype=torch.bfloat16, requires_grad=True)
    h = layer(x)
    h.sum().backward()

    codes, A, B = layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    blocks = codes.quant_state
    unpacked = bitsandbytes.functional.dequantize_4bit(codes.data, blocks)
    assert (codes.nbytes, unpacked.dtype, h.dtype, x.grad.dtype) == (192 * 256 / 2, *[torch.bfloat16] * 3)
    assert (blocks.absmax.dtype, blocks.state2.absmax.dtype) == (torch.uint8, torch.float32)
    assert {A.dtype, A.grad.dtype, B.dtype, B.grad.dtype} == {own} and codes.grad is None
    drawn = {tensor.name: (tensor.kept, tensor.gradient) for tensor in four_bits.TENSORS}
    assert [name for name, (_, gradient) in drawn.items() if gradient] == ["$x$, $h$", "$A$, $B$"]
    assert drawn["$x$, $h$"] == ("bfloat16", "bfloat16") and str(own).removeprefix("torch.") in drawn["$A$, $B$"][0]
