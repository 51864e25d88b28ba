"""Systems without a model: what they write is right or wrong by execution, whatever words say."""

from __future__ import annotations

import pytest

from peftbook.evidence import metrics
from peftbook.scratch import no_learning
from peftbook.tasks import get_task


@pytest.fixture(scope="module")
def examples():
    return get_task("sql").splits["test"][:40]


def test_a_wrapped_query_has_the_same_result_in_other_words(examples):
    """Execution is blind to wording and exact match to everything else."""
    texts = [no_learning.wrapped(example.target) for example in examples]
    assert get_task("sql").judge(texts, examples) == [1.0] * len(examples)
    assert not any(metrics.exact_match(texts, [example.target for example in examples]))


def test_a_turned_comparison_is_invisible_to_rouge(examples):
    """The tokeniser of rouge_score drops < and >, so every turned query scores one, and turning twice is nothing."""
    texts = [no_learning.turned(example.target) for example in examples]
    assert metrics.rouge(texts, [example.target for example in examples])["rougeL"] == [1.0] * len(examples)
    assert [no_learning.turned(text) for text in texts] == [example.target for example in examples]
    compared = [example for example in examples if "<" in example.target or ">" in example.target]
    right = get_task("sql").judge([no_learning.turned(example.target) for example in compared], compared)
    assert len(compared) > 5 and sum(right) < 0.2 * len(compared)


def test_the_nearest_shares_most_words():
    """The Jaccard index decides, and the first of equals is taken."""
    words = no_learning.words
    known = [words(question) for question in ("What is the mass?", "What is the mean mass of all?", "what IS the mass")]
    assert no_learning.nearest(words("What is the mass of 3?"), known) == 0
    assert no_learning.nearest(words("mean mass of all"), known) == 1


def test_a_copied_query_gets_the_table_and_keeps_the_columns():
    """Only whole words are the table's name."""
    assert no_learning.copied("SELECT day FROM days", "days", "trips") == "SELECT day FROM trips"
    assert no_learning.copied("SELECT holidays FROM days", "days", "trips") == "SELECT holidays FROM trips"


@pytest.mark.parametrize(
    ("code", "spoken"),
    [
        ("def get_user_id(x):\n    pass", "get user id"),
        ("    def _run(self): ...", "run"),
        ("def __len__(self):", "len"),
    ],
)
def test_a_name_is_read_in_words(code, spoken):
    """Underscores are blanks, and those at the ends are dropped."""
    assert " ".join(no_learning.name_in_words(code).split()) == spoken
