"""How many seeds and rows before training: from paired differences of our records, and consistent with their plan."""

import json

import numpy as np
import pytest

from peftbook import cli, specs
from peftbook.decision import MEASURES
from peftbook.decision.power import LEVEL, Spreads, found, needed, spreads
from peftbook.evidence.planning import found_with
from peftbook.evidence.stats import paired_interval
from peftbook.methods import named
from peftbook.records import Record
from peftbook.tasks import task_spec

MEASURE = MEASURES["rougeL"]


def a_record(method: str, seed: int, scores, split: str = "test", tokens: int = 1000, failure: str = "") -> Record:
    """A run of the task without groups, with these scores."""
    run = specs.Run(
        task=task_spec("e2e"), method=named(method), budget=specs.Budget(tokens=tokens, learning_rate=1e-3), seed=seed,
        evaluation=specs.Evaluation(split=split, n_loss=len(scores), n_generate=len(scores)),
    )  # fmt: skip
    return Record(key=run.key, spec=run, per_example={"rougeL": [*map(float, scores)]}, failure=failure)


def drawn(method: str, seed: int, examples: int = 60) -> np.ndarray:
    """Scores with a part of the method, of the seed, and of each example."""
    draw = np.random.default_rng([*method.encode(), seed])
    return np.random.default_rng(1).normal(0.4, 0.2, examples) + draw.normal(0, 0.02) + draw.normal(0, 0.05, examples)


def test_every_two_arms_with_three_shared_seeds_are_paired():
    """By seed and example; what was trained or scored otherwise is no partner."""
    arms = {name: {seed: drawn(name, seed) for seed in seeds} for name, seeds in
            {"lora": (1, 2, 3), "full": (3, 1, 2), "prompt": (1, 2)}.items()}  # fmt: skip
    records = [a_record(name, seed, scores) for name, known in arms.items() for seed, scores in known.items()]
    others = [
        *(a_record("qlora", seed, drawn("qlora", seed), split="validation") for seed in (1, 2, 3)),
        *(a_record("ia3", seed, drawn("ia3", seed), tokens=2000) for seed in (1, 2, 3)),
        *(a_record("norm", seed, drawn("norm", seed), failure="diverged") for seed in (1, 2, 3)),
    ]
    (one,) = spreads([*records, *others], MEASURE)
    lora, full = ([arms[name][seed] for seed in (1, 2, 3)] for name in ("lora", "full"))
    assert (one.task, one.model) == ("e2e", specs.EMBEDDED_MODEL)
    assert one.intervals == (paired_interval(lora, full),)


def some(count: int = 9) -> Spreads:
    """Spreads of invented pairs, of which some are wide."""
    pairs = []
    for at in range(count):
        first, second = ([(1 + at / 3) * drawn(f"{name}{at}", seed) for seed in range(5)] for name in ("lora", "full"))
        pairs.append(paired_interval(first, second))
    return Spreads("e2e", "any", tuple(pairs))


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("margin", [0.04, 0.06])
def test_what_is_needed_finds_the_margin_in_so_many_pairs(margin, share):
    """And with four fifths of its rows, or a seed less and as many rows again, it would not, or costs no less."""
    of = some()
    seeds, examples = needed(of, margin, share)
    enough = sum(found_with(one, examples, seeds, LEVEL) <= margin for one in of.intervals)
    fewer = sum(found_with(one, 0.8 * examples, seeds, LEVEL) <= margin for one in of.intervals)
    assert enough >= share * len(of.intervals) > fewer
    assert found(of, examples, seeds, share) <= margin < found(of, int(0.8 * examples), seeds, share)


def test_more_rows_and_more_seeds_find_less():
    """Never more; and no number of rows takes away what seeds change."""
    of = some()
    sizes = [found(of, rows, 3, 0.9) for rows in (20, 50, 200, 1000, 10**6)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] < 100
    assert found(of, 200, 3, 0.9) > found(of, 200, 5, 0.9) > found(of, 200, 10, 0.9)
    assert needed(of, 1e-6, 0.5) is None


def test_the_shipped_records_answer(capsys):
    """For every measure that some runs were scored by, as JSON with no word that JSON lacks."""
    assert cli.main(["power", "--json", "--rows", "200"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["margin"] == MEASURE.margin and said["spreads"]
    for one in said["spreads"]:
        assert one["found"]["half of them"] <= one["found"]["nine of ten"]
        assert one["pairs"] and all(each is None or len(each) == 2 for each in one["needed"].values())
    assert cli.main(["power", "--measure", "perplexity"]) == 0
    assert "nats per token takes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--measure", "rouge9"], "rouge9"), (["--margin", "0"], "difference of 0"),
        (["--margin", "-1"], "-1"), (["--seeds", "2"], "--seeds 2 cannot show"), (["--rows", "19"], "19 test rows"),
    ],
)  # fmt: skip
def test_bad_questions_are_refused(words, said, capsys):
    """In a sentence with the value."""
    assert cli.main(["power", *words]) == 2
    assert said in capsys.readouterr().err
