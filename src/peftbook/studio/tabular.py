"""Tables of a comparison: as text for page, report and command line, and as CSV for a spreadsheet."""

from __future__ import annotations

import csv
import io

from peftbook.core.progress import duration
from peftbook.decision import COSTS, Comparison, Row
from peftbook.decision.recommendation import signed
from peftbook.evidence.results import format_value
from peftbook.evidence.stats import Interval
from peftbook.studio.formats import number, size

FORGOTTEN = "Forgotten: loss on plain prose minus the untuned model's, nats per token; above 0 is worse."
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of text, as page, report and command line show them.

    ★ marks the rows that may be the best, ▲ those that beat the untuned model, both at the family-wise level.
    """
    deciding = found.measure
    others = [one for one in found.measures if one != deciding]
    headers = ["", "method", deciding.label, "95 %", *["without near copies"] * bool(found.unseen)]
    headers += [f"{short(found)} − untuned", f"{short(found)} − best"]
    headers += [*(one.label for one in others), "forgotten", "trained", "to store", "training", "peak memory", "seeds"]
    rows = []
    for row in found.rows:
        score = row.scores.get(deciding.name)
        cells = [marks(row), row.label, digits(score, deciding.name), ends(score, deciding.name)]
        cells += [digits(found.without_leaks(row), deciding.name)] * bool(found.unseen)
        cells += [difference(one.get(deciding.name)) for one in (row.against_untuned, row.against_leader)]
        cells += [digits(row.scores.get(one.name), one.name) for one in others]
        cells += [
            forgotten(row),
            "–" if row.untuned else number(row.trainable_parameters),
            "–" if row.untuned else size(row.adapter_bytes),
            "–" if row.untuned else duration(row.train_seconds),
            size(row.peak_memory_bytes or None),
            str(len(row.seeds)) if row.seeds else "–",
        ]
        rows.append(cells)
    return headers, rows


def short(found: Comparison) -> str:
    """What differences are in."""
    return "loss" if found.measure.name == "perplexity" else found.measure.label


def marks(row: Row) -> str:
    return ("★" if row.may_be_best else "") + ("▲" if row.beats_untuned else "") + ("✕" if row.failure else "")


def digits(one: Interval | None, name: str) -> str:
    return "–" if one is None else format_value(one.mean, 2 if name == "perplexity" else 3)


def ends(one: Interval | None, name: str) -> str:
    places = 2 if name == "perplexity" else 3
    return "–" if one is None else f"{format_value(one.low, places)} to {format_value(one.high, places)}"


def forgotten(row: Row) -> str:
    """What a row has forgotten of plain prose, nats per token."""
    return "–" if row.untuned else "not measured" if row.forgotten is None else difference(row.forgotten)


def difference(one: Interval | None) -> str:
    """A difference with its 95 % interval: `+0.051 (+0.030 to +0.072)`."""
    mean, interval = halves(one)
    return f"{mean} ({interval})" if interval else mean


def halves(one: Interval | None) -> tuple[str, str]:
    """A difference and its 95 % interval apart."""
    if one is None:
        return "–", ""
    mean, low, high = map(signed, (one.mean, one.low, one.high))
    return mean, f"{low} to {high}"


# --- CSV -------------------------------------------------------------------------------------------------------


def escape_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula: an apostrophe before =, +, −, @, tab and line ends."""
    plain = text.replace("\x00", "")
    return f"'{plain}" if plain.lstrip(" ").startswith(FORMULA_STARTS) else plain


def to_csv(found: Comparison) -> str:
    """One line a row, numbers in full, texts quoted and escaped; every measure with its interval and differences."""
    headers = ["method", "model", "kind", "seeds", "may_be_best", "beats_untuned", "failure"]
    for one in found.measures:
        unit = "_nats" if one.name == "perplexity" else ""
        headers += [one.name, f"{one.name}_low", f"{one.name}_high"]
        ends_ = ("", "_low", "_high")
        headers += [f"{one.name}{unit}_minus_{other}{end}" for other in ("untuned", "best") for end in ends_]
    headers += [f"{found.measure.name}_without_near_copies{end}" for end in ("", "_low", "_high")]
    headers += [f"forgotten_nats_per_token{end}" for end in ("", "_low", "_high")]
    headers += [*COSTS, "test_examples", "encoder", "hardware", "runs"]
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\r\n")
    writer.writerow(headers)
    for row in found.rows:
        cells: list[object] = [row.label, row.model, row.method.full_kind, max(len(row.seeds), 1)]
        cells += [yes_or_no(row.may_be_best), yes_or_no(row.beats_untuned), row.failure]
        for one in found.measures:
            for which in (row.scores, row.against_untuned, row.against_leader):
                value = which.get(one.name)
                cells += ["", "", ""] if value is None else [value.mean, value.low, value.high]
        for value in (found.without_leaks(row), row.forgotten):
            cells += ["", "", ""] if value is None else [value.mean, value.low, value.high]
        cells += [row.cost(name) for name in COSTS]
        cells += [found.test_examples, found.encoder, "; ".join(found.hardware), " ".join(row.runs)]
        writer.writerow([escape_cell(one) if isinstance(one, str) else one for one in cells])
    return stream.getvalue()


def yes_or_no(value: bool | None) -> str:
    return "" if value is None else "yes" if value else "no"
