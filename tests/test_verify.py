"""Verify: a shipped run repeats; what drifts is seen; what cannot be compared is named."""

from __future__ import annotations

import math

import pytest

from peftbook.core import specs
from peftbook.core.records import SHIPPED, Record, Store
from peftbook.methods.lora import LoRA
from peftbook.runtime import verify
from peftbook.runtime.queue import run_subprocess
from peftbook.runtime.verify import TOLERANCES, compare, verify_sample
from peftbook.studies.half_products import small_run
from peftbook.tasks import get_task, task_spec


def a_record(seed: int = 0, failure: str = "", task: str = "docstrings", **measurements) -> Record:
    run = specs.Run(task=task_spec(task), method=LoRA(), budget=specs.Budget(tokens=10, learning_rate=1e-3), seed=seed)
    return Record(key=run.key, spec=run, measurements=measurements, failure=failure)


@pytest.mark.parametrize("name", TOLERANCES)
def test_a_difference_is_drift_beyond_its_tolerance_alone(name):
    """On either side, and whatever else agrees; a measurement that only one of the two has is not compared."""
    other = next(each for each in TOLERANCES if each != name)
    old = a_record(**{name: 1.0, other: 0.5})
    for factor, outcome in [(0.0, "same"), (0.9, "same"), (-0.9, "same"), (1.1, "drift"), (-1.1, "drift")]:
        found = compare(old, a_record(**{name: 1.0 + factor * TOLERANCES[name], other: 0.5}))
        assert found.outcome == outcome and name in found.sentence
    assert compare(old, a_record(**{other: 0.5})).outcome == "same"


def test_a_run_that_diverges_only_now_is_drift():
    """And one that diverges both times is the same."""
    lost = "Training diverged at step 3"
    assert compare(a_record(loss_nats=2.0), a_record(failure=lost)).outcome == "drift"
    assert compare(a_record(failure=lost), a_record(failure=lost)).outcome == "same"


def test_only_quality_runs_whose_data_is_at_hand_are_repeated(tmp_path, monkeypatch):
    """The rest is named, once a kind, and never sampled."""
    monkeypatch.delenv("PEFTBOOK_E2E", raising=False)
    get_task.cache_clear()
    store = Store(tmp_path)
    repeated = []
    for seed in range(3):
        store.save(a_record(seed, loss_nats=2.0))
        store.save(a_record(seed, task="e2e", loss_nats=2.0))
    for run in [a_record(7).spec.model_copy(update=change) for change in ({"purpose": "timing"}, {"platform": "cuda"})]:
        store.save(Record(key=run.key, spec=run))
    probe = specs.Probe(measure="curves.learning_curve", runs=(a_record(0).spec,))
    store.save(Record(key=probe.key, spec=probe))

    def again(run, *, folder):
        repeated.append(run.seed)
        Store(folder).save(a_record(run.seed, loss_nats=2.0 + run.seed))
        return run.seed != 2, "out of memory"

    monkeypatch.setattr(verify, "run_subprocess", again)
    results = list(verify_sample(store, 10, seed=1))
    assert sorted(repeated) == [0, 1, 2]
    assert sorted(one.outcome for one in results) == ["drift", "failed", "same", "skipped", "skipped"]
    skipped = [one for one in results if one.outcome == "skipped"]
    assert {one.count for one in skipped} == {1, 3}
    assert "curves.learning_curve" in skipped[0].sentence and "e2e" in skipped[1].sentence


def test_the_sample_is_drawn_by_its_seed(tmp_path, monkeypatch):
    """Two people who verify with one seed repeat the same runs."""
    store = Store(tmp_path)
    for seed in range(8):
        store.save(a_record(seed))
    monkeypatch.setattr(verify, "run_subprocess", lambda run, *, folder: (False, ""))
    draws = [[one.key for one in verify_sample(store, 3, seed)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2] and len(set(draws[0])) == 3


@pytest.mark.model
@pytest.mark.plain
@pytest.mark.slow
def test_the_short_shipped_run_repeats(tmp_path):
    """In a process of its own, through the queue's worker, whatever processor made the record: every loss of its
    training; of its first examples and answers the means, each with the tolerance of so many. It is the small Llama's;
    the first steps of a run of the larger model are repeated in `test_products`.
    """
    whole, few = small_run(), 4
    fewer = whole.evaluation.model_copy(update={"n_loss": few, "n_generate": few})
    run = whole.model_copy(update={"evaluation": fewer})
    assert run_subprocess(run, folder=tmp_path) == (True, "")
    shipped, again = Store(SHIPPED).get(whole), Store(tmp_path).get(run)
    losses = shipped.curve["train_loss_nats"]
    assert len(losses) > 2 and again.curve["train_loss_nats"] == pytest.approx(losses, abs=TOLERANCES["loss_nats"])
    assert again.per_example["label_tokens"] == shipped.per_example["label_tokens"][:few]
    tokens = sum(again.per_example["label_tokens"])
    for name, parts in {"loss_nats": tokens, "rougeL": few, "bertscore_f1": few}.items():
        old, new = (sum(one.per_example[name][:few]) / parts for one in (shipped, again))
        assert abs(new - old) <= TOLERANCES[name] * math.sqrt(whole.evaluation.n_generate / few), (name, old, new)
