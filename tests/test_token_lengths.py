"""The shipped counts of tokens are those of the pinned tokenizer and data, and the figures draw what they say."""

import numpy as np
import pytest
from tiny import real_tokenizer
from token_lengths import LONGEST, SPELT, TASKS, spell

from peftbook.core import specs
from peftbook.scratch.packing import padding_share
from peftbook.tasks import get_task, task_spec
from peftbook.training.encode import batch_plan, encode_example
from peftbook.views.figures import data


def test_counts_name_the_data_and_the_tokenizer_of_the_book():
    """New data or another tokenizer: run the tool again."""
    counted = data.shipped_counts()
    assert counted["revision"] == specs.EMBEDDED_REVISION and tuple(counted["tasks"]) == TASKS
    assert all(counted["tasks"][name]["data_sha256"] == task_spec(name).data_sha256 for name in TASKS)


@pytest.mark.model
@pytest.mark.parametrize("name", ["docstrings", "sql"])
def test_counts_are_what_training_encodes(name):
    """The first of each split, again."""
    task = get_task(name)
    for split, examples in task.splits.items():
        encoded = [encode_example(real_tokenizer(), task, example, LONGEST) for example in examples[:40]]
        assert data.token_counts(name, split)[:40].tolist() == [
            [example.start, example.label_tokens] for example in encoded
        ]
        assert len(data.token_counts(name, split)) == len(examples)


@pytest.mark.model
def test_the_strip_is_what_training_encodes():
    """Token by token, and graded where the loop grades."""
    task = get_task("docstrings")
    example = next(candidate for candidate in task.splits["validation"] if candidate.id == SPELT)
    tokens = [list(pair) for pair in spell(real_tokenizer(), task, example)]
    assert data.shipped_counts()["example"]["tokens"] == tokens
    encoded = encode_example(real_tokenizer(), task, example, LONGEST)
    assert [kind in ("target", "end") for _, kind in tokens] == [at >= encoded.start for at in range(len(encoded.ids))]
    assert tokens[-1] == ["<|im_end|>", "end"]


def test_what_truncation_takes_only_grows_as_the_limit_falls():
    """All is lost below the shortest prompt, nothing at the longest example."""
    for name in TASKS:
        counts = data.token_counts(name)
        whole, end = np.array([data.lost(counts, limit) for limit in data.LIMITS]).T
        assert (np.diff(whole) <= 0).all() and (np.diff(end) <= 0).all() and (whole <= end).all()
        assert data.lost(counts, int(counts[:, 0].min())) == (1.0, 1.0)
        assert data.lost(counts, int(counts.sum(axis=1).max())) == (0.0, 0.0)


def test_similarity_is_one_for_itself_and_zero_for_a_stranger():
    """And symmetric, and that of the sets."""
    sets = [data.shingles(text) for text in ("def f(x): return x", "def f(x): return y", "1 2 3 4")]
    scores = data.jaccard(sets, sets)
    assert np.allclose(np.diag(scores), 1) and scores[0, 2] == 0
    assert scores[0, 1] == scores[1, 0] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))


def test_a_random_split_gives_more_away():
    """Data chapter: the nearest function is nearer and copying its sentence scores more; by package never its own."""
    similarity, index = data.split_similarities()
    splits = get_task("docstrings").splits
    everything = [example for split in splits.values() for example in split]
    first = len(everything) - len(splits["test"])
    assert (similarity[0] > similarity[1]).mean() > (similarity[0] < similarity[1]).mean()
    for row, (random, package) in enumerate(index.T):
        assert random != first + row and everything[package].group != everything[first + row].group
    scores = data.lookup()
    assert scores["random split"].mean() > 1.5 * scores["split by package"].mean() > scores["any sentence"].mean()


def test_the_drawn_pools_waste_what_the_books_plan_wastes():
    """The figure's batches are those of the training loop up to the draw."""
    for name in ("docstrings", "sql"):
        lengths = data.token_counts(name).sum(axis=1).tolist()
        plan = batch_plan(lengths, data.BATCH, sum(lengths), 0)
        assert padding_share(plan, lengths) == pytest.approx(data.waste(name)["sorted in pools"], abs=0.01)
