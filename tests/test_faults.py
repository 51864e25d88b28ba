"""Laws of the runs that go wrong: each fault is in what the loop is given, and the study counts what the checks say."""

from __future__ import annotations

import pytest
import torch

from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store
from peftbook.core.specs import Probe
from peftbook.studies import faults as study
from peftbook.studies import get_study
from peftbook.tasks import SPLITS, get_task, tickets
from peftbook.training.encode import encode_example, encode_prompt
from peftbook.training.loop import label_losses
from peftbook.training.models import SMALL_FOLDER
from peftbook.training.probes import faults, measure


@pytest.fixture(scope="module")
def task():
    """The tickets."""
    return get_task("tickets")


@pytest.fixture(scope="module")
def tokenizer():
    """The small Llama's."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SMALL_FOLDER)


def test_no_customer_and_no_message_is_in_two_splits(task):
    """A leak of its own would spoil what the leak is to show."""
    assert task.spec == tickets.SPEC and sum(map(len, task.splits.values())) == 300
    for name in ("input", "group"):
        held = [{getattr(one, name) for one in task.splits[split]} for split in SPLITS]
        assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])


def test_a_row_without_its_end_has_the_other_losses_of_the_whole_row(task, tokenizer, tiny):
    """Leaving the last token out is masking it: nothing stands behind it."""
    row = encode_example(tokenizer, task, task.splits["train"][0], 256)
    whole, cut = (label_losses(tiny, [one], 0)[0] for one in (row, faults.without_end(row)))
    assert row.ids[-1] == tokenizer.eos_token_id
    torch.testing.assert_close(cut, whole[:-1])


@pytest.fixture(scope="module")
def tiny(tokenizer):
    """A random model of one layer with that vocabulary."""
    from peftbook.training.probes.synthetic import small_llama

    return small_llama(1, 32, 2, len(tokenizer), 0).eval()


def test_a_whole_row_is_graded_from_its_second_token_and_ends_alike(task, tokenizer, tiny):
    """Grading the prompt adds losses in front and leaves those of the answer."""
    row = encode_example(tokenizer, task, task.splits["train"][0], 256)
    answer, whole = (label_losses(tiny, [one], 0)[0] for one in (row, faults.whole_row(row)))
    assert len(whole) == len(row.ids) - 1
    torch.testing.assert_close(whole[-len(answer) :], answer)


def test_half_of_the_test_rows_leak_and_the_others_do_not(task):
    """Every other row is known, and the task stays the one that is pinned."""
    other = faults.leaked(task)
    known = [row in other.splits["train"] for row in task.splits["test"]]
    assert known == [at % 2 == 0 for at in range(len(known))]
    assert other.splits["test"] == task.splits["test"] and other.spec == task.spec


def test_a_template_in_a_template_has_each_turn_twice(task, tokenizer):
    """The inner turns are control tokens too, as where a rendered text is given to a chat endpoint."""
    example, start = task.splits["test"][0], tokenizer.bos_token_id
    once, twice = (one(tokenizer, task, example) for one in (encode_prompt, faults.template_twice))
    assert twice.count(start) == 2 * once.count(start) and once != twice
    assert start not in faults.other_template(tokenizer, task, example)


def test_an_unknown_fault_is_refused():
    """In one sentence that names it and those there are."""
    probe = study.probe("healthy", 1)
    with pytest.raises(InputError, match=r"'nothing'.*end_masked"):
        measure(probe.model_copy(update={"settings": {"fault": "nothing", "every": 20}}))


# --- the study -------------------------------------------------------------------------------------------------


def record(probe: Probe, **checks: float) -> Record:
    """A run whose checks are at their bounds, but for its own and those given."""
    arm = study.ARMS[next(name for name in study.ARMS if study.probe(name, probe.seed).key == probe.key)]
    rows = range(study.ROWS)
    known = [float(arm.fault == "leak" and row % 2 == 0) for row in rows]
    right = [float(not arm.check or bool(known[row])) for row in rows]
    own = {arm.check: study.BOUNDS[arm.check] + 1} if arm.check else {}
    loss = [8.0 - step / 10 for step in range(20)]
    return Record(
        key=probe.key,
        spec=probe,
        measurements={"stopped_share": 1.0, "answer_tokens": 3.0, **study.BOUNDS, **own, **checks},
        curve={"train_loss_nats": loss, "checked_step": [0.0], "validation_loss_nats": [8.0]},
        per_example={"exact_match": right, "in_training": known, "loss_nats": [3.0] * study.ROWS,
                     "label_tokens": [3.0] * study.ROWS},
    )  # fmt: skip


def filled(folder, changed: str = "", seed: int = 1, **changes) -> Store:
    """Every run of the study, one of them changed."""
    store = Store(folder)
    for probe in study.runs(store):
        touched = changed and probe.key == study.probe(changed, seed).key
        saved = record(probe)
        update = {name: getattr(saved, name) | values for name, values in changes.items()} if touched else {}
        store.save(saved.model_copy(update=update))
    return store


def outcomes(store: Store) -> list[str]:
    """Of the two claims."""
    return [get_study(name).verdict(store).outcome for name in ("faults", "silent_faults")]


def test_both_claims_hold_where_every_check_is_above_its_bound_for_its_fault_alone(tmp_path):
    """And a leak's answers are right on the rows that leaked."""
    store = filled(tmp_path)
    assert outcomes(store) == ["reproduced", "reproduced"]
    found = get_study("faults").quantities(store)
    assert found["leak_cost"].value == found["overfit_cost"].value == 100
    assert found["rate_low_excess"].value == 0


@pytest.mark.parametrize(("arm", "check", "value"), [("bfloat16", "stuck", 0.5), ("float32", "remaining", 0.51)])
def test_one_missed_fault_and_one_false_alarm_each_refute(tmp_path, arm, check, value):
    """With a single seed; the sentence names it."""
    store = filled(tmp_path, arm, 2, measurements={check: value})
    verdict = get_study("faults").verdict(store)
    assert verdict.outcome == "refuted" and check in verdict.sentence and "seed 2" in verdict.sentence


def test_a_loss_that_gives_a_fault_away_is_not_silent(tmp_path):
    """One seed whose loss ends high leaves it open; answers that are not lost refute."""
    high = [8.0 - step / 20 for step in range(20)]
    assert outcomes(filled(tmp_path / "a", "overfit", curve={"train_loss_nats": high}))[1] == "undecided"
    store = Store(tmp_path / "b")
    for probe in study.runs(store):
        saved = record(probe)
        right = saved.per_example | {"exact_match": [1.0] * study.ROWS}
        store.save(saved.model_copy(update={"per_example": right}))
    assert outcomes(store)[1] == "refuted"
