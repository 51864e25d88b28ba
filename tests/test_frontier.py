"""Gain and forgetting together: matched readings, what is in their interval, and every outcome of the two verdicts."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_verdicts import decided, fill

from peftbook.core import specs
from peftbook.core.records import Store
from peftbook.scratch.forgetting import at_target
from peftbook.studies import frontier, get_study
from peftbook.studies.frontier import Path, bend, matched_interval, matched_level, reading

# --- reading at a matched loss -----------------------------------------------------------------------------------

falls = st.lists(st.floats(0.05, 1.0), min_size=2, max_size=6)


@given(falls, st.floats(0.0, 1.0), st.integers(0, 2**32 - 1))
def test_a_matched_reading_is_the_chapters(falling, share, seed):
    """On a path that falls it is the equation of the page, as the chapter's own code has it."""
    aims = 5.0 - np.cumsum([0.0, *falling])
    values = np.random.default_rng(seed).normal(size=len(aims))
    level = float(aims[-1] + share * (aims[0] - aims[-1]) * 0.999)
    assert reading(aims, values, level) == pytest.approx(at_target(aims.tolist(), values.tolist(), level), abs=1e-9)


@given(falls, st.floats(0.01, 0.99), st.floats(-3, 3), st.floats(-3, 3))
def test_a_line_is_read_exactly_and_a_parabola_with_its_bend(falling, share, slope, curvature):
    """General loss linear in target loss has no bend; quadratic, reading and bend together are the value itself."""
    aims = 5.0 - np.cumsum([0.0, *falling])
    level = float(aims[-1] + share * (aims[0] - aims[-1]))
    straight, curved = slope * aims, slope * aims + curvature * aims**2
    assert reading(aims, straight, level) == pytest.approx(slope * level, abs=1e-6)
    assert bend(aims, straight, level) == pytest.approx(0, abs=1e-6)
    at = frontier.crossing(aims, level)
    if abs(bend(aims, curved, level)) < abs(curved[at] - curved[at - 1]):  # else it is cut
        found = reading(aims, curved, level) + bend(aims, curved, level)
        assert found == pytest.approx(slope * level + curvature * level**2, abs=1e-6)


def test_the_matched_level_is_the_worse_of_the_best_losses():
    """Every path reaches it, one of them with nothing to spare; where a path rises again its first crossing counts."""
    one, two = np.array([5.0, 3.0, 3.4]), np.array([5.0, 4.0, 2.0])
    assert matched_level((one, two)) == 3.0
    assert reading(one, np.array([0.0, 1.0, 9.0]), 3.0) == 1.0
    assert reading(two, np.array([0.0, 1.0, 3.0]), 3.0) == 2.0


SOURCES = tuple(f"source {at // 2}" for at in range(24))


def path(fall: float, rise: float, targets: np.ndarray, pieces: np.ndarray) -> Path:
    """A path whose target loss falls and general loss rises in proportion to what was done, by example as given."""
    done = (1 - np.exp(-np.array([0, *frontier.STEPS, 30]) / 10)) / (1 - np.exp(-3.0))
    target, general = np.full(len(targets), 20.0), np.full(len(pieces), 50.0)
    return Path(
        (5.0 - fall * done[:, None] * targets) * target, (4.0 + rise * done[:, None] * pieces) * general,
        target, general, SOURCES[: len(pieces)],
    )  # fmt: skip


def spread(scale: float, size: int, seed: int) -> np.ndarray:
    return 1 + scale * np.random.default_rng(seed).normal(size=size)


def interval_of(targets: float, pieces: float):
    """Of LoRA minus OFT where target examples and sources of general text differ by so much."""
    plain = np.ones(frontier.EXAMPLES), np.ones(len(SOURCES))
    mixed = spread(targets, frontier.EXAMPLES, 1), np.repeat(spread(pieces, 12, 2), 2)
    seeds = [
        {"lora": path(2 + 0.01 * seed, 0.5, plain[0], mixed[1]), "oft": path(1.8, 0.2, mixed[0], plain[1])}
        for seed in range(5)
    ]
    return matched_interval(seeds, lambda found: found["lora"] - found["oft"])


def test_the_interval_has_the_matching_and_the_sources_in_it():
    """Either spread widens it, and where no example differs only seeds and the bend are left."""
    bare, matching, sources = interval_of(0, 0), interval_of(0.5, 0), interval_of(0, 0.5)
    assert bare.example_se == pytest.approx(0, abs=1e-9) and bare.bias == pytest.approx(0, abs=1e-9)
    assert matching.example_se > 0.01 and sources.example_se > 0.01
    both = interval_of(0.5, 0.5)
    assert both.half95 > max(matching.half95, sources.half95) and both.decides


# --- verdicts ----------------------------------------------------------------------------------------------------


def arm_name(probe: specs.Probe) -> str:
    """The arm that a training belongs to."""
    known = probe.runs[0].method, float(probe.settings["replay"])
    return next(
        name for name, one in frontier.ARMS.items() if (one.method, frontier.SHARE * (name == "replay")) == known
    )


def made(
    rises: dict[str, float], falls: dict[str, float] | None = None, noise: float = 0.02, turn: float = 0.0
) -> Callable:
    """Records of arms whose target loss falls by `falls` and whose general loss rises by `rises`.

    The best rate is the second of each grid.  turn: added to the rise at all other rates.
    """
    shared = np.random.default_rng(3).normal(size=frontier.EXAMPLES)

    def record(probe: specs.Probe) -> dict:
        run = probe.runs[0]
        replayed = float(probe.settings["replay"])
        tokens = {"target_tokens": [20.0] * frontier.EXAMPLES, "general_tokens": [50.0] * len(SOURCES)}
        fixed = tokens | {"general_source": list(SOURCES)}
        if run.budget is None:
            zero = path(0, 0, np.ones(frontier.EXAMPLES), np.ones(len(SOURCES)))
            nats = {"target_nats_0": zero.target[0].tolist(), "general_nats_0": zero.general[0].tolist()}
            return {"curve": {"step": [0.0]}, "per_example": fixed | nats}
        arm = arm_name(probe)
        best = frontier.ARMS[arm].rates[1]
        away = abs(np.log2(run.budget.learning_rate / best))
        rng = np.random.default_rng([probe.seed, len(arm)])
        rise = rises[arm] + (turn if away > 0.5 and arm != "lora" else 0.0) + 0.002 * rng.normal()
        fall = (falls or {}).get(arm, 2.0) - 0.03 * away**2 + 0.002 * rng.normal()
        one = path(fall, rise, 1 + noise * shared, np.repeat(spread(noise, 12, len(arm)), 2))
        steps = [*frontier.STEPS, 30]
        nats = {
            f"{name}_nats_{step}": rows[at].tolist()
            for name, rows in (("target", one.target), ("general", one.general))
            for at, step in enumerate(steps, start=1)
        }
        counts = {"trainable_parameters": 448_512, "train_tokens": round(18_000 / (1 - replayed))}
        return {
            "measurements": counts | {"train_label_tokens": 6_000 + round(20_000 * replayed)},
            "curve": {"step": [float(step) for step in steps]},
            "per_example": fixed | nats,
        }

    return record


BETTER = {"full": 0.6, "lora": 0.5, "oft": 0.3, "replay": 0.1}
WORSE = {"full": 0.6, "lora": 0.3, "oft": 0.5, "replay": 0.4}


@pytest.mark.parametrize(
    ("study", "record", "outcome", "words"),
    [
        ("frontier", made(BETTER), "reproduced", ""),
        ("frontier", made(WORSE), "fails in this regime", ""),
        ("frontier", made(BETTER | {"oft": 0.5}, noise=0.005), "equivalent", ""),
        ("frontier", made(BETTER, turn=0.4), "undecided", "its sign is the other"),
        ("frontier", made(BETTER | {"oft": 0.5}, turn=0.4), "undecided", "beyond the margin"),
        ("frontier", made(BETTER | {"oft": 0.5}, noise=0.4), "undecided", "half-width"),
        ("frontier", made({"full": 0.1, "lora": 0.03, "oft": 0.0, "replay": 0.0}), "undecided", "not surely more"),
        ("replay", made(BETTER), "reproduced", ""),
        ("replay", made(WORSE), "refuted", "; saved: refuted"),
        ("replay", made(BETTER | {"oft": 0.0}), "refuted", "more than OFT saves: refuted"),
        ("replay", made(BETTER, {"replay": 1.8}), "refuted", "no gain lost: refuted"),
        ("replay", made(BETTER | {"oft": 0.1}), "undecided", "more than OFT saves: equivalent"),
        ("replay", made(BETTER | {"oft": 0.2}, turn=-0.4), "undecided", "more than OFT saves: undecided (at"),
        ("replay", made({"full": 0.1, "lora": 0.03, "oft": 0.02, "replay": 0.0}), "undecided", "not surely more"),
    ],
)
def test_frontiers_are_judged_where_there_is_something_to_save(tmp_path, study, record, outcome, words):
    """The best rates decide, their neighbours may not contradict, and without forgetting nothing is decided."""
    store = Store(tmp_path)
    fill(store, get_study(study), record)
    assert all(frontier.best_rate(arm, store) == one.rates[1] for arm, one in frontier.ARMS.items())
    decided(store, get_study(study), outcome, words)


def test_the_grid_grows_until_its_best_rate_lies_inside(tmp_path):
    """A best rate at an end brings the next one, by the grid's factor; and no fresh seed is trained before."""
    store, record = Store(tmp_path), made(BETTER)
    grids = {arm: one.rates for arm, one in frontier.ARMS.items()}
    assert all(probe.seed == frontier.SWEEP_SEED for probe in frontier.runs(store))
    fill(store, get_study("frontier"), record)
    for arm, rates in grids.items():
        assert frontier.tuning(arm).rates(store.get) == list(rates)
        for low, high in itertools.pairwise(rates):
            assert high / low == pytest.approx(frontier.FACTOR, rel=0.02)
    assert [probe.seed for probe in frontier.runs(store)][-len(grids) :] == [frontier.SEEDS[-1]] * len(grids)


def test_a_rate_beyond_the_cliff_stands_beside_none(tmp_path):
    """Where the target loss ends higher than it had been, another arm is not held against that training."""
    store, plain = Store(tmp_path), made(BETTER, turn=0.4)

    def record(probe: specs.Probe) -> dict:
        found, run = plain(probe), probe.runs[0]
        if (
            run.budget
            and run.budget.learning_rate != frontier.ARMS[arm_name(probe)].rates[1]
            and arm_name(probe) == "oft"
        ):
            found["per_example"]["target_nats_30"] = [9 * nats for nats in found["per_example"]["target_nats_30"]]
        return found

    fill(store, get_study("frontier"), record)
    assert frontier.neighbours("oft", store) == [frontier.best_rate("oft", store)]
    assert len(frontier.neighbours("lora", store)) == 3
    decided(store, get_study("frontier"), "reproduced", "")


def test_replay_and_its_twin_differ_in_nothing_else():
    """One method, one grid, one task and budget; OFT has about as many numbers, which the records count."""
    one, two = (frontier.probe(arm, 1e-3, 1, "test") for arm in ("lora", "replay"))
    assert one.runs == two.runs and one.key != two.key
    assert frontier.ARMS["lora"].rates == frontier.ARMS["replay"].rates
