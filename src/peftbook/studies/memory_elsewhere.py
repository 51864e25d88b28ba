"""Does `fit` tell what others measured on GPUs? Published peaks, predicted from defaults and from what is stated.

The rows are in `data/memory_elsewhere.toml`, each with its address, the words of its source, and only the settings that
the source states; `peftbook.memory.stacks` has the rest. On the development rows the stacks, the ways to compute a loss
and the reserve were made. The judged rows were searched for and committed when all that stood; a record holds what the
model of that commit said of them.

A figure is of torch's tensors (allocated), of its allocator (reserved), of a whole device, of the card on which the
longest row just fits, or of a card that was not enough (oom), which is not in the errors.
"""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftbook import specs
from peftbook.memory import Configuration, read_shape
from peftbook.memory.fit import BESIDE, GPU_RESERVE
from peftbook.memory.stacks import setup_in
from peftbook.records import Record, Store
from peftbook.studies import Quantity, Verdict, study
from peftbook.studies.memory import SCRATCH
from peftbook.tasks import DATA

__all__ = ["HALVES", "Row", "errors", "false_promises", "probe", "ratio_again", "ratios_by_stack", "rows"]

HALVES = ("development", "judged")
MARGIN, LEAST = 0.10, 0.90  # of a row's figure; of the rows
UNITS = {"GiB": 2**30, "GB": 10**9}


@dataclass(frozen=True)
class Row:
    """A published figure. bytes, of: how much, of what.  stack, model, settings: how it came about, as far as is said.

    source: where.  says: its words.  note: what is not certain.
    """

    name: str
    half: str
    source: str
    says: str
    measured: float
    unit: str
    of: str
    stack: str
    model: str
    settings: Mapping[str, Any]
    note: str = ""

    @property
    def bytes(self) -> int:
        """The figure in bytes."""
        return round(self.measured * UNITS[self.unit])

    @property
    def text(self) -> str:
        """What a prediction rests on, as a probe's setting."""
        given = {name: getattr(self, name) for name in ("name", "stack", "model", "settings", "bytes", "of")}
        return json.dumps(given, sort_keys=True)


@functools.cache
def rows(half: str) -> tuple[Row, ...]:
    """The rows of a half, in the order of the file."""
    known = tomllib.loads((DATA / "memory_elsewhere.toml").read_text(encoding="utf-8")).get("row", [])
    return tuple(Row(**one) for one in known if one["half"] == half)


def probe(half: str) -> specs.Probe:
    """The predictions of a half."""
    texts = tuple(one.text for one in rows(half))
    return specs.Probe(measure="elsewhere.predictions", settings={"rows": texts}, model=SCRATCH)


def runs(store: Store) -> list[specs.Probe]:
    """Both halves."""
    return [probe(half) for half in HALVES]


def per_row(record: Record, name: str, half: str, oom: bool = False) -> list[float]:
    """A column of a record, of the rows with a peak, or of those that did not fit."""
    column = [float(one) for one in record.per_example[name]]
    return [one for one, row in zip(column, rows(half), strict=True) if (row.of == "oom") is oom]


def errors(record: Record, half: str) -> list[float]:
    """Predicted over measured − 1 of each row with a peak."""
    both = zip(per_row(record, "predicted_bytes", half), per_row(record, "measured_bytes", half), strict=True)
    return [predicted / measured - 1 for predicted, measured in both]


def ratios_by_stack(record: Record, half: str) -> dict[str, list[float]]:
    """Stack → predicted over measured of its rows with a peak."""
    found: dict[str, list[float]] = {}
    peaks = [row for row in rows(half) if row.of != "oom"]
    for row, error in zip(peaks, errors(record, half), strict=True):
        found.setdefault(row.stack, []).append(1 + error)
    return found


def ratio_again(row: Row, **changes: Any) -> float:
    """Predicted over measured by the model as it is now, with other settings; for what is found after the judgement."""
    said = {name: tuple(one) if isinstance(one, list) else one for name, one in row.settings.items()}
    setup, _ = setup_in(row.stack, **(said | changes))
    peak = Configuration(read_shape(row.model), setup).step.peak().total
    return (peak + BESIDE[row.of].beside(peak)) / row.bytes


def false_promises(record: Record, half: str) -> int:
    """Rows that `fit` promises to fit into less than they were seen to take, or into what was not enough."""
    promised = [float(one) for one in record.per_example["promised_bytes"]]
    measured = [float(one) for one in record.per_example["measured_bytes"]]
    return sum(least < size for least, size in zip(promised, measured, strict=True))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each half: rows, those within the margin, predicted over measured, and promises that do not hold.

    Of both: figures above the upper end of `fit`'s reserve as it is now.
    """
    out: dict[str, Quantity] = {}
    for half in HALVES:
        if (record := store.get(probe(half))) is None:
            continue
        found, keys = errors(record, half), (record.key,)
        within = sum(abs(one) <= MARGIN for one in found)
        out |= {
            f"{half}_rows": Quantity(len(found), "figures", keys, digits=0),
            f"{half}_within": Quantity(within, "", keys, n=len(found), digits=0),
            f"{half}_share": Quantity(100 * within / len(found), "%", keys, n=len(found), digits=0),
            f"{half}_ratio": Quantity.middle([1 + one for one in found], "×", keys, n=len(found), digits=2),
            f"{half}_false_promises": Quantity(false_promises(record, half), "rows", keys, n=len(rows(half)), digits=0),
        }
    records = [store.get(probe(half)) for half in HALVES]
    known = [record for record in records if record is not None]
    if len(known) == len(HALVES):
        above = [
            size > tensors + GPU_RESERVE[1].beside(tensors)
            for record, half in zip(known, HALVES, strict=True)
            for size, tensors in zip(
                *(per_row(record, f"{name}_bytes", half) for name in ("measured", "tensors")), strict=True
            )
        ]
        both = tuple(record.key for record in known)
        out["above_reserve"] = Quantity(sum(above), "", both, n=len(above), digits=0)
        out["all_rows"] = Quantity(len(above), "figures", both, digits=0)
    return out


@study("memory_elsewhere", runs, quantities)
def verdict(store: Store) -> Verdict:
    """Are as many judged rows within the margin as is claimed, and none promised to fit that did not?"""
    record = store.need(probe("judged"))
    found, broken = errors(record, "judged"), false_promises(record, "judged")
    within = sum(abs(one) <= MARGIN for one in found)
    kept = within >= LEAST * len(found) and not broken
    sentence = (
        f"Of {len(found)} published peaks that were not looked for until the model stood, {within} are predicted to "
        f"within {MARGIN:.0%}; {broken} of {len(rows('judged'))} figures are above what fit promises."
    )
    return Verdict("reproduced" if kept else "refuted", sentence, ("judged_share", "judged_ratio"))
