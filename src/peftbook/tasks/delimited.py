"""Delimited text: records of CSV and its kin, one fault a broken record, and which delimiter a text has."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator

from peftbook.tasks.rows import Caps

DELIMITERS = ",;\t|"
BLANK = re.compile(r"[\r\n]+")
LINE = re.compile(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
QUOTED_REST = re.compile(r'[^"]*(?:""[^"]*)*"')  # from inside a quoted cell to its end
REREAD = 4  # times the text that broken quotes may cost
SAMPLE_CHARS, SAMPLE_RECORDS = 100_000, 200
Record = tuple[int, list[str] | str]


class TooLongError(Exception):
    """A record goes on and on."""


class Lines:
    """The lines of a text with their ends, from a place that can be set back, for csv.reader to pull."""

    def __init__(self, text: str, record_chars: int):
        self.text = text
        self.record_chars = record_chars
        self.place = self.number = self.began = 0

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        match = LINE.match(self.text, self.place)
        if match is None:
            raise StopIteration
        if self.place > self.began and match.end() - self.began > self.record_chars:
            raise TooLongError
        self.place = match.end()
        self.number += 1
        return match[0]

    def skip_blank(self) -> None:
        """Go on behind blank lines."""
        match = BLANK.match(self.text, self.place)
        if match is not None:
            self.number += lines_in(match[0])
            self.place = match.end()


def lines_in(text: str) -> int:
    """How many lines end in a text."""
    return max(text.count("\n"), text.count("\r"))


def records(text: str, delimiter: str, caps: Caps) -> Iterator[Record]:
    """(line, cells) of each record, the header among them; (line, problem) of one whose quotes are broken.

    After a broken record reading goes on at the line after its first. What that may cost is bounded; beyond it the
    last problem says that the rest was not read.
    """
    csv.field_size_limit(max(csv.field_size_limit(), min(len(text) + 1, sys.maxsize)))
    lines = Lines(text, caps.row_chars)
    wake, reread = 0, 0
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.skip_blank()
        lines.began, first = lines.place, lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, TooLongError) as error:
            too_long = isinstance(error, TooLongError)
            reread += lines.place - lines.began
            if reread > REREAD * len(text):
                yield first, "and all after it were not read, as too many quotes are broken: mend the quotes"
                return
            stopped, lines.place, lines.number = lines.place, lines.began, first - 1
            whole = next(lines)
            wake = first if whole.count('"') % 2 else wake
            if too_long and skip_quoted(lines, stopped, delimiter):
                wake = 0
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            yield first, problem_of(error, caps)
            continue
        if wake and text.count('"', lines.began, lines.place) % 2:
            yield first, f"holds a stray quote, perhaps the end of the broken row in line {wake}: mend the quotes"
            wake = 0
            continue
        yield first, cells


def problem_of(error: Exception, caps: Caps) -> str:
    """What is wrong with a record, in the words after “row 3 …”."""
    if isinstance(error, TooLongError):
        return f"is longer than {caps.row_chars:,} characters, or a quote is never closed: mend its quotes"
    return f"is not valid CSV ({error}): mend its quotes"


def skip_quoted(lines: Lines, inside: int, delimiter: str) -> bool:
    """Go on behind the record that has a long quoted cell around the place `inside`; not if its quote is never closed,
    that is if the next one does not end a cell.
    """
    match = QUOTED_REST.match(lines.text, inside)
    if match is None or lines.text[match.end() : match.end() + 1] not in (delimiter, "\r", "\n", ""):
        return False
    rest = LINE.match(lines.text, match.end())
    end = rest.end() if rest else match.end()
    lines.number += lines_in(lines.text[lines.place : end])
    lines.place = end
    return True


def find_delimiter(text: str, likely: str = ",") -> str:
    """The delimiter by which most records of the text's beginning have one width, the header's and above 1.

    Quoted cells count as cells, whatever is in them. likely: what is taken where several do equally well, or none.
    """
    scores: dict[str, tuple[float, int, bool]] = {}
    for delimiter in DELIMITERS:
        widths = widths_of(text, delimiter)
        if widths and widths[0] > 1:
            share = widths.count(widths[0]) / len(widths)
            scores[delimiter] = (round(share, 1) if share >= 0.5 else 0.0, widths[0], delimiter == likely)
    return max(scores, key=lambda delimiter: scores[delimiter], default=likely)


def widths_of(text: str, delimiter: str) -> list[int]:
    """Cells of the first records; the last of a cut sample is left out."""
    sample, widths = text[:SAMPLE_CHARS], []
    reader = csv.reader(Lines(sample, SAMPLE_CHARS), delimiter=delimiter)
    try:
        for cells in reader:
            if cells:
                widths.append(len(cells))
            if len(widths) > SAMPLE_RECORDS:
                break
    except (csv.Error, TooLongError):
        pass
    return widths[:-1] if len(widths) > 1 and (len(text) > SAMPLE_CHARS or len(widths) > SAMPLE_RECORDS) else widths
