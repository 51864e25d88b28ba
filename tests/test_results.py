"""Named quantities: what a page prints is what the records say."""

from __future__ import annotations

import math
import re

import pytest

from peftbook.core.errors import InputError
from peftbook.core.records import Store, default_store
from peftbook.core.tracking import track_reads
from peftbook.evidence import results, stats
from peftbook.studies import NAMES, Quantity, get_study, methods


def test_missing_quantity_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(InputError, match="peftbook run methods"):
        results.quantity("methods.lora_loss", Store(tmp_path))


def test_a_name_without_a_study_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"study\.quantity"):
        results.quantity("lora_loss", Store(tmp_path))


@pytest.mark.parametrize(
    ("value", "digits", "unit", "text"),
    [
        (1234567, 0, "parameters", "1,234,567 parameters"),
        (-0.1234, 3, "nats per token", "−0.123 nats per token"),
        (0.0002, -2, "", "0.0002"),
        (1.5e-05, -2, "", "1.5 × 10^−5"),
        (19_537_920, 0, "bytes", "19.5 MB"),
        (3.631, 2, "%", "3.63%"),
    ],
)
def test_numbers_are_printed_for_people(value, digits, unit, text):
    assert results.format_value(value, digits, unit) == text


def test_interval_is_printed_in_brackets():
    text = results.format_quantity(Quantity(0.3, "nats", ("k",), 0.25, 0.35, 3, 200, 2))
    assert text == "0.30 [0.25, 0.35] nats"


def test_every_quantity_is_inside_its_interval_and_names_records_at_hand():
    """A law over all shipped quantities: low ≤ value ≤ high, finite, and each run behind it has a record."""
    store = default_store()
    keys = {record.key for record in store.all()}
    for name, quantity in results.quantities(store).items():
        assert (quantity.runs or get_study(name.partition(".")[0]).others) and set(quantity.runs) <= keys, name
        assert math.isfinite(quantity.value), name
        if quantity.low is not None and quantity.high is not None:
            assert quantity.low <= quantity.value <= quantity.high, name


def test_no_interval_of_a_share_has_what_no_share_can_be():
    """The truth lies between 0 and 1, a difference of two between −1 and 1: so does the interval."""
    counted = re.compile(r"_(accuracy|exact_match|execution_match|rouge[12L])$")
    found = {name: one for name, one in results.quantities(default_store()).items() if counted.search(name)}
    cut = 0
    for name, one in found.items():
        least = -1 if "_minus_" in name else 0
        if one.low is not None and one.high is not None:
            assert least <= one.low <= one.value <= one.high <= 1, name
            cut += one.low == least or one.high == 1
    assert cut > 20
    whole = stats.seed_interval([0.9, 1.0, 1.0])
    assert whole.high > 1
    ends = [(one.low, one.high) for one in (Quantity.of(whole, "", ()), Quantity.of(whole, "", (), among=(0, 1)))]
    assert ends == [(whole.low, whole.high), (whole.low, 1)]


def test_paired_difference_is_the_difference_of_the_arms():
    found = results.quantities(default_store())
    for first, second in (("lora", "full"), ("qlora", "lora"), ("prompt", "lora")):
        difference = found[f"methods.{first}_minus_{second}_loss"].value
        assert difference == pytest.approx(
            found[f"methods.{first}_loss"].value - found[f"methods.{second}_loss"].value, abs=1e-9
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_runs_that_a_quantity_names_are_among_those_that_it_is_seen_to_read(name):
    """What a study says of its numbers is held against what it did."""
    with track_reads() as seen:
        known = get_study(name).quantities(default_store())
    assert {key for quantity in known.values() for key in quantity.runs} <= seen.keys()


def test_a_cached_quantity_is_seen_to_rest_on_its_runs_each_time():
    """Whoever reads a number from the cache has read its runs; who reads none has read nothing."""
    store = default_store()
    for _ in range(2):
        with track_reads() as seen:
            known = results.study_quantities("methods", store)
        assert not seen
        with track_reads() as seen:
            found = known["lora_minus_full_loss"]
        assert set(found.runs) == seen.keys() and len(seen) == 6


def test_a_cached_verdict_is_seen_to_rest_on_what_it_read_each_time():
    """The final runs of both arms are behind the verdict on LoRA; what chose their rates is not."""
    store = default_store()
    for _ in range(2):
        with track_reads() as seen:
            results.study_verdict("methods", store)
        assert seen.keys() == {run.key for arm in ("lora", "full") for run in methods.final_runs(arm, store)}


@pytest.mark.parametrize("name", NAMES)
def test_without_records_a_study_says_how_many_are_missing(name, tmp_path):
    """Nothing is claimed, nothing raised, and the first stage of its runs is known."""
    study, store = get_study(name), Store(tmp_path)
    verdict, count = study.verdict(store), len(study.runs(store))
    if study.others:
        assert not count
        return
    assert verdict.outcome == "not yet run" and f"{count} of {count} have no record" in verdict.sentence
    assert count and len(study.missing(store)) == count and not study.quantities(store)


def test_quantities_that_two_studies_share_are_made_by_one_function():
    """They are kept under its name: another function of that name would be answered with the first one's."""
    made: dict[str, object] = {}
    for measure in (get_study(name).measure for name in NAMES):
        assert made.setdefault(f"{measure.__module__}.{measure.__qualname__}", measure) is measure


@pytest.mark.parametrize("name", NAMES)
def test_every_study_states_its_claim_and_decides(name):
    study = get_study(name)
    assert study.claim and study.source and study.refuted_if and study.does_not_show
    assert study.verdict(default_store()).outcome in results.OUTCOMES


def test_best_rate_lies_inside_its_grid():
    """An optimum at the edge extends the grid, so the chosen rate always has a worse neighbour on each side."""
    store = default_store()
    for arm in methods.ARMS:
        rates = methods.plan.tuning(methods.plan.arm(arm)).rates(store.get)
        chosen = methods.best_rate(arm, store)
        assert rates[0] < chosen < rates[-1], arm


def test_final_runs_use_fresh_seeds_and_the_test_split():
    store = default_store()
    for arm in methods.ARMS:
        runs = methods.final_runs(arm, store)
        assert {run.evaluation.split for run in runs} == {"test"}
        assert not {run.seed for run in runs} & {*methods.plan.sweep_seeds} and len(runs) >= 3


def test_what_is_missing_is_told_with_its_hours(tmp_path):
    """As many runs as lack a record, each as long as those at hand: half of 4 core-seconds and 12 is 8 a run."""
    store, runs = Store(tmp_path), get_study("methods").runs(Store(tmp_path))
    assert results.claim("methods", store).core_hours is None, "nobody knows how long a run takes"
    for run, (seconds, threads) in zip(runs, ((2, 2), (12, 1)), strict=False):
        clock = {"started": "2026-01-01T00:00:00", "finished": f"2026-01-01T00:00:{seconds:02}", "threads": threads}
        store.save(default_store().get(run).model_copy(update={"provenance": clock}))
    claim = results.claim("methods", Store(tmp_path))
    assert claim.missing and claim.core_hours == pytest.approx(claim.missing * 8 / 3600)
    hours = f"{claim.missing * 8 / 3600:.1f} core-hours"
    assert claim.missing_runs.startswith(f"{claim.missing} of {claim.runs} runs are missing, {hours} if")
