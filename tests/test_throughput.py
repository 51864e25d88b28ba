"""Many runs on many workers: what waits for what, what the verdict says, and the queue as it is measured."""

from __future__ import annotations

import pytest

from peftbook import specs
from peftbook.errors import InputError
from peftbook.records import Record, Store
from peftbook.scratch.schedule import makespan
from peftbook.studies import get_study, throughput
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


@pytest.mark.parametrize(
    ("factors", "outcome"),
    [((1.9, 1.8, 1.7), "reproduced"), ((1.5, 1.4, 1.2), "refuted"), ((1.9, 1.5, 1.8), "undecided")],
)
def test_the_verdict_follows_every_repeat(tmp_path, factors, outcome):
    """Two workers against one, repeat by repeat."""
    store = Store(tmp_path)
    assert get_study("throughput").verdict(store).outcome == "not yet run"
    for seed, factor in zip(throughput.REPEATS, factors, strict=True):
        for workers, rate in ((1, 100.0), (2, 100.0 * factor), (4, 200.0)):
            measured = {"runs_per_hour": rate, "driver_seconds": 0.01, "seconds": 8 * 3600 / rate}
            times = {"run_seconds": [9.0] * 8, "work_seconds": [4.0] * 8}
            store.save(kept(throughput.probe(workers, seed), 5, measurements=measured, per_example=times))
    found, known = get_study("throughput").verdict(store), throughput.quantities(store)
    assert found.outcome == outcome and set(found.quantities) <= set(known)
    assert known["start_1"].value == pytest.approx(5.0)


@pytest.mark.slow
def test_the_measured_queue_makes_every_run(monkeypatch):
    """Two small runs, each in a process of its own; none of them takes longer than all together."""
    monkeypatch.setattr(probes, "SMALL_RUN", probes.SMALL_RUN | {"pretrain_steps": 2, "steps": 2})
    spec = specs.Probe(measure="throughput.throughput", settings={"workers": 2, "jobs": 2}, model=throughput.SCRATCH)
    found = measure(spec)
    assert found.measurements["runs_per_hour"] == pytest.approx(2 * 3600 / found.measurements["seconds"])
    assert len(found.per_example["work_seconds"]) == 2
    for run, work in zip(found.per_example["run_seconds"], found.per_example["work_seconds"], strict=True):
        assert 0 < work < run <= found.measurements["seconds"]
    with pytest.raises(InputError, match="jobs is 0"):
        measure(spec.model_copy(update={"settings": {"workers": 1, "jobs": 0}}))
