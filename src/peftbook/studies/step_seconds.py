"""Are the seconds of a training step computable? Predicted from the machine's rates, measured in every architecture.

The configurations of `activations` at eight times the widths and as many tokens, with the same halves: one was open
while `memory.time_model` was written, the other is held out, and the hash of its names was committed before. Each
process first measures the machine's rates, in some seconds, with no training step of these sizes among what it
measures; then some steps of every configuration. A record holds both, so that its prediction can be computed again.

A first measurement ran while tests shared the machine, against the rule for timings. It was discarded as a whole, and
all of it made again.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.evidence import resampling, stats
from peftbook.evidence.comparison import measured
from peftbook.memory import Configuration
from peftbook.memory.time_model import Rates, step_seconds
from peftbook.studies import Quantity, Verdict, study
from peftbook.studies.activations import PARTS, SIZES, configurations, half, halves_at_hand, texts
from peftbook.studies.memory import SCRATCH
from peftbook.studies.merging import MACHINE, timing

MARGIN = 0.20  # of the measured seconds, for the median
WIDER, LONGER, TRIALS = 8, 8, 3  # so that a step takes tenths of a second


def probe(family: str, part: str) -> specs.Probe:
    """One process that measures the machine's rates and times a family's configurations of one half."""
    larger = texts(family, part, WIDER, LONGER, LONGER)
    return timing("seconds.steps", 0, MACHINE, SCRATCH, configurations=larger, trials=TRIALS)


def ratios(record: Record) -> Iterator[float]:
    """Predicted over measured seconds of every configuration of a record."""
    rates = json.dumps(record.metrics_info["rates"], sort_keys=True)
    measured = [float(one) for one in record.per_example["step_seconds"]]
    for one, seconds in zip(configurations(record), measured, strict=True):
        yield predicted(one, rates) / seconds


@functools.lru_cache(maxsize=1024)
def predicted(one: Configuration, rates: str) -> float:
    """Seconds of a step at rates that are written as JSON."""
    return float(sum(step_seconds(one.shape, one.setup, Rates.from_json(json.loads(rates))).values()))


def median_error(found: list[float]) -> stats.Interval:
    """Median |predicted / measured − 1| with its interval over configurations."""
    errors = np.abs(np.array(found) - 1)
    drawn = np.median(errors[resampling.resamples(len(errors))], axis=1)
    return resampling.statistic_interval(drawn[:, None], len(errors))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each half: predicted over measured seconds, the median error, and how long the rates took."""
    out: dict[str, Quantity] = {}
    for name, keys, records in halves_at_hand(probe, store):
        found = [one for record in records for one in ratios(record)]
        out[f"{name}_ratio"] = Quantity.middle(found, "×", keys, n=len(found))
        error = median_error(found)
        out[f"{name}_median_error"] = Quantity(
            100 * error.mean, "%", keys, 100 * error.low, 100 * error.high, n=len(found), digits=1
        )
        spent = measured(records, "calibration_seconds")
        out[f"{name}_calibration"] = Quantity.middle(spent, "s", keys, digits=1)
    return out


@study("step_seconds", lambda store: [probe(family, part) for part in PARTS for family in SIZES], quantities)
def verdict(store: Store) -> Verdict:
    """Is the median error of the held-out configurations within the margin?"""
    found = [one for record in half(probe, "held-out", store) for one in ratios(record)]
    error = median_error(found)
    outcome = "reproduced" if error.high <= MARGIN else "refuted" if error.low > MARGIN else "undecided"
    sentence = (
        f"The predicted seconds of a step are off by {error.mean:.1%} in the median of {len(found)} held-out "
        f"configurations of {len(SIZES)} architectures ({error.low:.1%} to {error.high:.1%}); predicted over measured "
        f"is from {min(found):.2f} to {max(found):.2f}."
    )
    return Verdict(outcome, sentence, ("held_out_median_error", "held_out_ratio"))
