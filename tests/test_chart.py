"""Charts as SVG: where a value stands, which numbers the axes have, and what is never drawn."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftbook.evidence.chart import Chart, Series
from peftbook.evidence.svg import Frame, Scale, log_ticks, svg, ticks

FRAME = Frame(400, 200)
LOSSES = st.integers(-(10**6), 10**6).map(lambda n: n / 128) | st.sampled_from([math.nan, math.inf, -math.inf])
ENDS = st.tuples(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def drawn(values: list[float], **changes: object) -> str:
    """One line over 1, 2, 3, …"""
    x = [float(at + 1) for at in range(len(values))]
    return svg(Chart([Series("loss", values, x=x, marks=False)], "step", "Loss", **changes), FRAME, "curve")


@given(ENDS, st.integers(2, 8))
def test_the_numbers_of_an_axis_are_inside_it_and_evenly_apart(ends, count):
    """As many as there is room for, within a factor of two and a half."""
    low, high = ends
    found = ticks(low, high, count)
    assert len(found) <= count + 1
    assert all(low - 1e-9 * (high - low) <= tick <= high + 1e-9 * (high - low) for tick in found)
    assert len({round(b - a, 9) for a, b in itertools.pairwise(found)}) <= 2


@given(st.floats(-6, 6), st.floats(0.01, 8))
def test_a_logarithmic_axis_has_numbers_and_no_more_than_there_is_room_for(low, decades):
    """Inside the axis, ascending."""
    found = log_ticks(10**low, 10 ** (low + decades), 5)
    assert 1 <= len(found) <= 5 and found == sorted(found)


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
