"""Blocks of a slide: body text, pictures, cards, tables, derivations and code."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from pptx.enum.dml import MSO_THEME_COLOR
from pptx.enum.shapes import MSO_SHAPE
from pptx.enum.text import MSO_ANCHOR, PP_ALIGN
from pptx.oxml.ns import qn
from pptx.util import Inches, Pt

from peftbook.core.errors import InputError
from peftbook.views.figures.style import PAPER
from peftbook.views.placeholders import Sources, fill
from peftbook.views.slides.measure import LINE, check_fit, height_needed, lines_needed
from peftbook.views.slides.outline import OUTLINE
from peftbook.views.slides.pictures import Picture, equation, still
from peftbook.views.slides.template import BODY_SIZE, BOTTOM, FILL, FONT, INK, MARGIN, TOP, WIDTH, rgb

Box = tuple[float, float, float, float]  # left, top, width, height in inches
APART = 0.35  # inches between a table, a still or code and what stands beside it
MONO, CODE_SIZE = "Courier New", 20
SKETCH = 1.15  # inches that a sketch is high
_PAIR = [(0.0, 0.0, 0.95, 0.12, True), (1.03, 0.2, 0.12, 0.95, True)]  # left, top, width, height, trained
_CODES = [(0.24 * column, 0.2 + 0.24 * row, 0.2, 0.2, False) for row in range(4) for column in range(4)]
_ROW = [(0.4 * at, 0.45, 0.32, 0.5, at < 2) for at in range(7)]
SKETCHES = {
    "beside": ([(0.0, 0.2, 0.95, 0.95, False), *_PAIR], "A grey square with two thin strips beside it."),
    "quantised": ([*_CODES, *_PAIR], "A square made of sixteen small grey ones, with two thin strips beside it."),
    "front": (_ROW, "A row of seven boxes, the first two in colour."),
}
ACCENT_COLOUR = "accent"  # in `write`: the theme's, so that it follows the theme


def add_body(shape: Any, lines: list[str], right: float) -> None:
    """Paragraphs in the body placeholder, between the left margin and `right`."""
    width = right - MARGIN
    check_fit([(line, BODY_SIZE, False) for line in lines], width, BOTTOM - TOP, gap=14)
    shape.left, shape.top, shape.width, shape.height = map(Inches, (MARGIN, TOP, width, BOTTOM - TOP))
    frame = shape.text_frame
    frame.word_wrap = True
    frame.text = "\n".join(lines)
    for paragraph in frame.paragraphs:
        paragraph.space_after = Pt(14)
        paragraph.line_spacing = 1.0


def add_picture(slide: Any, picture: Picture, name: str, alt: str, left: float, top: float) -> None:
    """A picture at its size, named and described."""
    shape = slide.shapes.add_picture(io.BytesIO(picture.data), Inches(left), Inches(top), Inches(picture.width))
    shape.name = name
    shape._element._nvXxPr.cNvPr.set("descr", alt)


def add_cards(slide: Any, outline: dict[str, Any], sources: Sources) -> None:
    """Equal panels, in a grid if `columns` says so and beside the text if there is some: a head and what it means."""
    cards = [(fill(card["head"], sources), fill(card["text"], sources)) for card in outline["cards"]]
    gap, pad = 0.35, 0.25
    start = outline["body_right"] + APART if "body" in outline else MARGIN
    columns = outline.get("columns", len(cards))
    rows = math.ceil(len(cards) / columns)
    width = (WIDTH - MARGIN - start - gap * (columns - 1)) / columns
    head_size, size = float(outline.get("head_size", 28)), float(outline.get("size", 22))
    inner = width - 2 * pad - 0.05
    panels = [[(head, head_size, True), *((line, size, False) for line in text.split("\n"))] for head, text in cards]
    sketched = SKETCH + 0.1 if any("sketch" in card for card in outline["cards"]) else 0.0
    height = max(height_needed(paragraphs, inner, gap=12) for paragraphs in panels) + 2 * pad + 0.1 + sketched
    room = (BOTTOM - TOP - 0.25 - gap * (rows - 1)) / rows
    if height > room:
        raise InputError(f"A card overflows by {height - room:.2f} in: shorten the longest.")
    first = TOP + min(0.25 + (room - height) / 3, 0.9) if rows == 1 else TOP
    height = height if rows == 1 else room
    for at, paragraphs in enumerate(panels):
        left, top = start + at % columns * (width + gap), first + at // columns * (height + gap)
        shape = add_rectangle(slide, (left, top, width, height))
        shape.name = f"Card {at + 1}"
        shape.fill.fore_color.rgb = rgb(FILL)
        frame = shape.text_frame
        frame.word_wrap, frame.vertical_anchor = True, MSO_ANCHOR.TOP
        frame.margin_left = frame.margin_right = frame.margin_bottom = Inches(pad)
        frame.margin_top = Inches(pad + sketched)
        if kind := outline["cards"][at].get("sketch"):
            add_sketch(slide, kind, left + pad, top + pad)
        write(frame, [(line, size, bold, ACCENT_COLOUR if bold else INK) for line, size, bold in paragraphs], gap=12)


def add_sketch(slide: Any, kind: str, left: float, top: float) -> None:
    """Frozen parts in grey and trained ones in the accent: beside the weight, beside its 4-bit codes, or in front."""
    boxes, alt = SKETCHES[kind]
    group = slide.shapes.add_group_shape()
    group.name = f"Sketch {kind}"
    group._element.nvGrpSpPr.cNvPr.set("descr", alt)
    for x, y, width, height, trained in boxes:
        shape = add_rectangle(group, (left + x, top + y, width, height))
        shape.fill.fore_color.theme_color = MSO_THEME_COLOR.TEXT_2 if trained else MSO_THEME_COLOR.ACCENT_5


def add_rectangle(place: Any, box: Box) -> Any:
    """A filled rectangle without edge and shadow, on a slide or in a group; its colour is the caller's."""
    shape = place.shapes.add_shape(MSO_SHAPE.RECTANGLE, *map(Inches, box))
    shape.fill.solid()
    shape.line.fill.background()
    shape._element.remove(shape._element.find(qn("p:style")))  # its effects add a shadow
    return shape


def write(frame: Any, paragraphs: Sequence[tuple[str, float, bool, str]], gap: float = 0.0) -> None:
    """Left-aligned paragraphs of (text, points, bold, colour); the colour `accent` is the theme's."""
    for at, (text, size, bold, colour) in enumerate(paragraphs):
        paragraph = frame.paragraphs[0] if at == 0 else frame.add_paragraph()
        paragraph.alignment, paragraph.space_after = PP_ALIGN.LEFT, Pt(gap)
        run = paragraph.add_run()
        run.text = text
        run.font.size, run.font.bold, run.font.name = Pt(size), bold, FONT
        if colour == ACCENT_COLOUR:
            run.font.color.theme_color = MSO_THEME_COLOR.TEXT_2
        else:
            run.font.color.rgb = rgb(colour)


def add_table(slide: Any, outline: dict[str, Any], sources: Sources) -> None:
    """A native table; the first row is its head."""
    rows = [[fill(cell, sources) for cell in row] for row in outline["table"]]
    shares = outline["widths"]
    whole = WIDTH - 2 * MARGIN - (outline["still"]["width"] + APART if "still" in outline else 0.0)
    widths = [whole * share / sum(shares) for share in shares]
    size, pad = float(outline.get("size", BODY_SIZE)), 0.12
    heights = []
    for at, row in enumerate(rows):
        lines = [
            lines_needed(cell, size, width - 2 * pad - 0.05, at == 0 or c == 0)
            for c, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        heights.append(max(lines) * size * LINE / 72 + 2 * 0.09)
    if sum(heights) > BOTTOM - TOP + 0.01:
        raise InputError(f"The table overflows by {sum(heights) - (BOTTOM - TOP):.2f} in: shorten its cells.")
    frame = slide.shapes.add_table(len(rows), len(widths), *map(Inches, (MARGIN, TOP, whole, sum(heights))))
    frame.name = "Table"
    frame._element.nvGraphicFramePr.cNvPr.set("descr", fill(outline["alts"][0], sources))
    table = frame.table
    for column, width in zip(table.columns, widths, strict=True):
        column.width = Inches(width)
    for at, row in enumerate(rows):
        table.rows[at].height = Inches(heights[at])
        for c, text in enumerate(row):
            cell = table.cell(at, c)
            cell.fill.solid()
            if at == 0:
                cell.fill.fore_color.theme_color = MSO_THEME_COLOR.TEXT_2
            else:
                cell.fill.fore_color.rgb = rgb(FILL if at % 2 == 0 else PAPER["light"])
            cell.margin_left = cell.margin_right = Inches(pad)
            cell.margin_top = cell.margin_bottom = Inches(0.09)
            cell.vertical_anchor = MSO_ANCHOR.MIDDLE
            write(cell.text_frame, [(text, size, at == 0 or c == 0, PAPER["light"] if at == 0 else INK)])


def add_still(slide: Any, outline: dict[str, Any], sources: Sources) -> None:
    """A screenshot at the right margin, beside the table."""
    given = outline["still"]
    picture = still(OUTLINE.parent / "stills" / given["file"], given["width"])
    left, alt = WIDTH - MARGIN - picture.width, fill(given["alt"], sources)
    add_picture(slide, picture, f"Still {given['file']}", alt, left, TOP)


def add_steps(slide: Any, outline: dict[str, Any], sources: Sources) -> None:
    """A derivation: in each row what is done, at the left, and the equation that it gives, at the right."""
    steps = outline["steps"]
    text_width_, gap = 4.1, 0.4
    left = MARGIN + text_width_ + gap
    pictures = [equation(step["tex"], float(outline.get("tex_size", 26)), WIDTH - MARGIN - left) for step in steps]
    texts = [fill(step["text"], sources) for step in steps]
    heights = [
        max(height_needed([(text, BODY_SIZE, False)], text_width_), picture.height)
        for text, picture in zip(texts, pictures, strict=True)
    ]
    room = BOTTOM - TOP - sum(heights)
    if room < 0.12 * (len(steps) - 1):
        raise InputError(f"The derivation overflows by {0.12 * (len(steps) - 1) - room:.2f} in: shorten it.")
    space, top = min(room / len(steps), 0.55), TOP + 0.1
    for at, (step, text, picture, height) in enumerate(zip(steps, texts, pictures, heights, strict=True), 1):
        needed = height_needed([(text, BODY_SIZE, False)], text_width_)
        box = (MARGIN, top + (height - needed) / 2, text_width_, needed)
        add_text(slide, f"Step {at}", [(text, BODY_SIZE, False, INK)], box)
        add_picture(slide, picture, f"Equation {at}", step["alt"], left, top + (height - picture.height) / 2)
        top += height + space


def add_code(slide: Any, outline: dict[str, Any], sources: Sources) -> None:
    """Lines of a program on a panel beside the text."""
    lines, left, pad = outline["code"].strip().split("\n"), outline["body_right"] + APART, 0.25
    width, height = WIDTH - MARGIN - left, len(lines) * CODE_SIZE * LINE / 72 + 2 * pad
    longest = 0.6 * CODE_SIZE / 72 * max(map(len, lines))  # a character of Courier is 0.6 of its size wide
    if longest > width - 2 * pad or height > BOTTOM - TOP:
        raise InputError(f"The code is {longest:.1f} × {height:.1f} in: shorten it.")
    shape = add_rectangle(slide, (left, TOP, width, height))
    shape.name = "Code"
    shape.fill.fore_color.rgb = rgb(FILL)
    frame = shape.text_frame
    frame.margin_left = frame.margin_right = frame.margin_top = frame.margin_bottom = Inches(pad)
    frame.word_wrap = False
    write(frame, [(line, CODE_SIZE, False, INK) for line in lines])
    for paragraph in frame.paragraphs:
        paragraph.runs[0].font.name = MONO


def add_text(
    slide: Any, name: str, paragraphs: Sequence[tuple[str, float, bool, str]], box: Box, gap: float = 0.0
) -> Any:
    """A text box without margins; returns its frame."""
    shape = slide.shapes.add_textbox(*(Inches(length) for length in box))
    shape.name = name
    frame = shape.text_frame
    frame.margin_left = frame.margin_right = frame.margin_top = frame.margin_bottom = 0
    frame.word_wrap = True
    write(frame, paragraphs, gap)
    return frame


BLOCKS = {
    "cards": add_cards, "table": add_table, "still": add_still, "steps": add_steps, "code": add_code,
}  # fmt: skip
