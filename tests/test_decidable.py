"""What would decide: the plan finds what it promises, and says where no number of seeds helps; the bound till then."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbook import cli
from peftbook.core import specs
from peftbook.core.records import Record, default_store
from peftbook.evidence import decidable, stats
from peftbook.evidence.decidable import Outlook, bound, core_seconds_of_a_seed
from peftbook.evidence.planning import MOST_SEEDS, Judged, eased, more_seeds, obstacle, seeds_to
from peftbook.evidence.results import Claim, study_quantities, study_verdict
from peftbook.evidence.stats import Interval
from peftbook.methods import preset_method
from peftbook.studies import BLIND, NAMES, Quantity, Verdict, get_study
from peftbook.tasks import get_task, missing_data, size_of_test, task_names, task_spec

AT_MOST = (-math.inf, 0.0)


def of(mean: float, seed_se: float, example_se: float = 0.0, seeds: int = 5, **more) -> Interval:
    """An interval of so many seeds over a hundred examples."""
    return Interval.of(mean, seed_se, example_se, seeds, 100, **more)


@settings(deadline=None)
@given(
    st.floats(-1, 1), st.floats(0.001, 0.5), st.floats(0, 0.5), st.floats(0, 0.3),
    st.sampled_from([(-math.inf, 0.0), (0.0, math.inf), (-0.4, 0.4)]),
)  # fmt: skip
def test_the_edges_are_those_of_the_rule(mean, seed_se, example_se, margin, claim):
    """What clears an edge as it is, is what `judge` calls by that name."""
    found = of(mean, seed_se, example_se)
    cleared = [
        said for room, level, said in Judged.of(found, margin, claim).rooms(whole=True) if found.half(level) <= room
    ]
    outcome = stats.judge(found, margin, claim)
    assert outcome in cleared if outcome in ("reproduced", "refuted", "equivalent") else not cleared


@pytest.mark.parametrize(("mean", "outcome"), [(-0.09, "reproduced"), (0.09, "refuted"), (0.03, "equivalent")])
def test_so_many_seeds_decide_four_times_in_five(mean, outcome):
    """Simulated with the estimate as the truth: first seeds as they were, further ones drawn, and the second look."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=5)
    first = mean + 0.05 * (first - first.mean()) / first.std(ddof=1)
    margin = 0.06
    more, said = more_seeds([Judged.of(stats.seed_interval(first), margin, AT_MOST)])
    assert said == outcome and 0 < more < 30
    second95, second90 = (stats.final_level(level, 5 / (5 + more)) for level in (0.05, 0.10))
    decided = []
    for _ in range(400):
        found = stats.seed_interval(np.concatenate([first, rng.normal(mean, 0.05, more)]))
        found = replace(found, half95=found.half(second95), half90=found.half(second90))
        decided.append(stats.judge(found, margin, AT_MOST) == outcome)
    assert 0.74 < np.mean(decided) < 0.95


def test_a_third_look_has_less_level_left():
    """Seeds that were added before had spent some: as wide an interval then asks for more of them."""
    plain = of(0.03, 0.02)
    again = stats.second_look(plain, 3 / 5)
    assert seeds_to(Judged.of(again, 0.0, AT_MOST), 0.03, 0.05) > seeds_to(Judged.of(plain, 0.0, AT_MOST), 0.03, 0.05)


def test_a_nearer_edge_asks_for_more():
    """Down to one that no number of seeds clears."""
    counts = [seeds_to(Judged.of(of(0.0, 0.02), 0.0, AT_MOST), room, 0.05) for room in (0.2, 0.04, 0.03, 0.02, 0.001)]
    assert counts == sorted(counts) and counts[0] == 0 and math.isinf(counts[-1])


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (of(0.05, 0.01, 0.05), "without any spread of seeds"),
        (stats.with_bias(of(0.05, 0.01), 0.06), "grid or fit"),
        (of(0.05, 0.0, 0.05, seeds=1), "depends on a seed"),
        (of(0.05, 0.01, 0.01, groups=4), "4 groups decide nothing"),
        (of(0.001, 0.05), f"more than {MOST_SEEDS} seeds"),
        (of(-0.001, 0.0001), "between"),
    ],
)
def test_where_seeds_do_not_help_it_says_what_would(found, said):
    """What test examples, grid, groups and the claim itself leave is no matter of seeds."""
    claim = (-math.inf, -0.02) if said == "between" else AT_MOST
    judged = [Judged.of(found, 0.02 if said == "between" else 0.0, claim)]
    judged = [replace(judged[0], alike=0.0)]
    assert more_seeds(judged) is None
    assert said in obstacle(judged)


def test_one_part_refutes_and_all_bear_out():
    """Of several parts the soonest refutes, and the slowest is waited for; none of them is equivalent by itself."""
    slow, soon = (Judged.of(of(mean, 0.02), 0.0, AT_MOST) for mean in (-0.03, -0.04))
    against = Judged.of(of(0.045, 0.02), 0.0, AT_MOST)
    assert more_seeds([slow, soon]) == more_seeds([slow]) > more_seeds([soon])
    assert more_seeds([slow, against]) == more_seeds([against])
    alike = Judged.of(of(0.001, 0.02), 0.05, AT_MOST)
    assert more_seeds([alike])[1] == "equivalent" and more_seeds([alike, alike]) is None


def a_record(seed: int, seconds: int, threads: int) -> Record:
    """A run that took so long."""
    run = specs.Run(
        task=task_spec("e2e"),
        method=preset_method("lora"),
        budget=specs.Budget(tokens=1000, learning_rate=1e-3),
        seed=seed,
    )
    times = {
        "started": "2026-01-01T00:00:00+00:00",
        "finished": f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}+00:00",
    }
    return Record(key=run.key, spec=run, provenance=times | {"threads": threads})


def test_a_seed_costs_what_its_runs_took():
    """Wall-clock times threads, the median over seeds: a grid that one of them had besides does not count."""
    records = [a_record(seed, 60, 2) for seed in (1, 2, 3) for _ in range(2)] + [a_record(1, 600, 2)] * 3
    assert core_seconds_of_a_seed(records) == 240
    assert core_seconds_of_a_seed([records[0].model_copy(update={"provenance": {}})]) is None


def claim_with(verdict: Verdict, low: float = 0.0, high: float = 0.0, unit: str = "nats per token") -> Claim:
    """The claim of `rank` with another verdict, decided by runs that are at hand."""
    runs = study_quantities("rank", default_store())["r64_minus_r16_loss"].runs
    effect = Quantity((low + high) / 2, unit, runs, low, high, 3, 200, 3)
    return Claim(get_study("rank"), verdict, "first_minus_second", effect, len(runs), 0)


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict("undecided", "", held=BLIND), "control failed"),
        (Verdict("undecided", "", held="the rates say otherwise"), "not by seeds: the rates say otherwise"),
        (Verdict("undecided", ""), "not by seeds: its study"),
    ],
)
def test_what_is_held_by_a_guard_says_so(verdict, said):
    """A failed control is told before any number of seeds, and gives no bound."""
    found = decidable.outlook(claim_with(verdict), default_store())
    assert found.plan.startswith(said) and found.seeds is None
    assert found.bound == (f"It gives no bound: {verdict.held}." if verdict.held else found.bound)


def test_more_seeds_of_a_control_that_nearly_worked_are_a_plan():
    """The control is to be borne out, whatever the claim itself says."""
    near = Judged.of(of(0.1, 0.03), 0.0, (0.05, math.inf))
    found = decidable.outlook(claim_with(Verdict("undecided", "", held=BLIND, control=near)), default_store())
    assert found.seeds == more_seeds([near])[0] > 0 and found.likely == "its control works"


@pytest.mark.parametrize(
    ("found", "beside"),
    [
        (of(-0.03, 0.012), ()),
        (stats.with_bias(of(-0.03, 0.004), 0.04), ("a finer grid",)),
        (of(-0.012, 0.001, 0.007), ("all 630 test inputs",)),
        (stats.with_bias(of(-0.012, 0.001, 0.007), 0.04), ("a finer grid", "all 630 test inputs")),
    ],
)
def test_a_plan_takes_a_finer_grid_and_unused_inputs_only_where_seeds_do_not_do(found, beside):
    """Either makes the final runs anew, so that seeds alone come first where they decide."""
    found = replace(found, examples=200)
    plans = sorted(decidable.plans_for([Judged.of(found, 0.0, AT_MOST)], 630))
    runs, seeds, outcome, needed = plans[0]
    assert needed == beside and outcome == "reproduced" and runs == seeds + found.seeds * bool(beside)


def test_easing_takes_from_an_interval_what_it_says():
    """The grid's bias goes, the error of inputs falls with their root, and a second look stays one."""
    found = stats.with_bias(stats.second_look(replace(of(0.1, 0.02, 0.03), examples=200), 3 / 5), 0.01)
    part = Judged.of(found, 0.0, AT_MOST)
    assert eased(part, False, 0).interval.half95 == pytest.approx(found.half95, abs=1e-6)
    assert eased(part, True, 0).interval.half95 == pytest.approx(found.half95 - 0.01, abs=1e-3)
    more = eased(part, False, 800).interval
    assert more.example_se == found.example_se / 2 and more.examples == 800
    assert eased(replace(part, interval=replace(found, groups=9)), False, 800).interval.example_se == found.example_se


@pytest.mark.parametrize(
    ("low", "high", "unit", "said"),
    [
        (0.016, 0.061, "nats per token", "is 0.016 to 0.061 nats per token, surely above 0."),
        (-0.03, -0.01, "nats per token", "is −0.030 to −0.010 nats per token, surely below 0."),
        (-0.014, 0.015, "", "is −0.014 to 0.015."),
        (0.7, 1.03, "×", "is 0.700 to 1.030 times."),
        (0.86, 0.97, "×", "is 0.860 to 0.970 times, surely below 1."),
    ],
)
def test_an_open_claim_says_its_bound(low, high, unit, said):
    """From its interval, with the words of its study or the name of what decides; a decided one says none."""
    for what, subject in (("The loss", "The loss"), ("", "first minus second")):
        verdict = Verdict("undecided", "", what=what)
        assert bound(claim_with(verdict, low, high, unit)) == f"Bound: {subject} {said}"
        assert bound(claim_with(replace(verdict, outcome="refuted"), low, high, unit)) == ""


def test_the_size_of_a_test_is_that_of_its_data():
    """Where the data is at hand; one whose data is not says it itself."""
    for name in (name for name in task_names() if not missing_data(name)):
        assert size_of_test(name) == len(get_task(name).splits["test"]), name


def test_every_open_claim_at_hand_says_what_it_judged():
    """Or what holds it; the command tells all of them."""
    for name in NAMES:
        verdict = study_verdict(name, default_store())
        assert verdict.outcome not in decidable.OPEN or verdict.judged or verdict.held, name


def test_the_command_counts_what_is_within_reach(monkeypatch, capsys):
    """Two hours of cores, and the claims that are undecided; what leans one way is listed too."""
    rows = [
        Outlook("rank", "undecided", 4, "refuted", 1.5), Outlook("targets", "direction only", 4, "reproduced", 0.1),
        Outlook("vera", "undecided", 0, "refuted", 1.2, beside=("a finer grid",), bound="Bound: small."),
        Outlook("scaling", "undecided", 9, "refuted", 30.0), Outlook("loftq", "undecided", None, why="nothing to see"),
    ]  # fmt: skip
    monkeypatch.setattr(decidable, "outlooks", lambda store: rows)
    assert cli.main(["claims", "--decidable"]) == 0
    out = capsys.readouterr().out
    assert "in 2 core-hours each: 2," in out and "four times in" in out
    assert "4 more seeds, 1.5 core-hours: refuted" in out and "a finer grid, 1.2 core-hours: refuted" in out
    assert "Bound: small." in out
    assert all(row.study in out for row in rows) and "nothing to see" in out
    assert cli.main(["claims", "--decidable", "--json"]) == 0
    assert [row["seeds"] for row in json.loads(capsys.readouterr().out)] == [4, 4, 0, 9, None]
