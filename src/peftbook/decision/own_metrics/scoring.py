"""Scoring with an own metric: texts and targets in, a score a row out; what takes too long is ended and refused."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence

from peftbook.core.errors import InputError
from peftbook.decision.own_metrics.declaration import Metric
from peftbook.runtime.processes import Child

CPU_SECONDS, SECONDS = 4, 120.0  # of its process, and by the clock beside other work
SPENT = (-getattr(signal, "SIGXCPU", 24), -9)


def own_scores(metric: Metric, answers: Sequence[Sequence[str]], targets: Sequence[str]) -> list[list[float]]:
    """The scores, 0–1, of each list of answers, which are to the first so many targets.

    Every target must score 1 as an answer to itself: else right answers would be counted as wrong. Raises InputError,
    one sentence, where one does not, and where scoring takes more than four seconds of a core or 1 GiB.
    """
    most = max(map(len, answers), default=0)
    if most > len(targets):
        raise InputError(f"There are {most} answers for {len(targets)} targets: give one each.")
    told = {"metric": metric.text(), "answers": [list(each) for each in answers], "targets": list(targets[:most])}
    with Child("-m", "peftbook.decision.own_metrics.child", str(CPU_SECONDS), threads=1) as child:
        child.write(json.dumps(told), last=True)
        if not child.wait(SECONDS) or child.status in SPENT:
            raise InputError(
                f"Metric {metric.name!r} was ended over {sum(map(len, answers))} answers after {CPU_SECONDS} seconds: "
                "write it so that it takes less; in a pattern, repeats within repeats like (a+)+ take for ever."
            )
        if child.status:
            why = child.failure()
            raise InputError(why if child.status == 2 else f"Metric {metric.name!r} could not be computed: {why}.")
        return json.loads(child.output_lines()[-1])
