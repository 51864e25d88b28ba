"""What more seeds would decide: the plan finds what it promises, and says where no number of seeds helps."""

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
from peftbook.evidence.decidable import Outlook, core_seconds_of_a_seed
from peftbook.evidence.planning import MOST_SEEDS, Judged, more_seeds, obstacle, seeds_to
from peftbook.evidence.results import study_verdict
from peftbook.evidence.stats import Interval
from peftbook.methods import preset_method
from peftbook.studies import BLIND, NAMES, Verdict
from peftbook.tasks import task_spec

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


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict("undecided", "", held=BLIND), "nothing to see: control failed"),
        (Verdict("undecided", "", held="the rates say otherwise"), "not by seeds: the rates say otherwise"),
        (Verdict("undecided", ""), "not by seeds: its study"),
    ],
)
def test_what_is_held_by_a_guard_says_so(monkeypatch, verdict, said):
    """A failed control is told before any number of seeds."""
    monkeypatch.setattr(decidable, "study_verdict", lambda name, store: verdict)
    assert decidable.outlook("rank", default_store()).why.startswith(said)


def test_every_open_claim_at_hand_says_what_it_judged():
    """Or what holds it; the command tells all of them."""
    for name in NAMES:
        verdict = study_verdict(name, default_store())
        assert verdict.outcome not in decidable.OPEN or verdict.judged or verdict.held, name


def test_the_command_counts_what_is_within_reach(monkeypatch, capsys):
    """Two hours of cores, and the claims that are undecided; what leans one way is listed too."""
    rows = [
        Outlook("rank", "undecided", 4, "refuted", 1.5), Outlook("targets", "direction only", 4, "reproduced", 0.1),
        Outlook("scaling", "undecided", 9, "refuted", 30.0), Outlook("loftq", "undecided", None, why="nothing to see"),
    ]  # fmt: skip
    monkeypatch.setattr(decidable, "outlooks", lambda store: rows)
    assert cli.main(["claims", "--decidable"]) == 0
    out = capsys.readouterr().out
    assert "in 2 core-hours each: 1," in out and "four times in five" in out
    assert all(row.study in out for row in rows) and "nothing to see" in out
    assert cli.main(["claims", "--decidable", "--json"]) == 0
    assert [row["seeds"] for row in json.loads(capsys.readouterr().out)] == [4, 4, 9, None]
