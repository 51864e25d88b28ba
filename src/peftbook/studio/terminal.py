"""Terminal: a comparison as text or JSON, and the progress of a plan on one line."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from peftbook.core.progress import StatusLine, duration
from peftbook.decision import COSTS, Comparison
from peftbook.evidence.stats import Interval
from peftbook.studio.formats import typeset
from peftbook.studio.jobs import Job
from peftbook.studio.tabular import FORGOTTEN, table

WIDEST = 120


class Ticker:
    """What a plan is doing: one line that is written over on a terminal, in a log one now and then; what has ended."""

    def __init__(self, stream: TextIO):
        self.line = StatusLine(stream)
        self.ended: set[str] = set()

    def __enter__(self) -> Ticker:
        return self

    def __exit__(self, *_: object) -> None:
        self.line.clear()

    def show(self, jobs: Sequence[Job]) -> None:
        """Say what has ended since the last time, and what runs."""
        for job in jobs:
            if job.ended and job.id not in self.ended:
                self.ended.add(job.id)
                if not job.cached:
                    seconds = (job.finished or 0) - (job.started or job.finished or 0)
                    self.line.end(f"{one_line(job.label)}: {job.state} in {duration(seconds)}")
        if len(self.ended) < len(jobs):
            self.line.show(progress_line(jobs), tuple((job.id, job.phase) for job in jobs if job.state == "running"))


def one_line(text: str) -> str:
    """A text without what moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def progress_line(jobs: Sequence[Job]) -> str:
    """`2 of 5 runs done; training, step 12 of 40, 9 s so far, 20 s left, loss 2.310, 900 tokens/s; LoRA on …`.

    The label comes last: it is long, and a narrow terminal cuts the end off.
    """
    ended = sum(job.ended for job in jobs)
    parts = [f"{ended} of {len(jobs)} runs done"]
    parts += [f"{', '.join(job.doing.words())}; {one_line(job.label)}" for job in jobs if job.state == "running"]
    if len(parts) == 1:
        parts.append("starting")
    return "; ".join(parts)


def show(found: Comparison, columns: int | None = None) -> str:
    """What to take, the table in two parts, and what it cannot tell. columns: of the terminal, if not of this one."""
    width = min(WIDEST, columns or shutil.get_terminal_size().columns)
    headers, rows = table(found)
    first = 6 + bool(found.unseen)  # mark, method, the deciding score and its differences
    told = found.recommendation
    beside = (found.over_untuned, found.without_adapter, found.leakage)
    words = (told.headline, *beside, " ".join(told.lacks), " ".join(told.method))
    parts = [
        *(filled(one, width) for one in words if one),
        aligned(headers[:first], [row[:first] for row in rows]),
        aligned(["", *headers[1:2], *headers[first:]], [["", *row[1:2], *row[first:]] for row in rows]),
        filled(legend(found), width),
        "What this cannot tell:\n" + "\n".join(
            filled(one, width, initial_indent="- ", subsequent_indent="  ") for one in found.cautions
        ),
    ]  # fmt: skip
    return "\n\n".join(parts)


def filled(words: str, width: int, **indents: str) -> str:
    return textwrap.fill(typeset(one_line(words)), width, **indents)  # type: ignore[arg-type]


def legend(found: Comparison) -> str:
    unit = ", in nats per token" if found.measure.name == "perplexity" else ""
    return (
        f"★ may be the best, ▲ beats the untuned model, each at a family-wise level of {100 * found.level:g} %. "
        f"Differences{unit} are paired over {found.test_examples:,} test examples, with 95 % intervals."
        + (f" BERTScore F1: {found.encoder}." if found.encoder else "")
        + (f" {FORGOTTEN}" if any(row.forgotten for row in found.rows) else "")
        + "".join(f" {one.name}: {one.words}." for one in found.metrics)
    )


def aligned(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text: the first two columns to the left, numbers to the right."""
    lines = [list(headers), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    sides = [str.ljust if at < 2 else str.rjust for at in range(len(headers))]
    return "\n".join(
        "  ".join(side(cell, size) for side, cell, size in zip(sides, line, widths, strict=True)).rstrip()
        for line in lines
    )


# --- JSON ------------------------------------------------------------------------------------------------------


def as_json(found: Comparison) -> dict[str, Any]:
    """The comparison as plain values: `rows`, `pairs`, `recommendation`, what they depend on; some may be infinite."""
    told = found.recommendation
    return {
        "measure": found.measure.name,
        "margin": found.margin,
        "family_wise_level": found.level,
        "test_examples": found.test_examples,
        "test_rows": found.test_rows,
        "leakage": leakage_of(found),
        "seeds": found.seeds,
        "encoder": found.encoder,
        "hardware": list(found.hardware),
        "recommendation": {
            "kind": told.kind,
            "headline": told.headline,
            "words": told.words,
            "take": told.row.label if told.row else None,
            "equals": list(told.equals),
            "most_given_up": told.loss,
            "examples_needed": told.examples,
            "seeds_needed": told.seeds,
        },
        "rows": [
            {
                "label": row.label,
                "model": row.model,
                "method": row.method.full_kind,
                "seeds": list(row.seeds),
                "scores": intervals(row.scores),
                "minus_untuned": intervals(row.against_untuned),
                "minus_best": intervals(row.against_leader),
                "may_be_best": row.may_be_best,
                "beats_untuned": row.beats_untuned,
                **{name: row.cost(name) for name in COSTS},
                "forgotten": None if row.forgotten is None else intervals({"prose": row.forgotten})["prose"],
                "runs": list(row.runs),
                "failure": row.failure,
            }
            for row in found.rows
        ],
        "pairs": [
            {
                "first": one.first,
                "second": one.second,
                "p": one.p,
                "detected": one.detected,
                "first_minus_second": intervals(one.differences),
            }
            for one in found.pairs
        ],
        "metrics": [json.loads(one.text()) | {"words": one.words} for one in found.metrics],
        "over_untuned": found.over_untuned,
        "without_adapter": found.without_adapter,
        "always_the_commonest": None if found.constant is None else intervals({"score": found.constant})["score"],
        "copying_the_input": None if found.copying is None else intervals({"score": found.copying})["score"],
        "cautions": list(found.cautions),
    }


def leakage_of(found: Comparison) -> dict[str, Any] | None:
    """What leaks, and each row's score in the deciding measure without that; None where nothing does."""
    if not found.leaked:
        return None
    clean = {row.label: one for row in found.contest if (one := found.without_leaks(row)) is not None}
    return {"test_inputs": found.leaked, "words": found.leakage, "scores_without": intervals(clean)}


def intervals(known: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: {"mean": one.mean, "low": one.low, "high": one.high} for name, one in known.items()}
