"""Laws of the checks that tell what went wrong with a run: each is nothing without its fault and grows with it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peftbook.scratch import checks
from peftbook.scratch.labels import IGNORE

END, START = 2, 1
ANSWER = [IGNORE, IGNORE, 7, 8, END]
losses = st.lists(st.floats(0.1, 9.0), min_size=6, max_size=30)


@given(losses)
def test_a_mean_of_steps_lies_among_them_and_a_flat_loss_is_all_left(values):
    """What a window shows is never beyond what it covers."""
    smooth = checks.means(values)
    assert len(smooth) == len(values) - 4
    assert min(values) - 1e-9 <= min(smooth) and max(smooth) <= max(values) + 1e-9
    assert checks.remaining([values[0]] * len(values)) == pytest.approx(1)


@given(losses, st.floats(0.1, 10))
def test_the_share_that_remains_has_no_unit_and_the_rise_is_one_of_the_loss(values, scale):
    """Bits instead of nats change the rise and not the share."""
    scaled = [scale * value for value in values]
    assert checks.remaining(scaled) == pytest.approx(checks.remaining(values))
    assert checks.risen(scaled) == pytest.approx(scale * checks.risen(values), abs=1e-9)
    assert checks.risen([*values, min(values)]) == 0 <= checks.risen(values)


def test_an_update_outweighs_its_matrix_by_the_ratio_of_their_norms():
    """Over several matrices squares add, so that twice the weights are twice the norm."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(5, 3, generator=generator), torch.randn(2, 8, generator=generator)]
    assert checks.outweighs([(3 * weight, weight) for weight in weights]) == pytest.approx(3)
    assert checks.outweighs([(weights[0], weights[0]), (0 * weights[1], weights[1])]) == pytest.approx(
        float(weights[0].norm() / torch.cat([weight.flatten() for weight in weights]).norm())
    )


def test_a_step_of_a_quarter_of_a_unit_in_the_last_place_moves_bfloat16_nowhere():
    """bfloat16 has eight significant bits: 1 + 2⁻⁹ is 1 there and not in float32."""
    before = {"w": torch.ones(4, 4), "v": torch.ones(16)}
    step = {name: value + 2**-9 for name, value in before.items()}
    assert checks.stuck(before, step) == 0
    halved = [{name: value.bfloat16() for name, value in one.items()} for one in (before, step)]
    assert checks.stuck(*halved) == 1
    assert checks.stuck(before, before | {"v": step["v"]}) == 0.5


def test_rows_without_an_end_and_tokens_before_an_answer_are_counted():
    """A row of which the end is masked has one label less; one that is graded whole has its prompt as labels."""
    masked, whole = [*ANSWER[:-1], IGNORE], [IGNORE, 5, 7, 8, END]
    assert checks.unended([ANSWER, ANSWER], END) == 0
    assert checks.unended([ANSWER, masked], END) == 0.5
    assert checks.stray([ANSWER, masked], [2, 2]) == 0
    assert checks.stray([ANSWER, whole], [2, 2]) == pytest.approx(1 / 7)


def test_a_test_input_is_found_in_training_whatever_its_case_and_blanks():
    """A copy with another blank is a copy."""
    assert checks.shared(["A lamp", "a tent"], ["a  LAMP\n", "a kettle"]) == 0.5
    assert checks.shared(["A lamp"], ["lamp"]) == 0


def test_prompts_are_compared_token_by_token_and_turns_are_counted():
    """One token too many at the front is another prompt."""
    trained = [[START, 5, START, 6], [START, 7, START, 6]]
    assert checks.unlike(trained, trained) == checks.doubled(trained, trained, START) == 0
    assert checks.unlike(trained, [trained[0], [START, *trained[1]]]) == 0.5
    assert checks.doubled(trained, [[START, *row, START] for row in trained], START) == 1
    assert math.isclose(checks.doubled(trained, [[5], [7]], START), -1)
