"""Races between learning rates: which runs are wanted follows from the records, and no test row is seen too early."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_task

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record
from peftbook.evidence.sweep import CUT, HIGHEST_RATE, LOWEST_RATE
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.untuned import Untuned
from peftbook.studio.tuning import (
    MOST_RATES,
    RATES,
    Tuning,
    at_rate,
    chosen_words,
    is_trial,
    labels_of,
    left_behind,
    likely_runs,
)

START = 1e-3
Known = dict[str, Record]


def final(method, seed: int = 0) -> specs.Run:
    """A run that a plan judges."""
    trains = not isinstance(method, Untuned)
    return specs.Run(
        task=specs.Task(name="files", data_sha256="a" * 64),
        method=method,
        budget=specs.Budget(tokens=1000, learning_rate=START) if trains else None,
        evaluation=specs.Evaluation(split="test", n_loss=30, n_generate=10),
        seed=seed,
    )


def tuning(*methods, seeds: int = 2) -> Tuning:
    return Tuning(tuple(final(one, seed) for one in methods for seed in range(seeds)), rows=20)


def lookup(known: Known) -> Callable[[specs.Run], Record | None]:
    """By what is known when it is asked."""
    return lambda run: known.get(run.key)


def recorded(run: specs.Run, loss: float) -> Record:
    """A finished run, or one that diverged."""
    fine = math.isfinite(loss)
    return Record(key=run.key, spec=run, measurements={"loss_nats": loss} if fine else {}, failure="" if fine else "!")


def carried_out(asked: Tuning, loss: Callable[[specs.Run], float]) -> list[list[specs.Run]]:
    """The runs of each stage: those that were wanted when all before were recorded."""
    known: Known = {}
    stages = []
    while new := [run for run in asked.runs(lookup(known)) if run.key not in known]:
        stages.append(new)
        known |= {run.key: recorded(run, loss(run)) for run in new}
    return stages


def parabola(best: float) -> Callable[[specs.Run], float]:
    """A loss with its optimum at a rate, the same at the cut as at the end."""
    return lambda run: math.log(run.budget.learning_rate / best) ** 2 if run.budget else 3.0


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-4, 1e-2))
def test_a_race_chooses_what_the_whole_sweep_would(best):
    """Where the cut orders the rates as the end does: the nearest rate of the grid, wherever its optimum lies."""
    asked = tuning(LoRA(), seeds=3)
    stages = carried_out(asked, parabola(best))
    tried = {run.budget.learning_rate for stage in stages for run in stage if is_trial(run)}
    chosen = {run.budget.learning_rate for run in stages[-1]}
    assert chosen == {min(tried, key=lambda rate: parabola(best)(asked.races[0].trial(rate)))}
    assert [run.seed for run in stages[-1]] == [0, 1, 2] and not any(map(is_trial, stages[-1]))
    assert RATES <= len(tried) <= MOST_RATES
    assert min(tried) < next(iter(chosen)) < max(tried) or len(tried) == MOST_RATES


def test_the_optimum_at_the_end_of_the_grid_extends_it():
    """By one rate at a time, with the same factor, until it lies inside."""
    stages = carried_out(tuning(LoRA()), parabola(7.9e-3))
    rates = sorted({run.budget.learning_rate for stage in stages for run in stage if is_trial(run)})
    assert len(rates) == RATES + 2 and all(high / low == pytest.approx(2, rel=0.01) for low, high in pairwise(rates))
    assert [len(stage) for stage in stages] == [RATES, 1, 1, 4, 2]


def test_no_test_row_is_seen_before_the_rate_is_chosen():
    """A race has a seed of its own and the validation rows; only its last stage is judged on others."""
    asked = tuning(LoRA(), Full(), seeds=2)
    for stage in carried_out(asked, parabola(START))[:-1]:
        assert all(run.evaluation.split == "validation" and run.seed not in (0, 1) for run in stage)


def test_an_opening_is_the_beginning_of_the_whole_run():
    """Up to the cut, of half the rates the whole follows."""
    openings, whole, _ = carried_out(tuning(LoRA()), parabola(START))
    assert {run.budget.stop for run in openings} == {CUT}
    assert {run.key for run in whole} < {run.whole.key for run in openings}
    assert len(whole) == math.ceil(len(openings) / 2)
    assert not {run.checkpoint for run in openings} - {run.whole.key[:16] for run in openings}


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_what_is_wanted_grows_and_is_never_taken_back(random):
    """In whatever order records arrive, and whoever asks."""
    asked, known, before = tuning(LoRA(), Full()), {}, []
    loss = parabola(2.1e-3)
    while True:
        wanted = asked.runs(lookup(known))
        assert {run.key for run in before} <= {run.key for run in wanted} and len({one.key for one in wanted}) == len(
            wanted
        )
        if not (new := [run for run in wanted if run.key not in known]):
            break
        run = random.choice(new)
        known[run.key], before = recorded(run, loss(run)), wanted
    assert sum(not is_trial(run) for run in before) == 4


def test_a_rate_that_diverges_is_not_chosen_and_a_method_without_one_is_not_judged():
    """At the cut or at the end; the other methods go on."""
    high = lambda run: math.inf if run.budget.learning_rate > START else parabola(START * 4)(run)  # noqa: E731
    *_, finals = carried_out(tuning(LoRA()), high)
    assert {run.budget.learning_rate for run in finals} == {START}
    late = lambda run: math.inf if run.budget.learning_rate > START and not run.budget.stop else parabola(START)(run)  # noqa: E731
    *_, finals = carried_out(tuning(LoRA()), late)
    assert {run.budget.learning_rate for run in finals} == {START}
    asked = tuning(Full(), LoRA())
    never = lambda run: math.inf if isinstance(run.method, Full) else parabola(START)(run)  # noqa: E731
    stages = carried_out(asked, never)
    assert {type(run.method) for stage in stages for run in stage if not is_trial(run)} == {LoRA}
    known = {run.key: recorded(run, never(run)) for stage in stages for run in stage}
    assert "no rate was chosen" in chosen_words(asked, lookup(known))[0]
    assert {run.key for run in likely_runs(asked, lookup(known))} == known.keys(), "nothing is left to compute"


def test_what_lost_is_left_behind_and_nothing_that_goes_on():
    """Its checkpoints may go, once the cut is made; and where two plans race a rate, once both have made it."""
    asked, other, known = tuning(LoRA()), Tuning((at_rate(final(LoRA()), 4 * START),), rows=20), {}
    loss = parabola(START / 1.1)
    opened, whole, _ = carried_out(asked, loss)
    known |= {run.key: recorded(run, loss(run)) for run in opened[1:]}
    assert left_behind([asked], lookup(known)) == []
    known |= {run.key: recorded(run, loss(run)) for run in opened}
    left = {run.key for run in left_behind([asked], lookup(known))}
    assert len(left) == RATES // 2 and left | {run.key for run in whole} == {run.whole.key for run in opened}
    still = left - {run.key for run in left_behind([asked, other], lookup(known))}
    assert still == left & {other.races[0].trial(rate).key for rate in other.races[0].first_rates()} != set()
    known |= {run.key: recorded(run, loss(run)) for run in whole}
    assert {run.key for run in left_behind([asked], lookup(known))} == {run.whole.key for run in opened}


def test_what_a_plan_will_come_to_is_nearly_what_it_came_to():
    """With an optimum in the middle exactly, but for the rates of those that are judged."""
    asked = tuning(Untuned(), LoRA(), seeds=1)
    came = [run for stage in carried_out(asked, parabola(START)) for run in stage]
    assert {run.key for run in likely_runs(asked)} == {run.key for run in came}
    assert Tuning.read(asked.text()) == asked


def test_a_trial_is_called_by_its_rate():
    """In the queue and in a check; an opening says how far it goes, and a run that is judged has its seed."""
    asked = tuning(LoRA())
    runs = likely_runs(asked)
    labels = labels_of(runs)
    assert labels[runs[0].key] == "LoRA, trial of rate 2.5e-4, its first quarter"
    assert labels[runs[-1].key] == "LoRA, seed 1" and len({*labels.values()}) == len(labels)


@pytest.mark.parametrize("start", [LOWEST_RATE, 1.23456e-3, 3.7, HIGHEST_RATE])
def test_the_rate_to_start_from_is_one_of_those_that_are_raced(start):
    """To all its digits, wherever it lies, so that what is said of it was seen."""
    asked = Tuning((at_rate(final(LoRA()), start),), rows=20)
    stages = carried_out(asked, parabola(start))
    tried = {run.budget.learning_rate for stage in stages for run in stage if is_trial(run)}
    assert start in tried and {run.budget.learning_rate for run in stages[-1]} == {start}
    assert min(tried) >= LOWEST_RATE and max(tried) <= HIGHEST_RATE


@pytest.mark.parametrize("start", [LOWEST_RATE / 2, 5 * HIGHEST_RATE])
def test_a_rate_that_no_grid_goes_to_is_refused(start):
    """In a sentence, before anything is queued."""
    with pytest.raises(InputError, match="between 1e-07 and 10"):
        Tuning.of(tiny_task(), [at_rate(final(LoRA()), start)])


def test_what_is_said_of_a_rate_is_what_its_records_say():
    """Of the rate to start from its loss, that it was behind, or that it diverged; of a rate at the end that it is."""

    def words(loss: Callable[[specs.Run], float], rows: int = 20) -> str:
        asked = Tuning((final(LoRA()),), rows)
        known = {run.key: recorded(run, loss(run)) for stage in carried_out(asked, loss) for run in stage}
        return chosen_words(asked, lookup(known))[0]

    def without_start(at: float) -> Callable[[specs.Run], float]:
        gone = lambda run: run.budget.learning_rate == START and run.budget.stop in (0.0, at)  # noqa: E731
        return lambda run: math.inf if gone(run) else parabola(2 * START)(run)

    assert "rate 0.002 of 5 (validation loss 0.000 on 1 row, 0.001 has 0.480)" in words(parabola(2 * START), 1)
    assert "on 20 rows, 0.001 diverged" in words(without_start(CUT)) and "0.001 diverged" in words(without_start(0))
    assert "rate 0.008 of 7 (validation loss 0.000 on 20 rows, 0.001 was behind" in words(parabola(8 * START))
    assert f"of {MOST_RATES}, the highest (" in words(parabola(1.0))
    late = lambda run: parabola(START / 2 if run.budget.stop else START / 4)(run)  # noqa: E731
    assert f"of {RATES}, the lowest (" in words(late)
