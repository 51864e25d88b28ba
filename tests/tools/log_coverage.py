"""How often the interval of `decide` covers, and how often it calls a difference that is none, on scores of real runs.

    python tests/tools/log_coverage.py [DRAWS]

Two logs of the same examples are taken for all examples that there are. Samples are drawn from them with replacement,
and each is decided as if its difference were not known. For the false alarms the scores of the two models change
places, or not, example by example: then there is no difference. Beside it stand the bootstrap's percentiles and, of
right and wrong answers, McNemar's exact test.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from scipy import stats as scipy_stats

from peftbook.core.records import Record, default_store
from peftbook.core.specs import Run
from peftbook.evidence.stats import p_value, score_interval

SIZES = (50, 100, 200, 300)
REPEATS = 500  # of a bootstrap
LOGS = (("sql", "execution_match"), ("sql", "exact_match"), ("e2e", "rougeL"))
HEAD = (
    f"{'scores':46} {'sample':>6} | covered {'decide':>7} {'bootstrap':>9} | "
    f"alarms {'decide':>7} {'bootstrap':>9} McNemar"
)


def pairs(task: str, column: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name and scores of: two methods, and two seeds of one; of runs that were scored on at least 300 examples."""
    found: dict[str, list[Record]] = {}
    for record in sorted(default_store().all(), key=lambda one: one.key):
        if (
            isinstance(record.spec, Run)
            and record.spec.task.name == task
            and len(record.per_example.get(column, ())) >= 300
        ):
            found.setdefault(record.spec.method.kind, []).append(record)
    lora, other = found["lora"], next(each for kind, each in found.items() if kind not in ("lora", "untuned"))
    for name, first, second in (("two methods", lora[0], other[0]), ("two seeds of LoRA", lora[0], lora[1])):
        yield f"{task} {column}, {name}", *(np.array(one.per_example[column], float) for one in (first, second))


def bootstrap(difference: np.ndarray, draw: np.random.Generator) -> tuple[float, float]:
    """The percentiles of resampled means."""
    means = difference[draw.integers(0, len(difference), (REPEATS, len(difference)))].mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def mcnemar(difference: np.ndarray) -> float:
    """The exact test on the examples that one model alone gets right."""
    won, lost = int((difference > 0).sum()), int((difference < 0).sum())
    return float(scipy_stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0


def shares(first: np.ndarray, second: np.ndarray, size: int, draws: int, seed: int = 0) -> dict[str, float]:
    """Shares of the samples in which an interval covers, and in which a difference is called that is none."""
    draw, difference = np.random.default_rng(seed), first - second
    truth, hits = (
        difference.mean(),
        dict.fromkeys(("decide", "bootstrap", "decide alarms", "bootstrap alarms", "McNemar alarms"), 0),
    )
    for _ in range(draws):
        sample = difference[draw.integers(0, len(difference), size)]
        none = sample * draw.choice((-1, 1), size)
        one = score_interval(sample[None], None)
        low, high = bootstrap(sample, draw)
        hits["decide"] += one.low <= truth <= one.high
        hits["bootstrap"] += low <= truth <= high
        hits["decide alarms"] += p_value(score_interval(none[None], None)) < 0.05
        low, high = bootstrap(none, draw)
        hits["bootstrap alarms"] += not low <= 0 <= high
        hits["McNemar alarms"] += mcnemar(none) < 0.05
    return {name: count / draws for name, count in hits.items()}


def main(draws: int) -> None:
    """Print the table."""
    print(HEAD)
    for task, column in LOGS:
        for name, first, second in pairs(task, column):
            whole = np.isin([first, second], (0, 1)).all()
            for size in SIZES:
                found = shares(first, second, size, draws)
                exact = f"{found['McNemar alarms']:7.1%}" if whole else f"{'–':>7}"
                print(
                    f"{name:46} {size:6} |         {found['decide']:7.1%} {found['bootstrap']:9.1%} |        "
                    f"{found['decide alarms']:7.1%} {found['bootstrap alarms']:9.1%} {exact}",
                    flush=True,
                )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
