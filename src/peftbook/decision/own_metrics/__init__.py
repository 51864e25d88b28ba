"""Own metrics: what a right answer is, declared by who has the data and never code, as a score from 0 to 1 a row.

    total=number:rel=0.01           the last number, within 1 % of the target's
    label=regex:label: (\\w+)        what the brackets find is what they find in the target
    order=json:fields=item,amount   the share of these fields that are right

A metric is computed from texts that lie beside their records, so that it may be declared after the training. Scoring
happens in a process of its own with little time and memory: no pattern, schema or query can hold up a worker.
"""

from peftbook.decision.own_metrics.declaration import Metric, declared, parse_metric, read_metrics
from peftbook.decision.own_metrics.scoring import own_scores

__all__ = ["Metric", "declared", "own_scores", "parse_metric", "read_metrics"]
