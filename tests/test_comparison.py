"""Arms, seeds and examples: every interval is that of a table made by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftbook.core.errors import InputError
from peftbook.evidence import metrics, resampling, stats
from peftbook.evidence.comparison import corpus_bleu, has_column, keys_of, paired, score, shared, table, weights

TOKENS = np.array([3.0, 5.0, 9.0, 4.0, 7.0, 2.0])
SHAPES = {"seed": st.integers(0, 99), "seeds": st.integers(2, 5)}


def record(key: str, columns: dict[str, np.ndarray]) -> SimpleNamespace:
    """What is read of a record."""
    return SimpleNamespace(key=key, per_example={name: values.tolist() for name, values in columns.items()})


def arm(name: str, seeds: int, examples: int = 6) -> list[SimpleNamespace]:
    """Invented records of an arm: summed nats, a score, and label tokens."""
    rng, tokens = np.random.default_rng(ord(name)), np.resize(TOKENS, examples)
    return [
        record(f"{name}{seed}", {"loss_nats": tokens * nats, "rougeL": rouge, "label_tokens": tokens})
        for seed, (nats, rouge) in enumerate(rng.uniform(size=(seeds, 2, examples)))
    ]


def written(name: str, seeds: int, share: float, examples: int = 8) -> list[SimpleNamespace]:
    """Invented records of BLEU's statistics. share: of the references' length that is written."""
    rng, out = np.random.default_rng(ord(name)), []
    for seed in range(seeds):
        length = rng.integers(8, 14, examples).astype(float)
        columns = {"bleu_length": length, "bleu_reference_length": (length / share).round()}
        for n in range(1, 5):
            columns |= {f"bleu_total_{n}": length - n + 1, f"bleu_matched_{n}": length - n}
        out.append(record(f"{name}{seed}", columns))
    return out


@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_a_loss_is_weighted_by_label_tokens_and_another_score_is_not(seeds):
    """Σ nats / Σ tokens of every seed, and the plain mean of the rest."""
    records = arm("a", seeds)
    nats = np.array([record.per_example["loss_nats"] for record in records])
    rouge = np.array([record.per_example["rougeL"] for record in records])
    assert (table(records, "rougeL") == rouge).all()
    assert score(records, "loss_nats").mean == pytest.approx((nats.sum(axis=1) / TOKENS.sum()).mean())
    assert score(records, "rougeL").mean == pytest.approx(rouge.mean())
    assert score(records, "loss_nats") == stats.score_interval(nats, TOKENS)
    assert score(records, "rougeL") == stats.score_interval(rouge)
    assert weights(records, "merged_loss_nats") == TOKENS.tolist() and weights(records, "rougeL") is None


@pytest.mark.parametrize("column", ["loss_nats", "rougeL"])
def test_a_paired_difference_is_that_of_the_tables(column):
    """Seed by seed and example by example; the other way round it changes its sign, against itself it is nought."""
    first, second = arm("a", 3), arm("b", 3)
    pairs = zip(first, second, strict=True)
    rows = [np.subtract(one.per_example[column], two.per_example[column]) for one, two in pairs]
    found = paired(first, second, column)
    assert found == stats.score_interval(rows, TOKENS if column == "loss_nats" else None)
    total = TOKENS.sum() if column == "loss_nats" else len(TOKENS)
    assert found.mean == pytest.approx(np.sum(rows) / total / 3)
    back, none = paired(second, first, column), paired(first, first, column)
    assert (back.mean, back.half95) == pytest.approx((-found.mean, found.half95))
    assert none.mean == none.half95 == 0


@given(**SHAPES)
def test_an_untuned_arm_is_set_against_every_seed(seed, seeds):
    """As if its one record had been made with each of them; two such arms leave examples alone."""
    tuned, untuned = arm(chr(100 + seed), seeds), arm("u", 1)
    assert paired(untuned, tuned, "loss_nats") == paired(untuned * seeds, tuned, "loss_nats")
    assert paired(tuned, untuned, "rougeL").seeds == seeds
    alone = paired(untuned, arm("w", 1), "rougeL")
    assert alone.seeds == 1 and alone.seed_se == 0


def test_examples_that_share_a_group_are_one_unit():
    """In a score and in a difference; names of examples that were not scored are not looked at."""
    first, second, groups = arm("a", 3, examples=12), arm("b", 3, examples=12), ("x", "y", "z", "w") * 3
    expected = stats.score_interval(table(first, "rougeL") - table(second, "rougeL"), None, groups)
    found = paired(first, second, "rougeL", (*groups, "x", "v"))
    assert found == expected and found.groups == 4 and found.by_example is not None
    assert paired(first, second, "rougeL").mean == found.mean
    tokens = np.resize(TOKENS, 12)
    assert score(first, "loss_nats", (*groups, "v")) == stats.score_interval(table(first, "loss_nats"), tokens, groups)


def test_bleu_is_of_the_corpus_and_paired_over_replicates():
    """Its mean is that of the seeds' own; of an arm and itself it is nought without error, and groups are left out."""
    first, second, groups = written("a", 3, 1.0), written("b", 3, 0.6), ("x", "y", "z", "w") * 2
    values = corpus_bleu(first)
    assert values.shape == (1 + resampling.DRAWS, 3)
    assert values[0] == pytest.approx([metrics.bleu(record.per_example) for record in first])
    assert score(first, "bleu").mean == pytest.approx(values[0].mean())
    found = paired(second, first, "bleu")
    assert found.mean == pytest.approx((corpus_bleu(second) - values)[0].mean()) and found.mean < 0
    assert paired(first, first, "bleu").half95 == 0
    assert paired(second, first[:1], "bleu") == paired(second, first[:1] * 3, "bleu")
    without = {name: [value for value, group in zip(values, groups, strict=True) if group != "x"]
               for name, values in first[0].per_example.items()}  # fmt: skip
    assert corpus_bleu(first, groups)[1, 0] == pytest.approx(metrics.bleu(without))
    assert score(first, "bleu", (*groups, "v")).groups == 4


def test_arms_are_compared_over_the_seeds_that_both_have():
    """Where a seed changes nothing, the first record stands for every seed of the other arm."""
    one, two = {1: "a1", 2: "a2", 3: "a3"}, {2: "b2", 3: "b3", 5: "b5"}
    assert shared(one, two, (True, True)) == (["a2", "a3"], ["b2", "b3"])
    assert shared({0: "u"}, two, (False, True)) == (["u"] * 3, ["b2", "b3", "b5"])
    assert shared(one, {0: "u"}, (True, False)) == (["a1", "a2", "a3"], ["u"] * 3)
    assert shared({0: "u"}, {4: "w"}, (False, False)) == (["u"], ["w"])
    assert shared({1: "a1"}, {2: "b2"}, (True, True)) == ([], [])


def test_arms_with_other_examples_or_seeds_are_refused():
    """One sentence with both counts; BLEU, whose replicates have one shape, is no exception."""
    with pytest.raises(InputError, match=r"have 18 and 21 scores: score the same examples"):
        paired(arm("a", 3), arm("b", 3, examples=7), "rougeL")
    with pytest.raises(InputError, match="have 18 and 12 scores"):
        paired(arm("a", 3), arm("b", 2), "rougeL")
    with pytest.raises(InputError, match="have 24 and 27 scores"):
        paired(written("a", 3, 1.0), written("b", 3, 1.0, examples=9), "bleu")


def test_the_runs_behind_a_value_are_named_in_the_order_of_the_arms():
    """And a column is there only if every record has it."""
    assert keys_of(arm("a", 2), arm("b", 1)) == ("a0", "a1", "b0") and keys_of() == ()
    assert has_column(arm("a", 2), "rougeL") and not has_column([*arm("a", 2), *written("b", 1, 1.0)], "rougeL")
    assert (
        has_column(written("a", 2, 1.0), "bleu") and not has_column(arm("a", 2), "bleu") and not has_column([], "bleu")
    )
