"""Looking while test rows are answered: a random part of them, an interval for any moment, and the same answers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from studio_api import finish, project_of, served
from studio_home import SMALL, colours_project

from peftbook import metrics, specs
from peftbook.decision.peeking import answer_order, peek
from peftbook.errors import Conflict, InputError
from peftbook.evidence.stats import confidence_sequence
from peftbook.methods.lora import LoRA
from peftbook.own_metrics import parse_metric
from peftbook.studio.decisions import given_up
from peftbook.studio.peeks import answers_of, forget_answers, peeks_of, write_answers
from peftbook.studio.plan import plan
from peftbook.studio.settings import Settings
from peftbook.studio.store import Studio
from peftbook.tasks import Example, groups_of

pytestmark = pytest.mark.filterwarnings("ignore:unclosed database:ResourceWarning")

ROWS = tuple(Example(f"r{at}", f"count {at}", f"it is {at}") for at in range(60))


def answers(share: float, seed: int) -> dict[int, str]:
    """To all rows, of which a part is right."""
    rng = np.random.default_rng(seed)
    return {at: row.target if rng.random() < share else "no idea" for at, row in enumerate(ROWS)}


@given(st.lists(st.sampled_from(["", "a", "b", "c"]), max_size=40))
def test_rows_are_answered_in_one_random_order_whose_groups_stay_together(groups):
    """The same for every run, each row once; rows without a group by themselves."""
    order = answer_order(groups)
    assert sorted(order) == list(range(len(groups))) and order == answer_order(groups)
    names = [groups[at] or at for at in order]
    assert sum(one != other for one, other in itertools.pairwise(names)) == max(len({*names}) - 1, 0)


@pytest.mark.parametrize("count", [1, 7, 30, 60])
def test_a_peek_is_the_confidence_sequence_of_the_rows_that_both_have(count):
    """In the order of answering, up to the first that one of them lacks; turned, it is the difference the other way."""
    first, second, order = answers(0.8, 1), answers(0.5, 2), answer_order([""] * len(ROWS))
    part = {at: first[at] for at in order[:count]} | ({order[-1]: "early"} if count < 50 else {})
    found, turned = peek(part, second, ROWS, "exact_match"), peek(second, part, ROWS, "exact_match")
    rows = order[:count]
    said = [
        metrics.exact_match([texts[at] for at in rows], [ROWS[at].target for at in rows]) for texts in (part, second)
    ]
    low, high = confidence_sequence(np.subtract(*said))
    assert (found.rows, found.units, found.of) == (count, count, 60)
    assert (found.low, found.high) == (low[-1], high[-1]) and found.mean == pytest.approx(np.subtract(*said).mean())
    assert turned.mean == -found.mean and turned.low == pytest.approx(-found.high, abs=2e-3)


def test_of_groups_only_whole_ones_count_as_one_each():
    """A group of which a row is not answered yet does not, nor do those behind it."""
    rows = tuple(Example(one.id, one.input, one.target, f"g{at // 6}") for at, one in enumerate(ROWS))
    first, second, order = answers(0.8, 1), answers(0.5, 2), answer_order([row.group for row in rows])
    for count, units in ((5, 0), (6, 1), (17, 2), (18, 3)):
        found = peek({at: first[at] for at in order[:count]}, second, rows, "exact_match")
        assert (found.units, found.rows) == (units, 6 * units)
    assert "nothing to compare yet" in peek({}, second, rows).words


def test_groups_of_other_sizes_weigh_as_their_rows_do():
    """The mean is over rows, as in the decision, and the interval that of the sequence with the groups' sizes; rows of
    one input are a group too.
    """
    sizes = [1] * 12 + [4] * 12
    names = [f"g{at}" for at, size in enumerate(sizes) for _ in range(size)]
    by_name = tuple(Example(one.id, one.input, one.target, name) for one, name in zip(ROWS, names, strict=True))
    by_input = tuple(Example(one.id, name, one.target) for one, name in zip(ROWS, names, strict=True))
    first, second = answers(0.8, 1), answers(0.5, 2)
    found, other = (peek(first, second, rows, "exact_match") for rows in (by_name, by_input))
    right = np.array([[said[at] == row.target for at, row in enumerate(ROWS)] for said in (first, second)], float)
    assert found.mean == pytest.approx((right[0] - right[1]).mean()) and (found.rows, found.units) == (60, 24)
    order = [at for at in answer_order(groups_of(by_name)) if at == names.index(names[at])]
    values = [(right[0] - right[1])[[name == names[at] for name in names]].mean() for at in order]
    low, high = confidence_sequence(values, weights=[names.count(names[at]) / 4 for at in order])
    assert (found.low, found.high) == (low[-1], high[-1])
    assert groups_of(by_input) == ["" if names.count(name) == 1 else name for name in names]
    assert other.units == 24 and other.mean == found.mean


def test_of_several_pairs_all_intervals_hold_together():
    """Each is that of its share of the level, so that the best pair may be picked after the look."""
    first, second = answers(0.8, 1), answers(0.5, 2)
    alone, among = (peek(first, second, ROWS, "exact_match", among=count) for count in (1, 6))
    assert among.low < alone.low < alone.mean == among.mean < alone.high < among.high
    order = answer_order([""] * len(ROWS))
    right = [[float(said[at] == ROWS[at].target) for at in order] for said in (first, second)]
    assert among.high == confidence_sequence(np.subtract(*right), 0.05 / 6)[1][-1]
    assert "with the 6 of this plan together" in among.words and "together" not in alone.words


def test_an_own_metric_may_be_looked_at_and_what_no_text_has_alone_may_not():
    """ROUGE, exact match and own metrics are of single texts; perplexity and BERTScore are computed at the end."""
    metric = parse_metric("same=exact")
    first, second = answers(0.8, 1), answers(0.5, 2)
    own, usual = peek(first, second, ROWS, "same", [metric]), peek(first, second, ROWS, "exact_match")
    assert (own.mean, own.low, own.high) == (usual.mean, usual.low, usual.high)
    for measure in ("perplexity", "bertscore_f1"):
        with pytest.raises(InputError, match="computed at a run's end"):
            peek(first, second, ROWS, measure)
    with pytest.raises(InputError, match="Unknown measure 'other'"):
        peek(first, second, ROWS, "other", [metric])


def test_the_usual_order_leaves_every_key_what_it_was():
    """The field is not in the canonical text until rows are to be answered in random order."""
    task = specs.Task(name="files", data_sha256="a" * 64)
    usual, random = (
        specs.Run(task=task, method={"kind": "untuned"}, evaluation=specs.Evaluation(n_generate=4, order=order))
        for order in ("length", "random")
    )
    assert "order" not in usual.canonical() and usual.key != random.key


def test_a_row_that_was_stopped_after_a_look_still_counts():
    """Seeds of one row once; of a plan that shows no answer nothing does."""
    task = specs.Task(name="files", data_sha256="a" * 64)
    for order, count in (("random", 1), ("length", 0)):
        scoring = specs.Evaluation(split="test", n_generate=4, order=order)
        one, other = (
            [specs.Run(task=task, method=LoRA(rank=rank), budget=specs.Budget(tokens=9, learning_rate=1e-3),
                       evaluation=scoring, seed=seed) for seed in range(3)] for rank in (2, 4)
        )  # fmt: skip
        assert given_up([*one, *other], one[:2]) == count and given_up(one, one) == 0


def test_a_plan_is_looked_at_while_its_answers_come(tmp_path):
    """By the API: nothing yet, then the rows that both have, then all of them from the record; only if it was asked
    for, since else the rows that are there are the longest.
    """
    studio = Studio(tmp_path)
    project = colours_project(studio, rows=200)
    chosen = Settings(models=(SMALL,), methods=("lora",), seeds=1, tokens=300, max_new_tokens=4, peek=True)
    runs = plan(studio.task(project.id), chosen)
    plan_id = studio.submit(project.id, runs)
    ask = served(studio)
    path = f"/api/v1/projects/{project.id}/peeks?plan={plan_id}&measure=exact_match"
    (none,) = ask("GET", path).json()
    assert (none["rows"], none["of"], none["low"], none["high"]) == (0, 20, -1, 1)
    untuned, lora = studio.jobs(plan=plan_id)
    rows = studio.task(project.id).splits["test"]
    claimed = studio.claim("stand-in", 1)
    finish(studio, claimed, texts=["wrong"] * len(rows))
    order = answer_order([row.group for row in rows])
    write_answers(studio.folder(project.id), lora.run, {at: rows[at].target for at in order[:16]})
    (part,) = ask("GET", path).json()
    assert (part["job"], part["rows"], part["mean"]) == (lora.id, 16, 1) and part["low"] > -1
    assert "16 of 20 rows" in part["words"] and len(answers_of(studio, lora)) == 16
    forget_answers(studio.folder(project.id), lora.run)
    assert answers_of(studio, lora) == {} and answers_of(studio, untuned) == dict(enumerate(["wrong"] * len(rows)))
    assert ask("GET", path.replace("exact_match", "perplexity")).status_code == 422
    other = project_of(studio)
    longest = studio.plans(other.id)[0].id
    assert ask("GET", f"/api/v1/projects/{other.id}/peeks?plan={longest}").status_code == 409
    with pytest.raises(Conflict, match="longest rows first"):
        peeks_of(studio, other.id, longest)
