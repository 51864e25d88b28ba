"""Later rows stay out of the test rows and these out of training; a run starts with the weights of another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_task

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Store
from peftbook.methods.lora import LoRA
from peftbook.methods.untuned import Untuned
from peftbook.studio.work import keep_trained
from peftbook.tasks import TaskExample
from peftbook.tasks.files import Split, split_rows
from peftbook.training import execute as module
from peftbook.training.execute import Watch, execute, prepare
from peftbook.training.forward import trainable_state

pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning"),
]

WORDS = st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"])
ROWS = st.lists(st.tuples(WORDS, WORDS, st.sampled_from(["", "x", "y", "z"])), max_size=20)


@given(ROWS, ROWS, st.integers(0, 3))
def test_later_rows_are_trained_on_and_change_nothing_else(first, later, seed):
    """Validation and test are those of the first rows alone; no later row there comes into training, by input or
    group; every other one does, behind the rows that were there.
    """
    rows = [TaskExample(f"r{at}", *one) for at, one in enumerate([*((w, w, "") for w in "stuvw"), *first, *later])]
    count = 5 + len(first)
    alone = split_rows(rows[:count], Split(seed, (0.6, 0.2, 0.2)))
    both = split_rows(rows, Split(seed, (0.6, 0.2, 0.2), count if later else 0))
    assert both["validation"] == alone["validation"] and both["test"] == alone["test"]
    held = (*both["validation"], *both["test"])
    assert not {one.input for one in held} & {one.input for one in both["train"]}
    assert not {one.group for one in held} & {one.group for one in both["train"] if one.group}
    assert both["train"][: len(alone["train"])] == alone["train"]
    left = set(rows[count:]) - set(both["train"])
    assert all(one.input in {row.input for row in held} or one.group in {row.group for row in held} for one in left)
    with pytest.raises(InputError, match="are to be split"):
        split_rows(rows, Split(first=len(rows) + 1))


# --- a run -----------------------------------------------------------------------------------------------------


def a_run(folder, tokens: int = 200, start: str = "") -> specs.Run:
    return specs.Run(
        model=specs.Model(name=str(folder), revision=""), task=tiny_task().spec, method=LoRA(rank=2), dtype="fp32",
        budget=specs.Budget(tokens=tokens, batch_size=4, learning_rate=1e-2), start=start,
        evaluation=specs.Evaluation(n_loss=4),
    )  # fmt: skip


def test_a_run_goes_on_from_the_trained_weights(folder, tmp_path, monkeypatch):
    """It begins with them and the loss that they had, ends elsewhere, and has a record of its own; without what it
    starts from it is refused, and an untuned run has no start.
    """
    monkeypatch.setattr(module, "get_task", lambda name: tiny_task())
    monkeypatch.setenv("PEFTBOOK_CACHE", str(tmp_path / "cache"))
    store, first = Store(tmp_path / "records"), a_run(folder)
    one = execute(first, store, quiet=True, watch=Watch(keep=lambda trainee: keep_trained(tmp_path, trainee)))
    onward = a_run(folder, start=first.key)
    kept = tmp_path / "adapters" / first.key[:12]
    ended, begun = prepare(first), prepare(onward, start=kept)
    ended.train()
    for name, value in trainable_state(ended.model).items():
        assert value.equal(trainable_state(begun.model)[name])
    two = execute(onward, store, quiet=True, start=kept)
    assert two.curve["train_loss_nats"][0] < one.curve["train_loss_nats"][0] and two.key != one.key
    assert two.measurements["loss_nats"] != one.measurements["loss_nats"]
    for lacking in (None, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="run that one first"):
            execute(onward, Store(tmp_path / "other"), quiet=True, start=lacking)
    assert "start" not in first.canonical()
    with pytest.raises(ValueError, match="nothing to go on from"):
        specs.Run(task=first.task, method=Untuned(), start=first.key)
