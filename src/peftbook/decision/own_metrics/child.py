"""The process that scores for `own_metrics.scoring`: python -m peftbook.decision.own_metrics.child CPU_SECONDS.

Standard input: {"metric", "answers", "targets"}, JSON.  Standard output: the scores; or one sentence, and status 2.
"""

from __future__ import annotations

import json
import sys

from peftbook.core.errors import InputError
from peftbook.decision.own_metrics.declaration import parse_metric
from peftbook.decision.own_metrics.kinds import scorer
from peftbook.runtime.processes import limit_process

MEMORY_BYTES = 1 << 30


def scores(told: dict) -> list[list[float]]:
    """The scores of each list of answers. Raises InputError for a target that scores less than 1 by itself."""
    metric, targets = parse_metric(told["metric"], files=False), told["targets"]
    score = scorer(metric)
    for row, target in enumerate(targets, 1):
        if score(target, target) < 1:
            raise InputError(
                f"By metric {metric.name!r} the target of row {row} is itself no right answer "
                f"({target[:60]!r}): change the metric, or the row."
            )
    return [[score(text, target) for text, target in zip(each, targets, strict=False)] for each in told["answers"]]


def main() -> None:
    """Score what standard input says."""
    told = json.load(sys.stdin)
    try:
        found = scores(told)
    except InputError as error:
        print(error)
        raise SystemExit(2) from None
    except (MemoryError, RecursionError) as error:
        name = json.loads(told["metric"])["name"]
        print(f"Metric {name!r} needs too much memory ({type(error).__name__}): declare a smaller one.")
        raise SystemExit(2) from None
    print(json.dumps(found))


if __name__ == "__main__":
    limit_process(int(sys.argv[1]), MEMORY_BYTES)
    main()
