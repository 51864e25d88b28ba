"""The simulation of coverage: its studies are what they are said to be, its rules are ordered, its verdict follows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as oracle

from peftbook.core.records import Record, Store
from peftbook.evidence import stats
from peftbook.studies import coverage as study
from peftbook.training.probes import coverage


@pytest.mark.parametrize("shape", study.SHAPES)
@pytest.mark.parametrize("groups", [0, 8])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_mean_of_a_study_has_mean_nought_and_variance_one(shape, groups, share):
    """Whatever the shapes, the groups and the shares are, so that widths and power are in true errors."""
    parts = [share, 0.6 * (1 - share), 0.4 * (1 - share)]
    sizes = coverage.group_sizes(40, groups)
    means = coverage.draw(np.random.default_rng(1), 6000, 3, sizes, parts, shape).mean(axis=(1, 2))
    assert abs(means.mean()) < 4 / np.sqrt(6000)
    assert means.var() == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize(("examples", "groups"), [(50, 8), (50, 20), (400, 20), (200, 12)])
def test_groups_hold_every_example_and_differ_in_size(examples, groups):
    """None is empty, and the largest is many times the smallest."""
    sizes = coverage.group_sizes(examples, groups)
    assert sizes.sum() == examples and len(sizes) == groups and sizes.min() >= 1
    assert sizes.max() >= 6 * sizes.min()


def test_shares_of_the_variance_are_estimated_without_bias():
    """Over many studies seeds², left uncut, and examples² have the means that the grid says."""
    parts = [0.5, 0.3, 0.2]
    scores = coverage.draw(np.random.default_rng(2), 4000, 4, coverage.group_sizes(30, 0), parts, "normal")
    errors = coverage.Errors.of(scores, np.ones(30))
    assert errors.scatter.mean() == pytest.approx(0.5 + 0.2, rel=0.06)
    assert errors.examples.mean() == pytest.approx(0.3 + 0.2, rel=0.06)
    assert (errors.seeds <= errors.scatter + 1e-12).all()


def test_the_rule_is_the_books():
    """Study by study it is the half-width of `stats.score_interval`, with groups and without."""
    rng = np.random.default_rng(3)
    for groups in (0, 8):
        sizes = coverage.group_sizes(40, groups)
        scores = coverage.draw(rng, 5, 3, sizes, [0.4, 0.4, 0.2], "normal")
        halves = coverage.half_widths(scores, sizes)[study.RULE]
        names = np.repeat(np.arange(len(sizes)), sizes).tolist()
        assert halves == pytest.approx([stats.score_interval(one, None, names).half95 for one in scores])


def test_rules_are_ordered():
    """A weighted mean of two quantiles is never wider than each error with its own, nor that than t(n − 1) for both."""
    rng = np.random.default_rng(4)
    scores = coverage.draw(rng, 500, 3, coverage.group_sizes(60, 0), [0.3, 0.5, 0.2], "skewed")
    found = coverage.half_widths(scores, np.ones(60, dtype=int))
    assert (found["cochran"] <= found["own_quantiles"] * (1 + 1e-9)).all()
    assert (found["own_quantiles"] <= found["first_edition"] * (1 + 1e-9)).all()
    assert (found["satterthwaite_once"] <= found["own_quantiles"] * (1 + 1e-9)).all()


def test_where_seeds_are_all_every_rule_is_students():
    """No error of examples: 95 % coverage, and the half-width of a t-interval over seeds."""
    scores = coverage.draw(np.random.default_rng(5), 400, 5, np.ones(50, dtype=int), [1.0, 0.0, 0.0], "normal")
    low, high = oracle.t.interval(0.95, 4, scale=oracle.sem(scores.mean(axis=2), axis=1))
    for halves in coverage.half_widths(scores, np.ones(50, dtype=int)).values():
        assert halves == pytest.approx((high - low) / 2)


def chosen(**settings) -> dict[str, float]:
    """The rates of a single cell in which one sweep seed chose rates, and seeds are all of the error of five finals."""
    one = {"sweep_seeds": (1.0,), "steps": (1.0,), "shares": (1.0,), "alike": (0.0,)}
    probe = study.tuned_probe(5)
    curve = coverage.tuned(probe.model_copy(update={"settings": probe.settings | one | settings})).curve
    return {name: values[0] for name, values in curve.items()}


def test_where_the_choice_is_never_wrong_the_rule_covers_as_without_a_choice():
    """A valley of walls: the best rate of the grid is always found, and best rates of all are out of its reach."""
    found = chosen(bends=(1e4,))
    assert found["plain_grid"] == pytest.approx(0.95, abs=0.015) and found["plain_all"] < 0.1
    assert found["choice_grid"] > found["choice_all"] > 0.5


@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_the_error_of_the_choice_is_what_the_interval_lacked(alike):
    """Rates on record, one sweep seed: below 93 % without it; with it at least that, of both truths, and wider."""
    found = chosen(alike=(alike,))
    assert max(found["plain_grid"], found["plain_all"]) < 0.93 <= min(found["choice_grid"], found["choice_all"])
    assert found["width"] > 1 and found["choice_all"] <= found["choice_grid"]


def few_studies(store: Store, count: int = 40) -> None:
    """Records of all cells with so many studies each."""
    for probe in [*map(study.probe, study.SEEDS), *map(study.tuned_probe, study.FINALS)]:
        measure = getattr(coverage, probe.measure.removeprefix("coverage."))
        found = measure(probe.model_copy(update={"settings": probe.settings | {"studies": count}}))
        store.save(Record(key=probe.key, spec=probe, measurements=dict(found.measurements), curve=dict(found.curve)))


def test_the_study_reads_what_the_probe_wrote(tmp_path):
    """Each cell has every rule, and the verdict its worst cell."""
    store = Store(tmp_path)
    few_studies(store)
    cells, found = study.cells(store), study.quantities(store)
    assert len(cells) == 4 * 3 * 3 * 3 * 8 * 2
    assert {cell.seeds for cell in cells} == set(study.SEEDS) and {cell.shape for cell in cells} == set(study.SHAPES)
    for part, inside in study.PARTS.items():
        covered = [cell.rates[study.RULE][0] for cell in cells if inside(cell)]
        assert found[f"{study.RULE}_{part}_worst"].value == min(covered)
        assert found[f"{study.RULE}_{part}_coverage"].value == pytest.approx(np.mean(covered))
    for name in study.TUNED:
        rates = [found[f"{name}_sweep{sweep}_final{final}"] for sweep in study.SWEEPS for final in study.FINALS]
        assert found[f"{name}_worst"].value == min(rate.low for rate in rates)
    assert study.worst(store).rates[study.RULE][0] == found[f"{study.RULE}_aimed_worst"].value
    assert study.verdict(store).outcome == "measured"
    assert set(study.verdict(store).quantities) <= set(found)
