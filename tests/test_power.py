"""How many seeds and rows before training: from paired differences of our records, and consistent with their plan."""

import dataclasses
import json

import numpy as np
import pytest

from peftbook import cli, tasks
from peftbook.core import specs
from peftbook.core.records import Record, default_store
from peftbook.decision import MEASURES
from peftbook.decision.power import (
    LEVEL,
    SCATTER,
    SPLIT_ROWS,
    Spreads,
    detectable_difference,
    needed,
    scatter_of,
    sight,
    sight_words,
    sights_of,
    spreads,
)
from peftbook.evidence.planning import found_with
from peftbook.evidence.stats import FEWEST_GROUPS, paired_interval, score_interval
from peftbook.methods import preset_method
from peftbook.tasks import TaskData, TaskExample, task_spec

MEASURE = MEASURES["rougeL"]


def a_record(method: str, seed: int, scores, split: str = "test", tokens: int = 1000, failure: str = "") -> Record:
    """A run of the task without groups, with these scores."""
    run = specs.Run(
        task=task_spec("e2e"),
        method=preset_method(method),
        budget=specs.Budget(tokens=tokens, learning_rate=1e-3),
        seed=seed,
        evaluation=specs.Evaluation(split=split, n_loss=len(scores), n_generate=len(scores)),
    )
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
    assert one.intervals == (paired_interval(lora, full, groups=tasks.test_groups("e2e", len(lora[0]))),)


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
    assert (
        detectable_difference(of, examples, seeds, share)
        <= margin
        < detectable_difference(of, int(0.8 * examples), seeds, share)
    )


def test_more_rows_and_more_seeds_find_less():
    """Never more; and no number of rows takes away what seeds change."""
    of = some()
    sizes = [detectable_difference(of, rows, 3, 0.9) for rows in (20, 50, 200, 1000, 10**6)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] < 100
    assert (
        detectable_difference(of, 200, 3, 0.9)
        > detectable_difference(of, 200, 5, 0.9)
        > detectable_difference(of, 200, 10, 0.9)
    )
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


def test_the_scatter_of_a_plan_is_that_of_our_records():
    """The larger of the medians over pairs on docstrings and on E2E, of the embedded model."""
    records = [one for one in default_store().all() if one.spec.model.name == specs.EMBEDDED_MODEL]
    for name, expected in SCATTER.items():
        known = [one for one in spreads(records, MEASURES[name]) if one.task in ("docstrings", "e2e")]
        assert len(known) == 2
        medians = [
            [
                float(np.median([getattr(one, error) * np.sqrt(getattr(one, count)) for one in each.intervals]))
                for each in known
            ]
            for error, count in (("example_se", "examples"), ("seed_se", "seeds"))
        ]
        assert tuple(map(max, medians)) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("seeds", "rows"), [(1, 100), (3, 100), (5, 60)])
def test_a_plan_finds_what_its_sight_says(seeds, rows):
    """By the decision's own interval, on scores that scatter so: four times in five, and luck as often as said."""
    told, rng, pairs = sight("rougeL", rows, seeds), np.random.default_rng(seeds), 1500
    row, seed = SCATTER["rougeL"]
    noise = rng.normal(0, seed, (pairs, seeds, 1)) + rng.normal(0, row, (pairs, 1, rows))
    called = []
    for planted in (0.0, told.difference):
        intervals = [score_interval(one + planted) for one in noise]
        called.append(np.mean([abs(one.mean) > one.half95 for one in intervals]))
    assert called[1] == pytest.approx(0.8, abs=0.06)
    assert called[0] < 0.06 if seeds > 1 else called[0] == pytest.approx(told.mistaken, abs=0.04)


def test_more_rows_and_seeds_see_more_and_more_arms_less():
    """With the seeds that are judged at all."""
    assert (
        sight("rougeL", 400, 3).difference < sight("rougeL", 100, 3).difference < sight("rougeL", 100, 3, 6).difference
    )
    assert sight("rougeL", 100, 5).difference < sight("rougeL", 100, 3).difference
    assert sight("rougeL", 100, 2).difference == sight("rougeL", 19, 3).difference == np.inf
    assert sight("rougeL", 48, 1).difference < sight("rougeL", 48, 1, groups=12).difference < np.inf
    assert sight("rougeL", 48, 1, groups=FEWEST_GROUPS - 1).difference == np.inf


def test_a_plan_says_what_its_test_rows_can_see():
    """With its own seeds first; groups count as a row each; a plan of one arm, or without texts, says nothing."""
    examples = tuple(TaskExample(f"r{at}", f"a{at}", "b", f"g{at // 4}") for at in range(100))
    task = TaskData("files", 1, "{input}", {"train": examples, "validation": examples, "test": examples}, (), "c" * 64)
    runs = [
        specs.Run(
            task=task.spec, method=preset_method(method), seed=seed,
            budget=specs.Budget(tokens=10, learning_rate=1e-3) if method != "untuned" else None,
            evaluation=specs.Evaluation(split="test", n_generate=80),
        )
        for method, seeds in (("untuned", 1), ("lora", 1)) for seed in range(seeds)
    ]  # fmt: skip
    own, *more = sights_of(runs, task)
    assert (own.seeds, own.rows, own.groups) == (1, 80, 20) and [one.seeds for one in more] == [3, 5]
    assert own == sight("rougeL", 80, 1, 2, 20)
    words = sight_words((own, *more))
    assert (
        words.startswith("80 test rows in 20 groups and 1 seed find")
        and "luck would tell" in words
        and "With the luck of training counted too, they find" in words and "with 5 seeds" in words
        and "the worst case" in words
    )
    assert "worst case" not in sight_words([sight("rougeL", 80, 1)])
    repeated = tuple(TaskExample(f"r{at}", f"asked {at // 4}", "b") for at in range(100))
    assert sights_of(runs, dataclasses.replace(task, splits={"test": repeated})) == (own, *more)
    assert "decide nothing" in sight_words([sight("rougeL", 19, 1)]) and sight_words(()) == ""
    assert sights_of(runs[:1], task) == ()


@pytest.mark.parametrize(
    ("measure", "unit", "rests"),
    [
        ("rouge2", " ROUGE-2 ", "as ours did"), ("perplexity", " nats per token ", "as ours did"),
        ("bertscore_f1", " BERTScore F1 ", "as ROUGE-L did"), ("exact_match", " Exact match ", "25 % of the rows"),
        ("total", " in “total” ", "25 % of the rows"),
    ],
)  # fmt: skip
def test_a_sight_speaks_of_what_decides_and_says_what_it_rests_on(measure, unit, rests):
    """Of every measure and of one's own; where nobody knows how it scatters, that is said."""
    words = sight_words([sight(measure, 100, 3)], measure)
    assert unit in words and rests in words and ("ROUGE-L" in words) == (measure == "bertscore_f1")


def test_a_guess_of_how_right_answers_scatter_is_that_of_answers_that_scatter_so():
    """Two methods that are right equally often and disagree on one row in four."""
    rng = np.random.default_rng(0)
    disagree = rng.random(100_000) < SPLIT_ROWS
    differences = np.where(disagree, rng.choice([-1.0, 1.0], 100_000), 0.0)
    assert differences.std() == pytest.approx(scatter_of("exact_match")[0], rel=0.02)
