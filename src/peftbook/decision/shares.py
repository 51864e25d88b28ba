"""Shares near 0 and 1: where nearly all rows have the same score, they say too little of the spread.

With 60 right answers of 60 it would be zero, and with 58 it rests on two rows: the interval of a mean covers too seldom
there. As is usual for proportions, rows are added at both ends of the scale before it is taken.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace

import numpy as np

from peftbook.evidence.stats import FEWEST_DIFFERENT, Groups, Interval, score_interval


def is_rough(scores: np.ndarray) -> bool:
    """Whether scores, (seeds, rows), are 0 or 1 alone, or one of the two on all but fewer than ten rows."""
    whole = [(scores == end).all(axis=0).sum() for end in (0.0, 1.0)]
    return bool(np.isin(scores, (0.0, 1.0)).all()) or scores.shape[1] - max(whole) < FEWEST_DIFFERENT


def difference_of_shares(found: Interval, first: np.ndarray, second: np.ndarray, groups: Groups = ()) -> Interval:
    """The interval of a paired difference; of rough scores with the errors of two rows more, one won and one lost.

    found: of first − second by the rule, tables of (seeds, rows), with the groups of the rows. The mean stays what it
    was. Where one of two models loses 3 % of 60 rows and wins none, the rule covers that 84 times of 100, and with the
    rows that are added at least 93 times, whatever is lost.
    Source: Bonett and Price 2012, with the difference that was seen in the middle and t in place of the normal.
    """
    if not (np.isfinite(found.half95) and is_rough(first) and is_rough(second)):
        return found
    more = with_ends(found, first - second, groups, (-1.0, 1.0))
    return replace(
        more, mean=found.mean, examples=found.examples, groups=found.groups, by_example=found.by_example, reach=1.0
    )


def ends_of_share(found: Interval, scores: np.ndarray, groups: Groups = ()) -> tuple[float, float]:
    """The 95 % interval of a share within 0 and 1; of rough scores that of four rows more, two right and two wrong.

    Source: Agresti and Coull 1998, with t in place of the normal.
    """
    rough = np.isfinite(found.half95) and is_rough(scores)
    one = with_ends(found, scores, groups, (0.0, 0.0, 1.0, 1.0)) if rough else found
    return max(0.0, min(one.low, found.mean)), min(1.0, max(one.high, found.mean))


def with_ends(found: Interval, values: np.ndarray, groups: Groups, ends: tuple[float, ...]) -> Interval:
    """The interval of the rule with these scores as rows more; as groups of the usual size where rows form groups."""
    size = max(1, round(found.examples / found.groups)) if found.groups else 1
    more = np.broadcast_to(np.repeat(ends, size), (len(values), size * len(ends)))
    names: list[Hashable] = [*groups, *(("more", at // size) for at in range(more.shape[1]))] if len(groups) else []
    return score_interval(np.concatenate([values, more], axis=1), None, names)
