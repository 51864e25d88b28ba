"""Many runs on many workers: what waits for what, what the verdict says, and the queue as it is measured."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store
from peftbook.scratch.schedule import makespan
from peftbook.studies import get_study, throughput
from peftbook.training.execute import execute
from peftbook.training.probes import measure
from peftbook.training.probes import throughput as probes


def kept(run: specs.Run | specs.Probe, minutes: int, **fields) -> Record:
    """A record that took so long to make."""
    times = {"started": "2026-01-01T10:00:00", "finished": f"2026-01-01T10:{minutes:02}:00"}
    return Record(key=run.key, spec=run, provenance=times, **fields)


def test_confirmations_wait_for_choices_and_timings_are_left_out(tmp_path):
    """The runs at hand of a study, stage by stage; on one worker the queue takes their sum."""
    store, study = Store(tmp_path), get_study("merging_quality")
    for run in study.runs(store):
        store.save(kept(run, 7))
    (one,) = throughput.stages(store)
    assert one == [[420.0] * len(study.runs(store))]
    assert all(run.purpose != "timing" for run in study.runs(store))
    found = throughput.quantities(store)
    assert found["on_1"].value == pytest.approx(sum(one[0]) / 3600)
    assert found["chain"].value == pytest.approx(max(one[0]) / 3600)
    assert found["on_1000"].value == pytest.approx(makespan([one], 1000) / 3600)


def save_repeats(store: Store, crew: throughput.Crew, rates: tuple[float, ...]) -> None:
    """Records of a crew's repeats that make so many runs an hour."""
    for seed, rate in zip(throughput.REPEATS, rates, strict=True):
        measured = {"runs_per_hour": rate, "driver_seconds": 0.01, "seconds": 8 * 3600 / rate}
        times = {"run_seconds": [9.0] * 8, "work_seconds": [4.0] * 8}
        store.save(kept(crew.probe(seed), 5, measurements=measured, per_example=times))


REPEATED = [((1.9, 1.8, 1.7), "reproduced"), ((1.5, 1.4, 1.2), "refuted"), ((1.9, 1.5, 1.8), "undecided")]


@pytest.mark.parametrize(("factors", "outcome"), REPEATED)
@pytest.mark.parametrize("best", [1, 2])
def test_the_verdict_is_against_the_best_single_worker(tmp_path, factors, outcome, best):
    """Whichever number of threads it has, repeat by repeat; until all are measured nothing is said."""
    store = Store(tmp_path)
    for crew in (*throughput.CREWS, throughput.PAIR):
        save_repeats(store, crew, tuple(100 * factor if crew.workers == 2 else 100.0 for factor in factors))
    for crew in throughput.SINGLES:
        assert get_study("throughput").verdict(store).outcome == "not yet run"
        save_repeats(store, crew, (100.0 if crew.threads == best else 50.0,) * 3)
    found, known = get_study("throughput").verdict(store), throughput.quantities(store)
    assert found.outcome == outcome and set(found.quantities) <= set(known)
    assert f"one with {best} thread" in found.sentence and throughput.PAIR.machine in found.sentence
    assert known["start_1"].value == pytest.approx(5.0)
    assert known["work_1"].value == pytest.approx(4.0)


def test_a_measurement_sets_the_threads_of_its_runs_or_leaves_the_queue_to_share(monkeypatch, tmp_path):
    """The first measurements name no threads, and their keys stay."""
    given: list[int] = []
    monkeypatch.setattr(probes.queue, "run_subprocess", lambda run, threads, folder: (given.append(threads), ""))
    first, later = throughput.CREWS[0].probe(0), throughput.SINGLES[0].probe(0)
    for probe in (first, later):
        probes.in_folder(tmp_path, probe)(first, 2)
    assert given == [2, 1]
    assert set(first.settings) == {"workers", "jobs"}
    with pytest.raises(InputError, match="threads is 0"):
        probes.in_folder(tmp_path, later.model_copy(update={"settings": {"threads": 0}}))


def test_the_measured_queue_makes_every_run(monkeypatch):
    """Two small runs, here in this process; none of them takes longer than all together."""
    alone = threading.Lock()

    def compute(run: specs.Probe, threads: int, folder: Path) -> tuple[bool, str]:
        with alone:
            execute(run, Store(folder), quiet=True)
        return True, ""

    monkeypatch.setattr(probes.queue, "run_subprocess", compute)
    monkeypatch.setattr(probes, "SMALL_RUN", probes.SMALL_RUN | {"pretrain_steps": 2, "steps": 2})
    spec = specs.Probe(measure="throughput.throughput", settings={"workers": 2, "jobs": 2}, model=throughput.SCRATCH)
    found = measure(spec)
    assert found.measurements["runs_per_hour"] == pytest.approx(2 * 3600 / found.measurements["seconds"])
    assert len(found.per_example["work_seconds"]) == 2
    for run, work in zip(found.per_example["run_seconds"], found.per_example["work_seconds"], strict=True):
        assert 0 <= work < run + 1 and 0 < run <= found.measurements["seconds"]  # work is told in whole seconds
    with pytest.raises(InputError, match="jobs is 0"):
        measure(spec.model_copy(update={"settings": {"workers": 1, "jobs": 0}}))
