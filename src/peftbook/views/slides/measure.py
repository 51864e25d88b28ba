"""How much room a text takes: widths of Arial, lines in a box, and the refusal of what does not fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
from fontTools import agl

from peftbook.core.errors import InputError

LINE = 1.2  # height of a line in units of the font size
Paragraph = tuple[str, float, bool]  # text, points, bold


@cache
def advances(bold: bool) -> dict[str, int]:
    """Width of each character in thousandths of the size. Helvetica's table, which matplotlib ships, is Arial's too."""
    name = "Helvetica-Bold.afm" if bold else "Helvetica.afm"
    table = (Path(matplotlib.get_data_path()) / "fonts" / "pdfcorefonts" / name).read_text(encoding="ascii")
    glyphs = re.findall(r"^C -?\d+ ; WX (\d+) ; N (\w+)", table, re.MULTILINE)
    widths = {agl.toUnicode(glyph): int(width) for width, glyph in glyphs}
    return widths | {"\N{NO-BREAK SPACE}": widths[" "]}


def text_width(text: str, size: float, bold: bool = False) -> float:
    """Inches that a line of text takes in Arial; a character outside the table counts 0.6 of the size."""
    table = advances(bold)
    return sum(table.get(character, 600) for character in text) * size / 72_000


def lines_needed(text: str, size: float, width: float, bold: bool = False) -> int:
    """Lines that the text takes in a box of this inner width. Raises InputError for a word wider than the box."""
    lines, line = 1, ""
    for word in text.split(" "):
        if text_width(word, size, bold) > width:
            raise InputError(f"The word {word!r} is wider than its box ({width:.1f} in at {size:g} pt): shorten it.")
        longer = f"{line} {word}".strip()
        if text_width(longer, size, bold) > width:
            lines, line = lines + 1, word
        else:
            line = longer
    return lines


def height_needed(paragraphs: Sequence[Paragraph], width: float, gap: float = 0.0) -> float:
    """Inches that the paragraphs take in a box of this inner width, `gap` points between them."""
    lines = sum(lines_needed(text, size, width, bold) * size * LINE / 72 for text, size, bold in paragraphs)
    return lines + gap * (len(paragraphs) - 1) / 72


def check_fit(paragraphs: Sequence[Paragraph], width: float, height: float, gap: float = 0.0) -> None:
    """Raise InputError if the paragraphs overflow a box of this inner size in inches."""
    needed = height_needed(paragraphs, width, gap)
    if needed > height + 0.01:
        raise InputError(f"Text overflows its box by {needed - height:.2f} in: shorten {paragraphs[0][0][:60]!r}.")
