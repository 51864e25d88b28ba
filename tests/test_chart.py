"""Charts: where a value stands, which numbers the axes have, and what is never drawn, as SVG and by matplotlib."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from peftbook.evidence.chart import Chart, Series
from peftbook.evidence.svg import Frame, Scale, log_ticks, svg, ticks
from peftbook.methods import arm_looks
from peftbook.views.figures.drawn import lines
from peftbook.views.figures.style import colour, mode_context
from peftbook.views.slides.charts import COMPUTED

FRAME = Frame(400, 200)
LOSSES = st.integers(-(10**6), 10**6).map(lambda n: n / 128) | st.sampled_from([math.nan, math.inf, -math.inf])
ENDS = st.tuples(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def drawn(values: list[float], **changes: object) -> str:
    """One line over 1, 2, 3, …"""
    x = [float(at + 1) for at in range(len(values))]
    return svg(Chart([Series("loss", values, x=x, marks=False)], "step", "Loss", **changes), FRAME, "curve")


@given(ENDS, st.integers(2, 8))
@example((879609.9999999999, 879610.0000009999), 6)
def test_the_numbers_of_an_axis_are_inside_it_and_evenly_apart(ends, count):
    """As many as there is room for, within a factor of two and a half; at the ends but for the rounding of numbers."""
    low, high = ends
    found = ticks(low, high, count)
    assert len(found) <= count + 1
    slack = 1e-9 * (high - low) + 2 * math.ulp(max(abs(low), abs(high)))
    assert all(low - slack <= tick <= high + slack for tick in found)
    assert len({round(b - a, 9) for a, b in itertools.pairwise(found)}) <= 2


@given(st.floats(-6, 6), st.floats(0.01, 8))
def test_a_logarithmic_axis_has_numbers_and_no_more_than_there_is_room_for(low, decades):
    """Inside the axis, ascending."""
    found = log_ticks(10**low, 10 ** (low + decades), 5)
    assert 1 <= len(found) <= 5 and found == sorted(found)


def test_a_single_number_of_an_axis_has_no_decimals_to_spare():
    """Where there is one number there is no step that says how many it needs."""
    assert ">6</text>" in svg(Chart([Series("a", [4.1, 7.5], x=[1, 2])], "step", ""), Frame(320, 112), "curve")


def test_equal_factors_are_equally_far_on_a_logarithmic_scale():
    """And what is 0 stands where it is told to."""
    scale = Scale(1, 1000, 100, 400, log=True, zero=60)
    assert [scale(value) for value in (0, 1, 10, 100, 1000)] == [60, 100, 200, 300, 400]


@given(st.lists(LOSSES, max_size=12))
def test_only_what_is_finite_is_drawn(values):
    """A run that diverged leaves the rest of its curve; where nothing is finite there is no drawing."""
    kept = [value for value in values if math.isfinite(value)]
    found = drawn(values)
    assert bool(found) == bool(kept) and "nan" not in found and "inf" not in found
    points = re.findall(r'points="([^"]*)"', found)
    assert [len(each.split()) for each in points] == ([len(kept)] if len(kept) > 1 else [])


@pytest.mark.parametrize("text", ['<script>alert("x")</script>', '" onload="alert(1)'])
def test_no_word_becomes_markup(text):
    """Names and titles may be a reader's own."""
    chart = Chart([Series(text, [1.0], x=[1.0], line=False)], text, text, alt=text, note=text)
    found = svg(chart, Frame(400, 200, labels=90), "plot")
    assert "<script" not in found and ' onload="' not in found


# ---- the same chart by matplotlib


def test_matplotlib_draws_the_numbers_of_a_chart_with_the_looks_of_its_methods():
    """Each series' points, colour and dash; a level without marks; both axes as the chart asks."""
    series = [Series("a", [1.0, 3.0], "lora", [10.0, 100.0]),
              Series("b", [2.0, 2.0], "qlora", [10.0, 100.0], marks=False)]  # fmt: skip
    chart = Chart(series, "Rank", "Loss", log={"x": 10, "y": 10}, y_range=(0.1, 10))
    with mode_context("light"):
        _, axes, ends = lines(chart, height=3, column=0.5)
        ours = {line.get_label(): line for line in axes.lines if line.get_label() in "ab"}
        for one in series:
            assert ours[one.name].get_xydata().tolist() == [list(pair) for pair in zip(one.x, one.values, strict=True)]
            assert ours[one.name].get_color() == colour(one.look)
            assert (ours[one.name].get_marker() != "") == one.marks
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_ylim()) == ("log", "log", (0.1, 10))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Rank", "Loss")
    assert ends == {"a": (100, 3, "lora"), "b": (100, 2, "qlora")}
    left, right = axes.transData.transform([(10, 1), (100, 1)])[:, 0]
    assert right < left + 0.5 * (axes.transAxes.transform((1, 0))[0] - left)  # names have their room


@pytest.mark.parametrize("name", COMPUTED)
def test_what_a_figure_and_the_deck_share_has_what_both_need(name):
    """Names, looks that a method has, titles with what is measured, and a range of the deck's axes that holds all."""
    chart = COMPUTED[name]()
    low, high = chart.y_range
    assert chart.y_title and all(series.name and series.values for series in chart.series)
    for series in chart.series:
        assert series.look in arm_looks()
        if not chart.stacked:
            assert (low is None or low <= min(series.values)) and (high is None or max(series.values) <= high)
