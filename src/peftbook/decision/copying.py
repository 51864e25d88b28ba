"""What an answer is worth that only repeats its input, or is always the same: what no training should lose to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from peftbook.decision.own_metrics import Metric, own_scores
from peftbook.decision.terms import Measure
from peftbook.evidence import metrics
from peftbook.evidence.stats import Groups, Interval, score_interval
from peftbook.tasks import TaskExample

COPIED_WORDS = 200  # of the input: an answer is no longer, and ROUGE-L takes their product


def copies(examples: Sequence[TaskExample]) -> list[str]:
    """The inputs as answers, each cut after 200 words."""
    return [" ".join(example.input.split()[:COPIED_WORDS]) for example in examples]


def commonest_target(examples: Sequence[TaskExample]) -> str:
    """The target that occurs most often, as a label does; nothing where each occurs once."""
    found = Counter(example.target for example in examples).most_common(1)
    return found[0][0] if found and found[0][1] > 1 else ""


def score_of(
    said: Sequence[str], examples: Sequence[TaskExample], measure: Measure, groups: Groups, metric: Metric | None
) -> Interval | None:
    """The score of what was said; None where nothing was, and for a measure that needs a model.

    examples: those that were scored.  metric: if the measure is one of the user's own.
    """
    wanted = [example.target for example in examples]
    if said and metric is not None:
        return score_interval(own_scores(metric, [said], wanted), None, groups)
    if not said or not (measure.name.startswith("rouge") or measure.name == "exact_match"):
        return None
    exact = measure.name == "exact_match"
    scores = metrics.exact_match(said, wanted) if exact else metrics.rouge(said, wanted)[measure.column]
    return score_interval([scores], None, groups)
