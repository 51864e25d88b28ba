"""The deck: each slide of the outline on one of our layouts, with its visuals, notes, link and footer."""

from __future__ import annotations

import copy
import datetime
import io
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lxml import etree
from pptx.oxml.ns import qn
from pptx.util import Pt

from peftbook.core.errors import InputError
from peftbook.core.records import Store, write_atomically
from peftbook.core.tracking import track_reads
from peftbook.views.placeholders import Sources, fill, fill_title
from peftbook.views.slides.archive import fixed_zip
from peftbook.views.slides.blocks import BLOCKS, add_body, add_picture, add_text
from peftbook.views.slides.charts import named_chart
from peftbook.views.slides.measure import LINE, check_fit, text_width
from peftbook.views.slides.native import add_chart
from peftbook.views.slides.outline import OUTLINE, choose, read_outline
from peftbook.views.slides.pictures import Picture, drawing
from peftbook.views.slides.template import (
    ACCENT,
    BOTTOM,
    COVER_WIDTH,
    FOOTER_WIDTH,
    MARGIN,
    MUTED,
    SMALL,
    TITLE_HEIGHT,
    TITLE_SIZE,
    TOP,
    WIDTH,
    check_accent,
    template,
)

SHORT_TITLE = "Parameter-efficient fine-tuning, measured"
STAMP = datetime.datetime(2026, 1, 1)
VISUAL_WIDTH = 7.7
SPOKEN = (60, 120)  # words of what to say
NOTES_SIZE = 11
LISTED = 10  # runs that the notes name
SOURCE_SIZE = 12


def build(
    out: Path,
    store: Store,
    outline: Path = OUTLINE,
    *,
    address: str,
    version: str,
    sections: Sequence[str] = (),
    accent: str = ACCENT,
) -> Path:
    """Write the deck; equal records, outline and options give equal bytes.

    address, version: of the book, for links and footers.  sections: only these, after the cover.
    Raises InputError, and writes nothing, if a number is missing (it names the command that makes it), if words rest on
    a verdict that the records do not give, or if a text overflows its box.
    """
    deck = template(check_accent(accent))
    chosen = choose(read_outline(outline), sections)
    for number, slide in enumerate(chosen, 1):
        try:
            with track_reads() as seen:
                add_slide(deck, slide, Sources(store, seen), address, version)
        except InputError as error:
            raise InputError(f"Slide {number} ({slide['section']}): {error}") from None
    add_sections(deck, [slide["section"] for slide in chosen])
    core = deck.core_properties
    core.author = core.last_modified_by = "peftbook"
    core.title, core.subject, core.keywords = SHORT_TITLE, "LoRA, QLoRA, prompt tuning", "LoRA, QLoRA, prompt tuning"
    core.comments, core.revision, core.language, core.version = "", 1, "en-GB", version
    core.created = core.modified = STAMP
    stream = io.BytesIO()
    deck.save(stream)
    write_atomically(Path(out), fixed_zip(stream.getvalue()))
    return Path(out)


def add_slide(deck: Any, outline: dict[str, Any], sources: Sources, address: str, version: str) -> None:
    """One slide: its statement, text and visuals, source line, footers and notes."""
    sources.demand(outline.get("verdicts", {}))
    cover, with_text = outline.get("layout") == "cover", bool(outline.get("body"))
    kind = "Backup" if outline["section"] == "Backup" else "Statement"
    name = "Cover" if cover else f"{kind} with text" if with_text else kind
    layout = deck.slide_masters[0].slide_layouts.get_by_name(name)
    slide = deck.slides.add_slide(layout)
    title = fill_title(outline["title"], sources)
    size, box = (44, (COVER_WIDTH, 2.2)) if cover else (TITLE_SIZE, (WIDTH - 2 * MARGIN, TITLE_HEIGHT))
    check_fit([(line, size, True) for line in title.split("\n")], *box)
    slide.shapes.title.text_frame.text = title.replace("\n", "\v")  # a line break, not a paragraph
    if cover:
        lines = [fill(line, sources) for line in [*outline["body"], f"Version {version} · {short(address)}"]]
        check_fit([(line, 24, False) for line in lines], COVER_WIDTH, 1.9)
        slide.placeholders[1].text_frame.text = "\n".join(lines)
    else:
        fill_slide(slide, outline, sources)
        link = f"{address}book/{outline['chapter'].partition('#')[0]}.html"
        anchor = outline["chapter"].partition("#")[2]
        add_footers(slide, layout, [outline["section"], f"version {version}"], link, f"{link}#{anchor}" * bool(anchor))
    notes = slide.notes_slide.notes_text_frame
    notes.text = notes_text(outline, sources, address)
    for paragraph in notes.paragraphs:
        paragraph.font.size = Pt(NOTES_SIZE)


def fill_slide(slide: Any, outline: dict[str, Any], sources: Sources) -> None:
    """Text and visuals in reading order: text, then what it speaks of, then the source."""
    lines = [fill(line, sources) for line in outline.get("body", [])]
    room = VISUAL_WIDTH if outline.get("body") else WIDTH - 2 * MARGIN
    pictures = [drawing(name, sources, room, BOTTOM - TOP) for name in outline.get("figures", [])]
    left = min([WIDTH - MARGIN - picture.width for picture in pictures] + [left_of(outline)])
    if lines:
        right = outline.get("body_right", left - 0.35 if left < WIDTH - MARGIN else left)
        add_body(slide.placeholders[1], lines, right)
    add_visuals(slide, outline, pictures, sources)
    for kind, add in BLOCKS.items():
        if outline.get(kind):
            add(slide, outline, sources)
    if source := fill(outline.get("source", ""), sources):
        add_source(slide, source)


def left_of(outline: dict[str, Any]) -> float:
    """Where the charts of a slide begin, or its right margin."""
    if not outline.get("charts"):
        return WIDTH - MARGIN
    return WIDTH - MARGIN - VISUAL_WIDTH if outline.get("body") else MARGIN


def add_visuals(slide: Any, outline: dict[str, Any], pictures: Sequence[Picture], sources: Sources) -> None:
    """Charts side by side, or the drawing, each with its alternative text."""
    charts = outline.get("charts", [])
    names = [*charts, *outline.get("figures", [])]
    alts = [fill(alt, sources) for alt in outline.get("alts", [])] if names else []
    if len(alts) != len(names):
        raise InputError(f"There are {len(names)} visuals and {len(alts)} alternative texts: give one each.")
    gap, left = 0.3, left_of(outline)
    width = (WIDTH - MARGIN - left - gap * (len(charts) - 1)) / max(len(charts), 1)
    for at, (name, alt) in enumerate(zip(charts, alts, strict=False)):
        box = (left + at * (width + gap), TOP, width, BOTTOM - TOP)
        add_chart(slide, named_chart(name, sources.store), name, alt, box)
    for name, picture, alt in zip(outline.get("figures", []), pictures, alts[len(charts) :], strict=True):
        x = WIDTH - MARGIN - picture.width if outline.get("body") else (WIDTH - picture.width) / 2
        add_picture(slide, picture, f"Figure {name}", alt, x, TOP + (BOTTOM - TOP - picture.height) / 2)


def add_source(slide: Any, text: str) -> None:
    """The source line above the footer."""
    width = WIDTH - 2 * MARGIN
    check_fit([(text, SOURCE_SIZE, False)], width, SOURCE_SIZE * LINE / 72)
    add_text(slide, "Source", [(text, SOURCE_SIZE, False, MUTED)], (MARGIN, 6.58, width, 0.26))


def add_footers(slide: Any, layout: Any, words: Sequence[str], page: str, link: str) -> None:
    """Section, version and short link, and the slide number, in the layout's own placeholders."""
    for shape in layout.placeholders:
        kind = shape.placeholder_format.type.name
        if kind not in ("FOOTER", "SLIDE_NUMBER"):
            continue
        element = copy.deepcopy(shape._element)
        used = [int(other.get("id")) for other in slide.shapes._spTree.iter(qn("p:cNvPr"))]
        element.nvSpPr.cNvPr.set("id", str(max(used) + 1))
        slide.shapes._spTree.append(element)
        if kind == "FOOTER":
            paragraph = slide.shapes[-1].text_frame.paragraphs[0]
            text = " · ".join(words) + " · "
            if text_width(text + short(page), SMALL) > FOOTER_WIDTH:
                raise InputError(f"The footer {text + short(page)!r} is too long: shorten the section's name.")
            for run in paragraph.runs:
                run._r.getparent().remove(run._r)
            paragraph.add_run().text = text
            run = paragraph.add_run()
            run.text = short(page)
            run.hyperlink.address = link or page


def short(address: str) -> str:
    """An address as it is printed."""
    return address.removeprefix("https://").rstrip("/")


def add_sections(deck: Any, names: Sequence[str]) -> None:
    """PowerPoint's own sections, so that a lecturer finds and folds the parts in the slide pane."""
    space = "http://schemas.microsoft.com/office/powerpoint/2010/main"
    root = deck.part._element
    if (extensions := root.find(qn("p:extLst"))) is None:
        extensions = etree.SubElement(root, qn("p:extLst"))
    holder = etree.SubElement(extensions, qn("p:ext"), uri="{521415D9-36F7-43E2-AB2F-B90AF26B5E84}")
    listed = etree.SubElement(holder, f"{{{space}}}sectionLst", nsmap={"p14": space})
    slides = before = None
    for name, entry in zip(names, root.find(qn("p:sldIdLst")), strict=True):
        if name != before:
            key = str(uuid.uuid5(uuid.NAMESPACE_URL, name)).upper()
            section = etree.SubElement(listed, f"{{{space}}}section", name=name, id=f"{{{key}}}")
            slides, before = etree.SubElement(section, f"{{{space}}}sldIdLst"), name
        etree.SubElement(slides, f"{{{space}}}sldId", id=entry.get("id"))


def notes_text(outline: dict[str, Any], sources: Sources, address: str) -> str:
    """What to say, what students ask, the chapter, and last where it comes from: source, verdicts and runs."""
    spoken = " ".join(fill(outline["notes"], sources).split())
    count = len(spoken.split())
    if not SPOKEN[0] <= count <= SPOKEN[1]:
        raise InputError(f"The notes have {count} words to say: write {SPOKEN[0]} to {SPOKEN[1]}.")
    asked = "Students ask: " + " ".join(fill(outline["asked"], sources).split())
    chapter = f"Chapter: {short(address)}/book/{outline['chapter'].partition('#')[0]}.html"
    behind: list[str] = []
    if source := fill(outline.get("source", ""), sources):
        behind.append(source if ":" in source.split(" ", 1)[0] else f"Source: {source}")
    if sources.verdicts:
        said = ", ".join(f"{study} {outcome}" for study, outcome in sources.verdicts.items())
        behind.append(f"Verdicts: {said}.")
    if runs := list(sources.runs):
        more = f" and {len(runs) - LISTED} more" if len(runs) > LISTED else ""
        where = f"each on {short(address)}/book/runs.html"
        behind.append("Runs: " + ", ".join(key[:12] for key in runs[:LISTED]) + f"{more}; {where}")
    return "\n\n".join([spoken, asked, chapter, *["\n".join(behind)] * bool(behind)])
