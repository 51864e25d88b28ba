"""Races over recorded sweeps: what is dropped, what is trained, what it costs."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np
import pytest

from peftbook.core.errors import InputError
from peftbook.core.records import default_store
from peftbook.evidence.sweep import CUT, better_half
from peftbook.studies import get_study, racing
from peftbook.studies.racing import HALVING, RecordedSweep, places, race
from peftbook.tasks import get_task
from peftbook.views import figures

RATES = tuple(2.0**at for at in range(8))


def sweep(losses, curves=None, steps: int = 40) -> RecordedSweep:
    """Eight rates; without curves each has its loss from the first step on."""
    losses = np.array(losses, dtype=float)
    return RecordedSweep(RATES, losses, np.repeat(losses[:, None], steps, axis=1) if curves is None else curves, ())


def test_where_the_order_never_changes_a_race_chooses_the_best_and_trains_what_it_says():
    """K rates, halved at a cut c: c + (1 − c)/2 of the steps; down to one at c₁ < c₂ < c₃: c₁ + (c₂ − c₁)/2 + …"""
    found = sweep([5, 4, 3, 1, 2, 6, 7, 8])
    once, down = race(found, (CUT,)), race(found, HALVING)
    assert once.rate == down.rate == found.best == RATES[3] and once.cost == down.cost == 0
    assert once.trained == pytest.approx(CUT + (1 - CUT) / 2)
    assert down.trained == pytest.approx(1 / 8 + (1 / 4 - 1 / 8) / 2 + (1 / 2 - 1 / 4) / 4)
    assert race(found, ()).trained == 1 and race(found, ()).rate == found.best


def test_a_rate_that_starts_slowly_is_lost_to_an_early_cut_and_kept_by_a_late_one():
    """The best is last until the middle, and leads from there; its price is the distance to the next."""
    losses = [0.0, 1, 2, 3, 4, 5, 6, 7]
    curves = np.repeat(np.array([9.0, *losses[1:]])[:, None], 40, axis=1)
    curves[0, 20:] = 0.0
    found = sweep(losses, curves)
    early, late = race(found, (CUT,)), race(found, (0.75,))
    assert (early.rate, early.cost) == (RATES[1], 1.0) and (late.rate, late.cost) == (RATES[0], 0.0)
    assert [places([found], share) for share in (0.25, 0.75)] == [(0, 0), (1, 1)]


def test_the_better_half_never_holds_what_diverged():
    """Of an odd number one more than half; fewer, or none, where more diverged."""
    assert better_half({1.0: 3.0, 2.0: 1.0, 4.0: 2.0}) == [2.0, 4.0]
    assert better_half({1.0: 3.0, 2.0: math.inf, 4.0: math.inf, 8.0: math.inf}) == [1.0]
    assert better_half({1.0: math.inf}) == []


def test_the_shipped_sweeps_are_whole_grids_over_the_same_batches():
    """One rate each, one task, model, method, seed and budget; what is counted is within what there is."""
    store = default_store()
    by_key = {record.key: record.spec for record in store.all()}
    found = racing.sweeps(store)
    for one in found:
        runs = [by_key[key] for key in one.keys]
        assert [run.budget.learning_rate for run in runs] == sorted({run.budget.learning_rate for run in runs})
        alike = {
            run.model_copy(update={"budget": run.budget.model_copy(update={"learning_rate": 1.0})}) for run in runs
        }
        assert len(alike) == 1
        with suppress(InputError):  # a task whose data is not part of the project
            rows = len(get_task(runs[0].task.name).splits["train"])
            assert one.curves.shape[1] * runs[0].budget.batch_size <= rows, "no batch is of what was seen before"
        curves = one.curves[np.isfinite(one.curves).all(axis=1)]
        assert np.allclose(curves[:, 0], curves[0, 0], rtol=0.02), "the first batch is the same"
    assert set(figures.runs("early_rates", store)) == {key for one in found for key in one.keys}
    values = get_study("racing").quantities(store)
    assert values["sweeps"].value == len(found) and values["runs"].value == sum(len(one.rates) for one in found)
    halves = [values[f"{name}_better_half"].value for name in racing.CUTS]
    assert all(values[f"{name}_first"].value <= half for name, half in zip(racing.CUTS, halves, strict=True))
    assert values["halving_saved"].value > values["cut_saved"].value
