"""The master: 16:9, one typeface, theme colours, footers, and five layouts of our own.

The accent is the theme's colour `dk2`: whoever changes the theme in PowerPoint, or the option on the command line,
changes it everywhere.
"""

from __future__ import annotations

import copy
import re
from typing import Any

from lxml import etree
from pptx import Presentation
from pptx.dml.color import RGBColor
from pptx.enum.text import MSO_ANCHOR
from pptx.opc.constants import RELATIONSHIP_TYPE
from pptx.oxml.ns import qn
from pptx.util import Inches

from peftbook.core.errors import InputError
from peftbook.methods import arm_looks
from peftbook.views.figures.style import PAPER, TONES

FONT = "Arial"
WIDTH, HEIGHT, MARGIN = 13.333, 7.5, 0.7  # inches
TITLE_TOP, TITLE_HEIGHT, TITLE_SIZE = 0.42, 1.02, 28
TOP, BOTTOM = 1.62, 6.5  # of the content
COVER_WIDTH, FOOTER_WIDTH = 8.3, 10.7
BODY_SIZE, SMALL = 20, 16
INK, MUTED, RULE, FILL, ACCENT = (TONES["light"][name] for name in ("ink", "muted", "rule", "fill", "accent"))
LAYOUTS = {"Title Slide": "Cover", "Title and Content": "Statement with text", "Title Only": "Statement"}
BACKUPS = {"Blank": "Statement", "Section Header": "Statement with text"}  # spare layout → what it becomes a backup of
AA = 4.5  # least contrast of text


def rgb(colour: str) -> RGBColor:
    return RGBColor.from_string(colour.lstrip("#").upper())


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, 0 to 1, as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(colour: str, other: str) -> float:
    """Contrast of two colours, 1 to 21, as WCAG 2 defines it."""
    high, low = sorted((luminance(colour), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def check_accent(colour: str) -> str:
    """The colour, in lower case. Raises InputError if it is none, or too light to be read on paper and on panels."""
    if not re.fullmatch("#[0-9a-fA-F]{6}", colour):
        raise InputError(f"Accent {colour!r} is not a colour: write it as #rrggbb, for example '#0b6e4f'.")
    worst = min(contrast(colour, ground) for ground in (PAPER["light"], FILL))
    if worst < AA:
        raise InputError(f"Accent {colour!r} has a contrast of {worst:.1f}, text needs {AA}: choose a darker colour.")
    return colour.lower()


def template(accent: str = ACCENT) -> Any:
    """An empty 16:9 presentation with our master: colours, fonts, footers, and five layouts."""
    deck = Presentation()
    deck.slide_width, deck.slide_height = Inches(WIDTH), Inches(HEIGHT)
    package, relations = deck.part.package, deck.part.rels
    for thumbnail in [one for one in package.iter_rels() if one.reltype == RELATIONSHIP_TYPE.THUMBNAIL]:
        package.drop_rel(thumbnail.rId)
    for key in [key for key, one in relations.items() if one.reltype == RELATIONSHIP_TYPE.PRINTER_SETTINGS]:
        relations.pop(key)
    master = deck.slide_masters[0]
    theme = master.part.part_related_by(RELATIONSHIP_TYPE.THEME)
    theme.blob = themed(theme.blob, accent)
    spare = {}
    for layout in list(master.slide_layouts):
        if layout.name in LAYOUTS:
            layout.name = LAYOUTS[layout.name]
        elif layout.name in BACKUPS:
            spare[BACKUPS[layout.name]] = layout
        else:
            master.slide_layouts.remove(layout)
    background = master.background.fill
    background.solid()
    background.fore_color.rgb = rgb(PAPER["light"])
    set_text_styles(master)
    for name, layout in spare.items():
        make_backup(layout, master.slide_layouts.get_by_name(name))
    for place in (master, *master.slide_layouts):
        for shape in list(place.placeholders):
            place_placeholder(shape, getattr(place, "name", ""))
        decorate(place)
    set_notes(deck)
    return deck


def make_backup(spare: Any, like: Any) -> None:
    """A statement that is marked as one for after the lecture."""
    spare.name = like.name.replace("Statement", "Backup")
    tree = spare.shapes._spTree
    for shape in list(spare.shapes):
        tree.remove(shape._element)
    for shape in like.placeholders:
        tree.append(copy.deepcopy(shape._element))
    spare._element.set("type", like._element.get("type"))


def themed(blob: bytes, accent: str) -> bytes:
    """The theme with our fonts and colours."""
    root = etree.fromstring(blob)
    root.set("name", "peftbook")
    for latin in root.iter(qn("a:latin")):
        latin.set("typeface", FONT)
    colours = {"dk1": INK, "lt1": PAPER["light"], "dk2": accent, "lt2": FILL, "hlink": accent, "folHlink": MUTED}
    arms = ("lora", "qlora", "prompt", "fewshot", "untuned", "full")
    colours |= {f"accent{at}": arm_looks()[arm].light for at, arm in enumerate(arms, 1)}
    for name, colour in colours.items():
        for element in root.iter(qn(f"a:{name}")):
            del element[:]
            etree.SubElement(element, qn("a:srgbClr"), val=colour.lstrip("#").upper())
    return etree.tostring(root, xml_declaration=True, encoding="UTF-8", standalone=True)


def set_text_styles(master: Any) -> None:
    """Title left, bold; body without bullets, one size."""
    styles = master.element.find(qn("p:txStyles"))
    title = styles.find(qn("p:titleStyle")).find(qn("a:lvl1pPr"))
    title.set("algn", "l")
    title.find(qn("a:defRPr")).set("sz", str(TITLE_SIZE * 100))
    title.find(qn("a:defRPr")).set("b", "1")
    body = styles.find(qn("p:bodyStyle")).find(qn("a:lvl1pPr"))
    body.set("marL", "0")
    body.set("indent", "0")
    for name in ("a:buFont", "a:buChar"):
        if (bullet := body.find(qn(name))) is not None:
            body.remove(bullet)
    for space in body.findall(qn("a:spcBef")):
        body.remove(space)
    before = [qn("a:lnSpc"), qn("a:spcAft")]
    body.insert(sum(child.tag in before for child in body), etree.Element(qn("a:buNone")))
    body.find(qn("a:defRPr")).set("sz", str(BODY_SIZE * 100))


def place_placeholder(shape: Any, layout: str) -> None:
    """Put a placeholder of master or layout where our grid wants it."""
    kind, cover = shape.placeholder_format.type.name, layout == "Cover"
    boxes = {
        "TITLE": (MARGIN, TITLE_TOP, WIDTH - 2 * MARGIN, TITLE_HEIGHT),
        "CENTER_TITLE": (MARGIN, 1.75, COVER_WIDTH, 2.2),
        "SUBTITLE": (MARGIN, 4.3, COVER_WIDTH, 1.9),
        "BODY": (MARGIN, TOP, WIDTH - 2 * MARGIN, BOTTOM - TOP),
        "OBJECT": (MARGIN, TOP, WIDTH - 2 * MARGIN, BOTTOM - TOP),
        "FOOTER": (MARGIN, 6.93, FOOTER_WIDTH, 0.36),
        "SLIDE_NUMBER": (WIDTH - MARGIN - 1.1, 6.93, 1.1, 0.36),
    }
    if kind not in boxes or (cover and kind in ("FOOTER", "SLIDE_NUMBER")):
        shape._element.getparent().remove(shape._element)
        return
    shape.left, shape.top, shape.width, shape.height = (Inches(value) for value in boxes[kind])
    frame = shape.text_frame
    frame.margin_left = frame.margin_right = frame.margin_top = frame.margin_bottom = 0
    frame.vertical_anchor = {"TITLE": MSO_ANCHOR.MIDDLE, "CENTER_TITLE": MSO_ANCHOR.BOTTOM}.get(kind, MSO_ANCHOR.TOP)
    if kind in ("FOOTER", "SLIDE_NUMBER", "CENTER_TITLE", "SUBTITLE"):
        style = frame._txBody.find(qn("a:lstStyle"))
        del style[:]
        align = "r" if kind == "SLIDE_NUMBER" else "l"
        level = etree.SubElement(style, qn("a:lvl1pPr"), algn=align, marL="0", indent="0")
        etree.SubElement(level, qn("a:buNone"))
        size = {"CENTER_TITLE": 44, "SUBTITLE": 24}.get(kind, SMALL)
        run = etree.SubElement(level, qn("a:defRPr"), sz=str(size * 100), b=str(int(kind == "CENTER_TITLE")))
        fill_element = etree.SubElement(run, qn("a:solidFill"))
        colour = INK if kind == "CENTER_TITLE" else MUTED
        etree.SubElement(fill_element, qn("a:srgbClr"), val=colour.lstrip("#").upper())


def decorate(place: Any) -> None:
    """What a layout draws behind its slides: the accent rule above the title; on the cover W, B and A, to scale."""
    if not hasattr(place, "slide_master"):
        return
    if place.name == "Cover":
        boxes = [("Rule", MARGIN, 1.35, 1.6, 0.07, "tx2"), ("Ground", 9.55, 0, WIDTH - 9.55, HEIGHT, "bg2")]
        side, rank, left, top = 2.2, 0.24, 10.1, 2.05
        boxes += [("W", left, top + rank + 0.16, side, side, "accent5")]
        boxes += [("B", left + side + 0.16, top + rank + 0.16, rank, side, "tx2"), ("A", left, top, side, rank, "tx2")]
    else:
        backup = place.name.startswith("Backup")
        boxes = [("Rule", MARGIN, 0.3, 2.4 if backup else 0.9, 0.07, "accent5" if backup else "tx2")]
    for name, left, top, width, height, colour in boxes:
        place.shapes._spTree.append(rectangle(place, name, left, top, width, height, colour))


def rectangle(place: Any, name: str, left: float, top: float, width: float, height: float, colour: str) -> Any:
    """A plain rectangle in a theme colour, in inches; decoration, so that screen readers pass over it."""
    used = [int(shape.get("id")) for shape in place.shapes._spTree.iter(qn("p:cNvPr"))]
    return etree.fromstring(
        f'<p:sp xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
        f'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"><p:nvSpPr>'
        f'<p:cNvPr id="{max(used) + 1}" name="{name}"/><p:cNvSpPr/><p:nvPr userDrawn="1"/></p:nvSpPr><p:spPr><a:xfrm>'
        f'<a:off x="{Inches(left)}" y="{Inches(top)}"/><a:ext cx="{Inches(width)}" cy="{Inches(height)}"/></a:xfrm>'
        f'<a:prstGeom prst="rect"><a:avLst/></a:prstGeom><a:solidFill><a:schemeClr val="{colour}"/></a:solidFill>'
        f"<a:ln><a:noFill/></a:ln></p:spPr></p:sp>"
    )


def set_notes(deck: Any) -> None:
    """The notes page: the slide above, the notes below it, so that a handout shows both."""
    boxes = {
        "SLIDE_IMAGE": (0.5, 0.55, 6.5, 3.66),
        "BODY": (0.5, 4.45, 6.5, 4.75),
        "SLIDE_NUMBER": (5.9, 9.4, 1.1, 0.3),
    }
    master = deck.notes_master
    for shape in list(master.placeholders):
        kind = shape.placeholder_format.type.name
        if kind not in boxes:
            shape._element.getparent().remove(shape._element)
            continue
        shape.left, shape.top, shape.width, shape.height = (Inches(value) for value in boxes[kind])
