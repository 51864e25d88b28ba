"""Does `fit` tell what others measured on GPUs? Published peaks, predicted from defaults and from what is stated.

The rows are in `data/memory_elsewhere.toml`, each with its address, the words of its source, and only the settings that
the source states; `peftbook.memory.stacks` has the rest. On the development rows the stacks, the ways to compute a loss
and the reserve were made. The judged rows were searched for and committed when all that stood; a record holds what the
model of that commit said of them. The rows that are judged again were searched for and committed after that. Those of
notebooks were predicted from the code alone, before their outputs were opened (`tests/tools/notebooks.py`).

A figure is of torch's tensors (allocated), of its allocator (reserved), of a whole device, of the card on which the
longest row just fits, or of a card that was not enough (oom), which is not in the errors.
"""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from peftbook.core import specs
from peftbook.core.folders import DATA
from peftbook.core.records import Missing, Record, Store
from peftbook.evidence.comparison import keys_of
from peftbook.memory import Configuration, read_shape
from peftbook.memory.fit import BESIDE, GPU_RESERVE
from peftbook.memory.stacks import setup_in
from peftbook.studies import Quantity, Verdict, study
from peftbook.studies.memory import SCRATCH

PARTS = ("development", "judged", "again", "notebooks")
FIRST = PARTS[:2]
PROMISED_LATER = (1.5 * 2**30, 0.25)  # bytes, and a share of the tensors' peak: `fit`'s upper reserve after the first
MARGIN, LEAST = 0.10, 0.90  # of a row's figure; of the rows
UNITS = {"GiB": 2**30, "GB": 10**9}


@dataclass(frozen=True)
class PublishedPeak:
    """A published figure. bytes, of: how much, of what.  stack, model, settings: how it came about, as far as is said.

    source: where.  says: its words.  note: what is not certain.
    """

    name: str
    part: str
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
def rows(part: str) -> tuple[PublishedPeak, ...]:
    """The rows of a part, in the order of the file."""
    known = tomllib.loads((DATA / "memory_elsewhere.toml").read_text(encoding="utf-8")).get("row", [])
    return tuple(PublishedPeak(**one) for one in known if one["part"] == part)


def probe(part: str) -> specs.Probe:
    """The predictions of a part."""
    texts = tuple(one.text for one in rows(part))
    promised = {} if part in FIRST else {"promised": PROMISED_LATER}
    return specs.Probe(measure="elsewhere.predictions", settings={"rows": texts, **promised}, model=SCRATCH)


def per_row(record: Record, name: str, part: str) -> list[float]:
    """A column of a record, of the rows with a peak."""
    column = [float(one) for one in record.per_example[name]]
    return [one for one, row in zip(column, rows(part), strict=True) if row.of != "oom"]


def errors(record: Record, part: str) -> list[float]:
    """Predicted over measured − 1 of each row with a peak."""
    both = zip(per_row(record, "predicted_bytes", part), per_row(record, "measured_bytes", part), strict=True)
    return [predicted / measured - 1 for predicted, measured in both]


def ratios_by_stack(record: Record, part: str) -> dict[str, list[float]]:
    """Stack → predicted over measured of its rows with a peak."""
    found: dict[str, list[float]] = {}
    peaks = [row for row in rows(part) if row.of != "oom"]
    for row, error in zip(peaks, errors(record, part), strict=True):
        found.setdefault(row.stack, []).append(1 + error)
    return found


def ratio_again(row: PublishedPeak, **changes: Any) -> float:
    """Predicted over measured by the model as it is now, with other settings; for what is found after the judgement."""
    said = {name: tuple(one) if isinstance(one, list) else one for name, one in row.settings.items()}
    setup, _ = setup_in(row.stack, **(said | changes))
    peak = Configuration(read_shape(row.model), setup).step.peak().total
    return (peak + BESIDE[row.of].beside(peak)) / row.bytes


def false_promises(record: Record, part: str) -> int:
    """Rows that `fit` promises to fit into less than they were seen to take, or into what was not enough."""
    promised = [float(one) for one in record.per_example["promised_bytes"]]
    measured = [float(one) for one in record.per_example["measured_bytes"]]
    return sum(least < size for least, size in zip(promised, measured, strict=True))


def counted(
    part: str, ratios: list[float], within: int, broken: int, rows: int, keys: tuple[str, ...]
) -> dict[str, Quantity]:
    """Of a part: rows, those within the margin, predicted over measured, and promises that do not hold."""
    count = len(ratios)
    return {
        f"{part}_rows": Quantity(count, "figures", keys, digits=0),
        f"{part}_within": Quantity(within, "", keys, n=count, digits=0),
        f"{part}_share": Quantity(100 * within / count, "%", keys, n=count, digits=0),
        f"{part}_ratio": Quantity.middle(ratios, "×", keys, n=count, digits=2),
        f"{part}_false_promises": Quantity(broken, "rows", keys, n=rows, digits=0),
    }


def part_quantities(part: str, store: Store) -> dict[str, Quantity]:
    """What is counted of a part, once its record is there."""
    if (record := store.get(probe(part))) is None:
        return {}
    found = errors(record, part)
    within = sum(abs(one) <= MARGIN for one in found)
    ratios, broken = [1 + one for one in found], false_promises(record, part)
    return counted(part, ratios, within, broken, len(rows(part)), (record.key,))


def quantities(store: Store) -> Mapping[str, Quantity]:
    """What is counted of both parts; of both together, figures above the upper end of `fit`'s reserve as it is now."""
    out = {name: one for part in FIRST for name, one in part_quantities(part, store).items()}
    with suppress(Missing):
        records = store.need_all(map(probe, FIRST))
        above = [
            size > tensors + GPU_RESERVE[1].beside(tensors)
            for record, part in zip(records, FIRST, strict=True)
            for size, tensors in zip(
                per_row(record, "measured_bytes", part), per_row(record, "tensors_bytes", part), strict=True
            )
        ]
        out["above_reserve"] = Quantity(sum(above), "", keys_of(records), n=len(above), digits=0)
        out["all_rows"] = Quantity(len(above), "figures", keys_of(records), digits=0)
    return out


def part_verdict(part: str, searched: str, store: Store) -> Verdict:
    """Are as many rows of a part within the margin as is claimed, and none promised to fit that did not?"""
    record = store.need(probe(part))
    found, broken = errors(record, part), false_promises(record, part)
    within = sum(abs(one) <= MARGIN for one in found)
    sentence = (
        f"Of {len(found)} published peaks that were {searched}, {within} are predicted to within {MARGIN:.0%}; "
        f"{broken} of {len(rows(part))} figures are above what fit promises."
    )
    kept = within >= LEAST * len(found) and not broken
    return Verdict("reproduced" if kept else "refuted", sentence, (f"{part}_share", f"{part}_ratio"))


@study("memory_elsewhere", lambda store: [*map(probe, FIRST)], quantities)
def verdict(store: Store) -> Verdict:
    """Of the rows that were searched for when the model stood."""
    return part_verdict("judged", "not looked for until the model stood", store)


@study("memory_elsewhere_again", lambda store: [probe("again")], lambda store: part_quantities("again", store))
def second_verdict(store: Store) -> Verdict:
    """Of the rows that were searched for when the model knew what the first had taught."""
    return part_verdict("again", "searched for after that", store)


def printed_quantities(store: Store) -> Mapping[str, Quantity]:
    """What is counted of the rows of notebooks."""
    return part_quantities("notebooks", store)


@study("memory_notebooks", lambda store: [probe("notebooks")], printed_quantities)
def third_verdict(store: Store) -> Verdict:
    """Of the rows whose code was read and whose outputs were opened after the prediction."""
    return part_verdict("notebooks", "printed by notebooks and predicted from their code alone", store)
