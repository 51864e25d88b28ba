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


def test_what_is_needed_finds_the_margin_and_little_less_does_not():
    """The plan for a margin finds it, and with nine tenths of its rows, or a smaller margin, it would not do."""
    scores = [[drawn(name, seed) for seed in range(5)] for name in ("lora", "full")]
    of = Spreads("e2e", "any", (paired_interval(*scores),))
    for margin in (0.01, 0.02, 0.04):
        ((seeds, examples),) = needed(of, margin)
        assert found(of, examples, seeds)[0] <= margin
        assert (
            examples == of.intervals[0].examples or found_with(of.intervals[0], 0.85 * examples, seeds, LEVEL) > margin
        )
    assert found(of, 100, 5)[0] > found(of, 400, 5)[0] > found(of, 400, 10)[0]


def test_the_shipped_records_answer(capsys):
    """For every measure that some runs were scored by; more rows find less."""
    assert cli.main(["power", "--json", "--rows", "200"]) == 0
    few = json.loads(capsys.readouterr().out)
    assert cli.main(["power", "--json", "--rows", "2000"]) == 0
    many = json.loads(capsys.readouterr().out)
    assert few["margin"] == MEASURE.margin and few["spreads"]
    for one, other in zip(few["spreads"], many["spreads"], strict=True):
        assert all(less < more for less, more in zip(other["found"], one["found"], strict=True))
        assert one["needed"] == other["needed"] and len(one["needed"]) == len(one["intervals"])
    assert cli.main(["power", "--measure", "perplexity"]) == 0
    assert "nats per token takes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--measure", "rouge9"], "rouge9"), (["--margin", "0"], "difference of 0"),
        (["--margin", "-1"], "-1"), (["--seeds", "2"], "Two seeds decide nothing"),
    ],
)  # fmt: skip
def test_bad_questions_are_refused(words, said, capsys):
    """In a sentence with the value."""
    assert cli.main(["power", *words]) == 2
    assert said in capsys.readouterr().err
