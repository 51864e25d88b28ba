"""The deck: `slides/outline.toml` says what each slide states and shows; this module builds `slides/peft.pptx` from it.

Numbers in the outline are placeholders, so that no result is typed by hand:
`{methods.lora_loss}` a quantity with its interval; `{methods.lora_loss;value}` its value alone;
`{methods.lora_minus_full_loss;below|not separable from|above}` the word for a quantity wholly below zero, not separable
from zero, or wholly above it (`;…;1` compares with 1); `{cite:ID}` a published value; `{computed:NAME}` arithmetic.
Charts are native and hold the records' numbers; drawings are pictures of the book's own figures.
"""

from __future__ import annotations

import copy
import datetime
import io
import math
import re
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from fontTools import agl
from lxml import etree
from PIL import Image
from pptx import Presentation
from pptx.chart.data import CategoryChartData, XyChartData
from pptx.dml.color import RGBColor
from pptx.enum.chart import XL_CHART_TYPE, XL_LABEL_POSITION, XL_LEGEND_POSITION, XL_MARKER_STYLE, XL_TICK_MARK
from pptx.enum.dml import MSO_LINE
from pptx.enum.shapes import MSO_SHAPE
from pptx.enum.text import MSO_ANCHOR, PP_ALIGN
from pptx.opc.constants import RELATIONSHIP_TYPE
from pptx.oxml.ns import qn
from pptx.util import Inches, Pt

from peftbook import figures, results
from peftbook.errors import InputError
from peftbook.figures import costs, lora, methods, prompt, quantisation
from peftbook.figures.style import METHODS, PAPER, TONES
from peftbook.literature import published
from peftbook.records import Store, write_atomically
from peftbook.studies import Quantity

__all__ = ["CHARTS", "OUTLINE", "Chart", "build", "fill", "lines_needed", "read_outline", "text_width"]

OUTLINE = Path(__file__).resolve().parents[2] / "slides" / "outline.toml"
FONT = "Arial"
STAMP = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
WIDTH, HEIGHT, MARGIN = 13.333, 7.5, 0.7  # inches
TITLE_TOP, TITLE_HEIGHT, TITLE_SIZE = 0.42, 1.02, 28
TOP, BOTTOM = 1.62, 6.5  # of the content
BODY_SIZE, SMALL = 20, 16
VISUAL_WIDTH = 7.7
DPI = 330  # a picture 7.7 inches wide has 288 pixels an inch on the slide: sharp on a 4K screen
INK, MUTED, RULE, FILL, ACCENT = (TONES["light"][name] for name in ("ink", "muted", "rule", "fill", "accent"))
SHORT_TITLE = "Parameter-efficient fine-tuning, measured"
NOTES_WORDS = (60, 120)
SUPERSCRIPTS = str.maketrans("−0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
APPLICATION = (
    b'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n<Properties xmlns="http://schemas.openxmlformats.org/'
    b'officeDocument/2006/extended-properties"><Application>peftbook</Application>'
    b"<PresentationFormat>Widescreen</PresentationFormat></Properties>"
)


# Text: placeholders and fit.


@dataclass
class Sources:
    """What a slide's text and visuals were made from: keys of runs, in order of use."""

    store: Store
    runs: list[str] = field(default_factory=list)

    def quantity(self, name: str) -> Quantity:
        """A quantity by name; its runs are noted. Raises InputError naming the command that makes it."""
        found = results.quantity(name, self.store)
        self.runs += found.runs
        return found


def fill(text: str, sources: Sources) -> str:
    """Replace every placeholder. Raises InputError for an unknown or missing one."""
    filled = re.sub(r"\{([^{}]+)\}", lambda match: placeholder(match[1], sources), text)
    return re.sub(r"10\^([−\d]+)", lambda match: "10" + match[1].translate(SUPERSCRIPTS), filled)


def placeholder(name: str, sources: Sources) -> str:
    kind, colon, rest = name.partition(":")
    if colon and kind == "cite":
        return str(published(rest))
    if colon and kind == "computed":
        if rest not in COMPUTED:
            raise InputError(f"Unknown computed value {rest!r}: choose one of {', '.join(COMPUTED)}.")
        return COMPUTED[rest]()
    name, *forms = name.split(";")
    found = sources.quantity(name)
    if not forms:
        return results.format_quantity(found)
    if forms[0] == "value":
        return results.format_quantity(found, interval=False)
    words = forms[0].split("|")
    if len(words) != 3:
        raise InputError(
            f"Placeholder {{{name};{forms[0]}}} is not valid: write ';value' or three words 'below|neither|above'."
        )
    pivot = float(forms[1]) if len(forms) > 1 else 0.0
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    return words[0] if high < pivot else words[2] if low > pivot else words[1]


def gigabytes(method: str) -> str:
    return f"{sum(costs.state_bytes(method).values()) / 1e9:.1f} GB"


def nf4_share(pick: Callable[[Any], float]) -> str:
    return f"{100 * float(pick(quantisation.bin_shares(quantisation.nf4_levels(), 64))):.1f} %"


def per_rank(targets: str) -> int:
    return lora.parameters_per_rank(lora.TARGETS[targets])


COMPUTED: dict[str, Callable[[], str]] = {
    "state_full_7b": lambda: gigabytes("full"),
    "state_lora_7b": lambda: gigabytes("lora"),
    "state_qlora_7b": lambda: gigabytes("qlora"),
    "lora_r16_parameters": lambda: f"{16 * per_rank('all linear'):,}",
    "lora_r16_percent": lambda: f"{1600 * per_rank('all linear') / lora.TOTAL:.1f} %",
    "lora_qv_r1_parameters": lambda: f"{per_rank('q and v'):,}",
    "prompt_20_parameters": lambda: f"{prompt.prompt_parameters(20):,}",
    "prompt_tokens_of_lora_qv_r1": lambda: f"{per_rank('q and v') // prompt.prompt_parameters(1)}",
    "all_over_qv": lambda: f"{per_rank('all linear') / per_rank('q and v'):.1f}",
    "matrix_percent": lambda: f"{100 * 16 * 2 / 576:.1f} %",
    "nf4_share_least": lambda: nf4_share(lambda shares: shares.min()),
    "nf4_share_most": lambda: nf4_share(lambda shares: shares.max()),
    "bits_single": lambda: f"{quantisation.bits_per_parameter(64, False):.3g}",
    "bits_double": lambda: f"{quantisation.bits_per_parameter(64, True):.3f}",
    "nf4_error": lambda: f"{quantisation.mean_squared_error(quantisation.nf4_levels(), 64):.4f}",
    "int4_error": lambda: f"{quantisation.mean_squared_error(quantisation.codebooks()['INT4'], 64):.4f}",
}


@cache
def advances(bold: bool) -> dict[str, int]:
    """Width of each character in thousandths of the size. Helvetica's table, which matplotlib ships, is Arial's too."""
    name = "Helvetica-Bold.afm" if bold else "Helvetica.afm"
    table = (Path(matplotlib.get_data_path()) / "fonts" / "pdfcorefonts" / name).read_text(encoding="ascii")
    found = re.findall(r"^C -?\d+ ; WX (\d+) ; N (\w+)", table, re.MULTILINE)
    return {agl.toUnicode(glyph): int(width) for width, glyph in found}


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


def height_needed(paragraphs: Sequence[tuple[str, float, bool]], width: float, gap: float = 0.0) -> float:
    """Inches that the paragraphs (text, points, bold) take in a box of this inner width."""
    lines = sum(lines_needed(text, size, width, bold) * size * 1.2 / 72 for text, size, bold in paragraphs)
    return lines + gap * (len(paragraphs) - 1) / 72


def check_fit(paragraphs: Sequence[tuple[str, float, bool]], width: float, height: float, gap: float = 0.0) -> None:
    """Raise InputError if the paragraphs (text, points, bold) overflow a box of this inner size in inches."""
    needed = height_needed(paragraphs, width, gap)
    if needed > height + 0.01:
        raise InputError(f"Text overflows its box by {needed - height:.2f} in: shorten {paragraphs[0][0][:60]!r}.")


# Template.


def rgb(colour: str) -> RGBColor:
    return RGBColor.from_string(colour.lstrip("#").upper())


def template() -> Any:
    """An empty 16:9 presentation with our master: colours, fonts, footers, and three layouts."""
    deck = Presentation()
    deck.slide_width, deck.slide_height = Inches(WIDTH), Inches(HEIGHT)
    package = deck.part.package
    for key, rel in list(package._rels.items()):
        if rel.reltype == RELATIONSHIP_TYPE.THUMBNAIL:
            package._rels.pop(key)
    for key, rel in list(deck.part.rels.items()):
        if rel.reltype == RELATIONSHIP_TYPE.PRINTER_SETTINGS:
            deck.part.rels.pop(key)
    master = deck.slide_masters[0]
    theme = master.part.part_related_by(RELATIONSHIP_TYPE.THEME)
    theme._blob = themed(theme.blob)
    keep = {"Title Slide": "Cover", "Title and Content": "Statement with text", "Title Only": "Statement"}
    for layout in list(master.slide_layouts):
        if layout.name in keep:
            layout.name = keep[layout.name]
        else:
            master.slide_layouts.remove(layout)
    background = master.background.fill
    background.solid()
    background.fore_color.rgb = rgb(PAPER["light"])
    set_text_styles(master)
    for place in (master, *master.slide_layouts):
        cover = getattr(place, "name", "") == "Cover"
        for shape in list(place.placeholders):
            place_placeholder(shape, cover)
        add_rule(place, cover)
    return deck


def themed(blob: bytes) -> bytes:
    """The theme with our fonts and colours."""
    root = etree.fromstring(blob)
    drawing = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
    root.set("name", "peftbook")
    for latin in root.iter(f"{drawing}latin"):
        latin.set("typeface", FONT)
    colours = {"dk1": INK, "lt1": PAPER["light"], "dk2": ACCENT, "lt2": FILL, "hlink": ACCENT, "folHlink": MUTED}
    colours |= {
        f"accent{at}": METHODS[name].light
        for at, name in enumerate(("lora", "qlora", "prompt", "fewshot", "untuned", "full"), 1)
    }
    for name, colour in colours.items():
        for element in root.iter(f"{drawing}{name}"):
            for child in list(element):
                element.remove(child)
            etree.SubElement(element, f"{drawing}srgbClr").set("val", colour.lstrip("#").upper())
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
        if (found := body.find(qn(name))) is not None:
            body.remove(found)
    space = body.find(qn("a:spcBef"))
    after = [qn("a:lnSpc"), qn("a:spcBef"), qn("a:spcAft")]
    none = etree.Element(qn("a:buNone"))
    body.insert(sum(child.tag in after for child in body), none)
    if space is not None:
        body.remove(space)
    body.find(qn("a:defRPr")).set("sz", str(BODY_SIZE * 100))


def place_placeholder(shape: Any, cover: bool) -> None:
    """Put a placeholder of master or layout where our grid wants it."""
    kind = shape.placeholder_format.type.name
    boxes = {
        "TITLE": (MARGIN, TITLE_TOP, WIDTH - 2 * MARGIN, TITLE_HEIGHT),
        "CENTER_TITLE": (MARGIN, 2.1, WIDTH - 2 * MARGIN, 1.5),
        "SUBTITLE": (MARGIN, 3.75, WIDTH - 2 * MARGIN, 1.6),
        "BODY": (MARGIN, TOP, WIDTH - 2 * MARGIN, BOTTOM - TOP),
        "OBJECT": (MARGIN, TOP, WIDTH - 2 * MARGIN, BOTTOM - TOP),
        "FOOTER": (MARGIN, 6.93, 10.5, 0.36),
        "SLIDE_NUMBER": (WIDTH - MARGIN - 1.2, 6.93, 1.2, 0.36),
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
        for child in list(style):
            style.remove(child)
        level = etree.SubElement(
            style, qn("a:lvl1pPr"), algn="r" if kind == "SLIDE_NUMBER" else "l", marL="0", indent="0"
        )
        etree.SubElement(level, qn("a:buNone"))
        size = {"CENTER_TITLE": 44, "SUBTITLE": 24}.get(kind, SMALL)
        run = etree.SubElement(level, qn("a:defRPr"), sz=str(size * 100), b=str(int(kind == "CENTER_TITLE")))
        fill_element = etree.SubElement(run, qn("a:solidFill"))
        colour = INK if kind == "CENTER_TITLE" else MUTED
        etree.SubElement(fill_element, qn("a:srgbClr"), val=colour.lstrip("#").upper())


def add_rule(place: Any, cover: bool) -> None:
    """The accent rule above the title, on layouts only."""
    if not hasattr(place, "slide_master"):
        return
    top, width = (1.9, 1.6) if cover else (0.3, 0.9)
    tree = place.shapes._spTree
    xml = (
        f'<p:sp xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
        f'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"><p:nvSpPr>'
        f'<p:cNvPr id="{90 + len(tree)}" name="Rule"/><p:cNvSpPr/><p:nvPr userDrawn="1"/></p:nvSpPr><p:spPr><a:xfrm>'
        f'<a:off x="{Inches(MARGIN)}" y="{Inches(top)}"/><a:ext cx="{Inches(width)}" cy="{Inches(0.07)}"/></a:xfrm>'
        f'<a:prstGeom prst="rect"><a:avLst/></a:prstGeom>'
        f'<a:solidFill><a:srgbClr val="{ACCENT[1:].upper()}"/></a:solidFill>'
        f"<a:ln><a:noFill/></a:ln></p:spPr></p:sp>"
    )
    tree.append(etree.fromstring(xml))


# Charts.


@dataclass
class Series:
    """One series: bars have one value a category, lines have x and y. spread: (low, high) of each value."""

    name: str
    values: list[float]
    look: str = ""
    x: list[float] = field(default_factory=list)
    spread: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Chart:
    """A native chart. categories: bars; without them the series are lines over x."""

    series: list[Series]
    x_title: str
    y_title: str
    categories: list[str] = field(default_factory=list)
    log: dict[str, int] = field(default_factory=dict)  # axis → base
    y_range: tuple[float | None, float | None] = (None, None)
    x_range: tuple[float | None, float | None] = (None, None)
    stacked: bool = False
    number_format: str = "General"
    x_format: str = "General"
    point_looks: list[str] = field(default_factory=list)
    markers: bool = True


def arms_chart(sources: Sources, scores: dict[str, str], axis: str, number_format: str, arms: Iterable[str]) -> Chart:
    """Bars of the arms' test scores with 95 % intervals. scores: quantity suffix → series name."""
    arms = list(arms)
    series = []
    for score, name in scores.items():
        found = [sources.quantity(f"methods.{arm}_{score}") for arm in arms]
        spread = [(float(q.low or 0), float(q.high or 0)) for q in found]
        series.append(Series(name, [q.value for q in found], spread=spread))
    labels = [METHODS[arm].label for arm in arms]
    return Chart(series, "", axis, labels, number_format=number_format, y_range=(0, None))


def chart_test_loss(sources: Sources) -> Chart:
    """Test loss of every arm with its 95 % interval."""
    chart = arms_chart(sources, {"loss": "Test loss"}, "Test loss, nats per token", "0.0", METHODS)
    chart.point_looks = list(METHODS)
    return chart


def chart_test_scores(sources: Sources) -> Chart:
    """ROUGE-L and BERTScore of every arm with 95 % intervals."""
    chart = arms_chart(sources, {"rougeL": "ROUGE-L", "bertscore_f1": "BERTScore F1"}, "Score, 0–1", "0.0", METHODS)
    for series, look in zip(chart.series, ("lora", "qlora"), strict=True):
        series.look = look
    return chart


def chart_learning_rates(sources: Sources) -> Chart:
    """Validation loss against learning rate; diverged runs are left out."""
    series = []
    for arm in methods.methods.ARMS:
        sources.quantity(f"methods.{arm}_best_rate")
        points = [
            pair for pair in zip(*methods.sweep_points(arm, sources.store), strict=True) if math.isfinite(pair[1])
        ]
        series.append(Series(METHODS[arm].label, [y for _, y in points], arm, [x for x, _ in points]))
    series.sort(key=lambda one: -len(one.x))  # LibreOffice drops points of a first series that is shorter
    values = [value for one in series for value in one.values]
    low, high = (
        math.floor(min(values) * 10) / 10 - 0.1,
        math.ceil(min(max(values), min(values) + methods.CAP) * 10) / 10,
    )
    return Chart(
        series,
        "Learning rate",
        "Validation loss, nats per token",
        log={"x": 10},
        y_range=(low, high),
        number_format="0.0",
        x_format="0E+0",
        x_range=(1e-5, 1.0),
    )


def chart_training_curves(sources: Sources) -> Chart:
    """Training loss of the final runs, mean over seeds, smoothed over nine steps."""
    series = []
    for arm in methods.methods.ARMS:
        sources.quantity(f"methods.{arm}_loss")
        curves = [record.curve["train_loss_nats"] for record in methods.chosen_records(arm, sources.store)]
        mean = [math.fsum(step) / len(step) for step in zip(*curves, strict=False)]
        smoothed = [round(value, 4) for value in methods.smooth(mean)]
        series.append(Series(METHODS[arm].label, smoothed, arm, [float(step) for step in range(1, len(smoothed) + 1)]))
    low = math.floor(min(min(one.values) for one in series) * 2) / 2
    return Chart(
        series,
        "Optimiser step (batch of 8)",
        "Training loss, nats per token",
        number_format="0.0",
        markers=False,
        y_range=(low, None),
        x_range=(0, None),
    )


def chart_parameter_counts(sources: Sources) -> Chart:
    """LoRA's trained parameters against rank for four sets of target layers of SmolLM2-135M; computed."""
    ranks = [float(2**k) for k in range(9)]
    looks = dict(zip(reversed(lora.TARGETS), ("lora", "qlora", "prompt", "fewshot"), strict=True))
    series = [
        Series(name, [r * lora.parameters_per_rank(lora.TARGETS[name]) for r in ranks], look, ranks)
        for name, look in looks.items()
    ]
    return Chart(
        series,
        "Rank r",
        "Trained parameters",
        log={"x": 10, "y": 10},
        number_format="#,##0",
        x_format="0",
        x_range=(1, 256),
        y_range=(1e4, 1e8),
    )


def chart_training_state(sources: Sources) -> Chart:
    """Gigabytes that training keeps for Llama-2-7B, activations not counted; computed."""
    arms = ["full", "lora", "qlora", "prompt"]
    parts = {"weights": "untuned", "gradients": "qlora", "optimiser": "lora"}
    series = [
        Series(part.capitalize(), [round(costs.state_bytes(arm)[part] / 1e9, 3) for arm in arms], look)
        for part, look in parts.items()
    ]
    return Chart(
        series, "", "GB kept in training", [METHODS[arm].label for arm in arms], stacked=True, number_format="0"
    )


def cost_chart(sources: Sources, name: str, axis: str, unit: float, number_format: str) -> Chart:
    """Bars of one cost by method with the range of the repeats."""
    arms = ["full", "lora", "qlora", "prompt"]
    found = [sources.quantity(f"costs.{arm}_{name}") for arm in arms]
    field_name = {"step_seconds": "median_step_seconds", "peak_memory": "peak_memory_bytes"}[name]
    runs = [costs.repeats(arm, sources.store, field_name) for arm in arms]
    series = Series(axis, [q.value / unit for q in found], spread=[(min(r) / unit, max(r) / unit) for r in runs])
    return Chart(
        [series],
        "",
        axis,
        [METHODS[arm].label for arm in arms],
        y_range=(0, None),
        number_format=number_format,
        point_looks=arms,
    )


CHARTS: dict[str, Callable[[Sources], Chart]] = {
    "test_loss": chart_test_loss,
    "test_scores": chart_test_scores,
    "learning_rates": chart_learning_rates,
    "training_curves": chart_training_curves,
    "parameter_counts": chart_parameter_counts,
    "training_state": chart_training_state,
    "step_seconds": lambda sources: cost_chart(sources, "step_seconds", "Seconds per step", 1.0, "0.0"),
    "peak_memory": lambda sources: cost_chart(sources, "peak_memory", "Peak memory, GB", 1e9, "0.0"),
}
MARKERS = {
    "o": XL_MARKER_STYLE.CIRCLE,
    "s": XL_MARKER_STYLE.SQUARE,
    "D": XL_MARKER_STYLE.DIAMOND,
    "^": XL_MARKER_STYLE.TRIANGLE,
    "v": XL_MARKER_STYLE.X,
    "X": XL_MARKER_STYLE.PLUS,
}
DASHES = {
    "full": MSO_LINE.SOLID,
    "lora": MSO_LINE.SOLID,
    "qlora": MSO_LINE.DASH,
    "prompt": MSO_LINE.LONG_DASH_DOT,
    "fewshot": MSO_LINE.ROUND_DOT,
    "untuned": MSO_LINE.ROUND_DOT,
}


def add_chart(slide: Any, chart: Chart, name: str, alt: str, box: tuple[float, float, float, float]) -> None:
    """Put a native chart into a box (left, top, width, height in inches)."""
    data: Any
    if chart.categories:
        data = CategoryChartData()
        data.categories = chart.categories
        for one in chart.series:
            data.add_series(one.name, one.values)
        kind = XL_CHART_TYPE.BAR_STACKED if chart.stacked else XL_CHART_TYPE.COLUMN_CLUSTERED
    else:
        data = XyChartData()
        for one in chart.series:
            series = data.add_series(one.name)
            for x, y in zip(one.x, one.values, strict=True):
                series.add_data_point(x, y)
        kind = XL_CHART_TYPE.XY_SCATTER_LINES if chart.markers else XL_CHART_TYPE.XY_SCATTER_LINES_NO_MARKERS
    frame = slide.shapes.add_chart(kind, *(Inches(value) for value in box), data)
    frame.name = f"Chart {name}"
    frame._element.nvGraphicFramePr.cNvPr.set("descr", alt)
    native = frame.chart
    native.font.size, native.font.name, native.font.color.rgb = Pt(SMALL), FONT, rgb(INK)
    native.has_title = False
    native.has_legend = len(chart.series) > 1
    if native.has_legend:
        native.legend.position, native.legend.include_in_layout = XL_LEGEND_POSITION.BOTTOM, False
        native.legend.font.size = Pt(SMALL)
    axes = (
        (native.category_axis, chart.x_title, chart.x_range, chart.x_format, "x"),
        (native.value_axis, chart.y_title, chart.y_range, chart.number_format, "y"),
    )
    for axis, title, (low, high), number_format, letter in axes:
        format_axis(axis, title, number_format, grid=letter == "y" or not chart.categories)
        if letter == "x" and chart.categories:
            continue
        axis.minimum_scale, axis.maximum_scale = low, high
        if letter in chart.log:
            axis._element.find(qn("c:scaling")).insert(0, etree.Element(qn("c:logBase"), val=str(chart.log[letter])))
    if chart.log:
        for cross in native._chartSpace.iter(qn("c:crosses")):
            cross.set("val", "min")
    if chart.categories:
        format_bars(native, chart)
    else:
        format_lines(native, chart)


def format_axis(axis: Any, title: str, number_format: str, grid: bool) -> None:
    axis.has_title = bool(title)
    if title:
        axis.axis_title.text_frame.text = title
        run = axis.axis_title.text_frame.paragraphs[0].runs[0].font
        run.size, run.bold, run.color.rgb, run.name = Pt(SMALL), False, rgb(INK), FONT
    axis.has_major_gridlines = grid
    if grid:
        axis.major_gridlines.format.line.color.rgb = rgb(RULE)
        axis.major_gridlines.format.line.width = Pt(0.75)
    axis.format.line.color.rgb = rgb(MUTED)
    axis.major_tick_mark = axis.minor_tick_mark = XL_TICK_MARK.NONE
    axis.tick_labels.font.size = Pt(SMALL)
    if number_format != "General":
        axis.tick_labels.number_format, axis.tick_labels.number_format_is_linked = number_format, False


def format_bars(native: Any, chart: Chart) -> None:
    """Colours, gaps, error bars, and the value on each bar where no error bar stands there."""
    plot = native.plots[0]
    plot.gap_width = 55
    if not chart.stacked:
        plot.overlap = -5
    else:
        native.category_axis.reverse_order = True
        native.value_axis._element.find(qn("c:crosses")).set("val", "max")  # keeps the value axis below
    for series, ours in zip(plot.series, chart.series, strict=True):
        series.format.fill.solid()
        series.format.fill.fore_color.rgb = rgb(METHODS[ours.look or "lora"].light)
        for at, look in enumerate(chart.point_looks):
            point = series.points[at].format.fill
            point.solid()
            point.fore_color.rgb = rgb(METHODS[look].light)
        if ours.spread:
            add_error_bars(series._element, ours)
            labels = series.data_labels
            labels.show_value, labels.position = True, XL_LABEL_POSITION.INSIDE_BASE
            labels.number_format, labels.number_format_is_linked = "0.00", False
            labels.font.size, labels.font.color.rgb = Pt(SMALL), rgb(PAPER["light"])


def add_error_bars(element: Any, series: Series) -> None:
    """Custom error bars from the interval of each value; the ends are stored as distances."""
    plus = [high - value for value, (_, high) in zip(series.values, series.spread, strict=True)]
    minus = [value - low for value, (low, _) in zip(series.values, series.spread, strict=True)]
    bars = etree.Element(qn("c:errBars"))
    for tag, setting in (("errBarType", "both"), ("errValType", "cust"), ("noEndCap", "0")):
        etree.SubElement(bars, qn(f"c:{tag}"), val=setting)
    for tag, values in (("plus", plus), ("minus", minus)):
        literal = etree.SubElement(etree.SubElement(bars, qn(f"c:{tag}")), qn("c:numLit"))
        etree.SubElement(literal, qn("c:formatCode")).text = "General"
        etree.SubElement(literal, qn("c:ptCount"), val=str(len(values)))
        for at, value in enumerate(values):
            point = etree.SubElement(literal, qn("c:pt"), idx=str(at))
            etree.SubElement(point, qn("c:v")).text = repr(float(value))
    shape = etree.SubElement(bars, qn("c:spPr"))
    line = etree.SubElement(shape, qn("a:ln"), w=str(Pt(2)))
    solid = etree.SubElement(line, qn("a:solidFill"))
    etree.SubElement(solid, qn("a:srgbClr"), val=MUTED[1:].upper())
    element.find(qn("c:cat")).addprevious(bars)


def format_lines(native: Any, chart: Chart) -> None:
    """Each line in its method's colour, dash and marker; no smoothing between points."""
    for series, ours in zip(native.plots[0].series, chart.series, strict=True):
        look = METHODS[ours.look]
        series.smooth = False
        line = series.format.line
        line.color.rgb, line.width, line.dash_style = rgb(look.light), Pt(2.75), DASHES[ours.look]
        if not chart.markers:
            series.marker.style = XL_MARKER_STYLE.NONE
            continue
        series.marker.style, series.marker.size = MARKERS[look.marker], 10
        series.marker.format.fill.solid()
        series.marker.format.fill.fore_color.rgb = rgb(look.light)
        series.marker.format.line.color.rgb = rgb(PAPER["light"])


# Slides.


def read_outline(path: Path = OUTLINE) -> list[dict[str, Any]]:
    """The slides of the outline, in order. Raises InputError naming the file and what is wrong with it."""
    try:
        slides = tomllib.loads(path.read_text(encoding="utf-8"))["slide"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise InputError(f"Outline {path} cannot be read ({error}): it needs [[slide]] tables.") from None
    for number, slide in enumerate(slides, 1):
        for name in ("title", "section", "notes"):
            if not slide.get(name):
                raise InputError(f"Slide {number} of {path.name} has no {name!r}: every slide needs one.")
    return slides


def build(out: Path, store: Store, outline: Path = OUTLINE) -> Path:
    """Write the deck; equal records and outline give equal bytes.

    Raises InputError if a number is missing (it names the command that makes it) or a text overflows its box.
    """
    deck = template()
    for number, slide in enumerate(read_outline(outline), 1):
        try:
            add_slide(deck, slide, store)
        except InputError as error:
            raise InputError(f"Slide {number} ({slide['section']}): {error}") from None
    core = deck.core_properties
    core.author = core.last_modified_by = "peftbook"
    core.title, core.subject, core.keywords = SHORT_TITLE, "LoRA, QLoRA, prompt tuning", "LoRA, QLoRA, prompt tuning"
    core.comments, core.revision, core.language = "", 1, "en-GB"
    core.created = core.modified = STAMP.replace(tzinfo=None)
    stream = io.BytesIO()
    deck.save(stream)
    write_atomically(Path(out), fixed_zip(stream.getvalue()))
    return Path(out)


def fixed_zip(data: bytes) -> bytes:
    """The same archive with one date on every entry, the workbooks inside charts included."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            body = source.read(name)
            if name.endswith(".xlsx"):
                body = fixed_zip(body)
            if name == "docProps/app.xml" and b"PowerPoint" in body:
                body = APPLICATION
            if name == "docProps/core.xml":
                body = re.sub(rb"(<dcterms:(?:created|modified)[^>]*>)[^<]*", rb"\g<1>" + b"2026-01-01T00:00:00Z", body)
            entry = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(entry, body)
    return out.getvalue()


def add_slide(deck: Any, outline: dict[str, Any], store: Store) -> None:
    """One slide: its statement, text and visuals, source line, footers and notes."""
    sources = Sources(store)
    cover = outline.get("layout") == "cover"
    text_layout = bool(outline.get("body"))
    layout = deck.slide_masters[0].slide_layouts.get_by_name(
        "Cover" if cover else "Statement with text" if text_layout else "Statement"
    )
    slide = deck.slides.add_slide(layout)
    title = fill(outline["title"], sources)
    size = 44 if cover else TITLE_SIZE
    check_fit([(title, size, True)], WIDTH - 2 * MARGIN, 1.5 if cover else TITLE_HEIGHT)
    slide.shapes.title.text_frame.text = title
    if cover:
        lines = [fill(line, sources) for line in outline["body"]]
        check_fit([(line, 24, False) for line in lines], WIDTH - 2 * MARGIN, 1.6)
        slide.placeholders[1].text_frame.text = "\n".join(lines)
    else:
        body_right = add_visuals(slide, outline, sources)
        if text_layout:
            add_body(slide.placeholders[1], [fill(line, sources) for line in outline["body"]], body_right)
        for kind, add in (("cards", add_cards), ("table", add_table)):
            if outline.get(kind):
                add(slide, outline, sources)
        add_footers(slide, layout, outline["section"])
    if source := fill(outline.get("source", ""), sources):
        add_source(slide, source)
    slide.notes_slide.notes_text_frame.text = notes_text(outline, sources)


def add_visuals(slide: Any, outline: dict[str, Any], sources: Sources) -> float:
    """Figure or charts; returns the right edge that is left for text, in inches."""
    names = [*outline.get("charts", []), *outline.get("figures", [])]
    if not names:
        return WIDTH - MARGIN
    alts = [fill(alt, sources) for alt in outline["alts"]]
    if len(alts) != len(names):
        raise InputError(f"There are {len(names)} visuals and {len(alts)} alternative texts: give one each.")
    whole = VISUAL_WIDTH if outline.get("body") else WIDTH - 2 * MARGIN
    gap, left = 0.3, WIDTH - MARGIN - whole
    width = (whole - gap * (len(names) - 1)) / len(names)
    for at, (name, alt) in enumerate(zip(names, alts, strict=True)):
        box = (left + at * (width + gap), TOP, width, BOTTOM - TOP)
        if name in outline.get("charts", []):
            if name not in CHARTS:
                raise InputError(f"Unknown chart {name!r}: choose one of {', '.join(CHARTS)}.")
            add_chart(slide, CHARTS[name](sources), name, alt, box)
        else:
            left = add_figure(slide, name, alt, box, sources)
    return left - 0.35


def add_figure(slide: Any, name: str, alt: str, box: tuple[float, float, float, float], sources: Sources) -> float:
    """A figure of the book as a picture, as large as the box allows, at its right; returns its left edge."""
    data = figures.png(name, sources.store, dpi=DPI)
    sources.runs += figures.runs(name, sources.store)
    with Image.open(io.BytesIO(data)) as image:
        ratio = image.width / image.height
    left, top, width, height = box
    shown = min(width, height * ratio)
    x, y = left + width - shown, top + (height - shown / ratio) / 2
    picture = slide.shapes.add_picture(io.BytesIO(data), Inches(x), Inches(y), Inches(shown))
    picture.name = f"Figure {name}"
    picture._element._nvXxPr.cNvPr.set("descr", alt)
    return x


def add_body(shape: Any, lines: list[str], right: float) -> None:
    """Paragraphs in the body placeholder, between the left margin and `right`."""
    width = right - MARGIN
    check_fit([(line, BODY_SIZE, False) for line in lines], width, BOTTOM - TOP, gap=14)
    shape.left, shape.top, shape.width, shape.height = Inches(MARGIN), Inches(TOP), Inches(width), Inches(BOTTOM - TOP)
    frame = shape.text_frame
    frame.word_wrap = True
    frame.text = "\n".join(lines)
    for paragraph in frame.paragraphs:
        paragraph.space_after = Pt(14)
        paragraph.line_spacing = 1.0


def add_cards(slide: Any, outline: dict[str, Any], sources: Sources) -> None:
    """Equal panels side by side: a head (a number or a name) and what it means."""
    cards = [(fill(card["head"], sources), fill(card["text"], sources)) for card in outline["cards"]]
    gap, pad = 0.35, 0.3
    width = (WIDTH - 2 * MARGIN - gap * (len(cards) - 1)) / len(cards)
    head_size = float(outline.get("head_size", 28))
    inner = width - 2 * pad - 0.05
    panels = [[(head, head_size, True), *((line, 22.0, False) for line in text.split("\n"))] for head, text in cards]
    height = max(height_needed(paragraphs, inner, gap=12) for paragraphs in panels) + 2 * pad + 0.35
    if height > BOTTOM - TOP - 0.25:
        raise InputError(f"A card overflows by {height - (BOTTOM - TOP - 0.25):.2f} in: shorten the longest.")
    for at, paragraphs in enumerate(panels):
        left = MARGIN + at * (width + gap)
        shape = slide.shapes.add_shape(
            MSO_SHAPE.RECTANGLE, Inches(left), Inches(TOP + 0.25), Inches(width), Inches(height)
        )
        shape.name = f"Card {at + 1}"
        shape.fill.solid()
        shape.fill.fore_color.rgb = rgb(FILL)
        shape.line.fill.background()
        shape._element.remove(shape._element.find(qn("p:style")))  # its effects add a shadow
        frame = shape.text_frame
        frame.word_wrap, frame.vertical_anchor = True, MSO_ANCHOR.TOP
        frame.margin_left = frame.margin_right = frame.margin_top = frame.margin_bottom = Inches(pad)
        write(frame, [(line, size, bold, ACCENT if bold else INK) for line, size, bold in paragraphs], gap=12)


def write(frame: Any, paragraphs: Sequence[tuple[str, float, bool, str]], gap: float = 0.0) -> None:
    """Left-aligned paragraphs of (text, points, bold, colour)."""
    for at, (text, size, bold, colour) in enumerate(paragraphs):
        paragraph = frame.paragraphs[0] if at == 0 else frame.add_paragraph()
        paragraph.alignment, paragraph.space_after = PP_ALIGN.LEFT, Pt(gap)
        run = paragraph.add_run()
        run.text = text
        run.font.size, run.font.bold, run.font.name, run.font.color.rgb = Pt(size), bold, FONT, rgb(colour)


def add_table(slide: Any, outline: dict[str, Any], sources: Sources) -> None:
    """A native table; the first row is its head."""
    rows = [[fill(cell, sources) for cell in row] for row in outline["table"]]
    shares = outline["widths"]
    whole = WIDTH - 2 * MARGIN
    widths = [whole * share / sum(shares) for share in shares]
    size, pad = 18, 0.12
    heights = []
    for at, row in enumerate(rows):
        lines = [
            lines_needed(cell, size, width - 2 * pad - 0.05, at == 0 or c == 0)
            for c, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        heights.append(max(lines) * size * 1.2 / 72 + 2 * 0.09)
    if sum(heights) > BOTTOM - TOP + 0.01:
        raise InputError(f"The table overflows by {sum(heights) - (BOTTOM - TOP):.2f} in: shorten its cells.")
    frame = slide.shapes.add_table(
        len(rows), len(widths), Inches(MARGIN), Inches(TOP), Inches(whole), Inches(sum(heights))
    )
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
            cell.fill.fore_color.rgb = rgb(ACCENT if at == 0 else FILL if at % 2 == 0 else PAPER["light"])
            cell.margin_left = cell.margin_right = Inches(pad)
            cell.margin_top = cell.margin_bottom = Inches(0.09)
            cell.vertical_anchor = MSO_ANCHOR.MIDDLE
            write(cell.text_frame, [(text, size, at == 0 or c == 0, PAPER["light"] if at == 0 else INK)])


def add_footers(slide: Any, layout: Any, section: str) -> None:
    """Section with the short title, and the slide number, in the layout's own placeholders."""
    for shape in layout.placeholders:
        kind = shape.placeholder_format.type.name
        if kind not in ("FOOTER", "SLIDE_NUMBER"):
            continue
        element = copy.deepcopy(shape._element)
        element.nvSpPr.cNvPr.set(
            "id", str(max(int(one.get("id")) for one in slide.shapes._spTree.iter(qn("p:cNvPr"))) + 1)
        )
        slide.shapes._spTree.append(element)
        if kind == "FOOTER":
            slide.shapes[-1].text_frame.text = f"{section} · {SHORT_TITLE}"


def add_source(slide: Any, text: str) -> None:
    """The source line above the footer."""
    width = WIDTH - 2 * MARGIN
    check_fit([(text, 12, False)], width, 12 * 1.2 / 72)
    box = slide.shapes.add_textbox(Inches(MARGIN), Inches(6.58), Inches(width), Inches(0.26))
    box.name = "Source"
    frame = box.text_frame
    frame.margin_left = frame.margin_right = frame.margin_top = frame.margin_bottom = 0
    frame.word_wrap = True
    write(frame, [(text, 12, False, MUTED)])


def notes_text(outline: dict[str, Any], sources: Sources) -> str:
    """What to say, what students ask, where it comes from and the runs behind it."""
    parts = [" ".join(fill(outline["notes"], sources).split())]
    if asked := outline.get("asked"):
        parts.append("Students ask: " + " ".join(fill(asked, sources).split()))
    if source := fill(outline.get("source", ""), sources):
        parts.append(f"Source: {source.removeprefix('Source: ')}")
    runs = list(dict.fromkeys(sources.runs))
    if runs:
        more = f" and {len(runs) - 6} more" if len(runs) > 6 else ""
        parts.append("Runs: " + ", ".join(key[:12] for key in runs[:6]) + more)
    text = "\n\n".join(parts)
    words = len(text.split())
    if not NOTES_WORDS[0] <= words <= NOTES_WORDS[1]:
        raise InputError(f"The notes have {words} words: write {NOTES_WORDS[0]} to {NOTES_WORDS[1]}.")
    return text
