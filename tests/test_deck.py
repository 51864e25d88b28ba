"""The deck: every slide states, shows, describes and sources; charts hold the records' numbers; the file is sound."""

from __future__ import annotations

import ast
import inspect
import io
import re
import subprocess
import zipfile
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from docutils.nodes import make_id
from jinja2 import Environment, FileSystemLoader
from open_packaging import faults
from PIL import Image
from pptx import Presentation
from pptx.util import Emu, Pt

from peftbook.core.errors import InputError
from peftbook.core.records import Store, default_store
from peftbook.evidence import results
from peftbook.methods import arm_looks
from peftbook.scratch import lora
from peftbook.views import slides
from peftbook.views.figures.style import PAPER, mixed
from peftbook.views.site import identity, lecture
from peftbook.views.slides import native, pictures, template

BOOK = {"address": identity.PUBLIC_ADDRESS, "version": identity.version()}
STORY = ["Opening", "Cost", "LoRA", "QLoRA", "Prompts", "Evidence", "Decision", "Recap", "Backup"]
MINUTES = {3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 13: "thirteen"}
FACE = 60  # words on a slide
UNREAD = ("Source", "Footer", "Slide Number")  # beside the face


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, pictures.Picture]]]:
    """The deck, and every drawing that was made for it."""
    drawn: list[tuple[str, pictures.Picture]] = []

    def noted(name, *room):
        drawn.append((name, pictures.drawing(name, *room)))
        return drawn[-1][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slides.deck, "drawing", noted)
        return slides.build(tmp_path_factory.mktemp("deck") / "peft.pptx", default_store(), **BOOK), drawn


@pytest.fixture(scope="module")
def path(built) -> Path:
    return built[0]


@pytest.fixture(scope="module")
def deck(path: Path):
    return Presentation(str(path))


@pytest.fixture(scope="module")
def store() -> Store:
    return default_store()


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few slides of every kind: cards, drawing, charts, table, equations."""
    return slides.build(
        tmp_path_factory.mktemp("part") / "part.pptx", default_store(), sections=["cost", "lora"], **BOOK
    )


def notes(slide) -> str:
    return slide.notes_slide.notes_text_frame.text


def charts_of(deck) -> dict:
    return {s.name.removeprefix("Chart "): s.chart for slide in deck.slides for s in slide.shapes if s.has_chart}


def test_the_lecture_has_24_slides_for_fifty_minutes():
    """The agenda names each part with its minutes, and so do the notes of the part; the rest is in reserve."""
    outline = slides.read_outline()
    assert list(dict.fromkeys(slide["section"] for slide in outline)) == STORY
    main = [slide for slide in outline if slide["section"] != "Backup"]
    assert len(main) == 24 and all(slide["section"] == "Backup" for slide in outline[24:])
    agenda = {part: int(minutes) for part, minutes, _ in main[1]["table"][1:]}
    assert list(agenda) == STORY[:-1] and sum(agenda.values()) == 50
    for part, minutes in agenda.items():
        said = " ".join(slide["notes"] for slide in main if slide["section"] == part)
        assert f"{MINUTES[minutes]} minutes" in " ".join(said.split()), part


def test_two_polls_are_answered_by_the_slides_that_follow():
    """A question with three or four options and what the room does; the next slide and its notes name the right one."""
    polls = [(one, after) for one, after in pairwise(slides.read_outline()) if one["title"].endswith("?")]
    assert len(polls) == 2
    for poll, after in polls:
        letters = "".join(card["head"] for card in poll["cards"])
        assert letters in ("ABC", "ABCD") and poll["section"] == after["section"]
        right = re.match(r"The answer is ([A-D])\b", after["notes"])
        assert right and right[1] in letters and after["body"][0].startswith(f"{right[1]}. ") and poll["body"]


def test_no_face_has_more_than_60_words(deck):
    """Who reads a slide does not listen."""
    for slide in deck.slides:
        read = [shape for shape in slide.shapes if not shape.name.startswith(UNREAD)]
        texts = [shape.text_frame.text for shape in read if shape.has_text_frame]
        texts += [cell.text for shape in read if shape.has_table for row in shape.table.rows for cell in row.cells]
        assert sum(len(text.split()) for text in texts) <= FACE, texts[0]


def test_code_on_a_slide_stands_in_the_package():
    """Each statement that is shown is one of the module's."""
    shown = "".join(slide.get("code", "") for slide in slides.read_outline())
    statements = {
        ast.unparse(node) for node in ast.walk(ast.parse(inspect.getsource(lora))) if isinstance(node, ast.stmt)
    }
    assert {ast.unparse(node) for node in ast.parse(shown).body} <= statements and shown


def test_every_slide_has_a_statement_and_notes(deck):
    """A lecturer reads what to say, what students ask and the chapter; the runs stand in the last block alone."""
    for slide in deck.slides:
        assert len(slide.shapes.title.text_frame.text.split()) >= 3
        spoken, asked, chapter, *behind = notes(slide).split("\n\n")
        assert slides.SPOKEN[0] <= len(spoken.split()) <= slides.SPOKEN[1] and len(behind) <= 1
        assert re.match(r"Students ask: .+\? .+", asked) and chapter.startswith("Chapter: peftbook")
        assert not re.search(r"\b[0-9a-f]{12}\b", spoken + asked + chapter)
        measured = any(shape.name == "Source" and "easured" in shape.text_frame.text for shape in slide.shapes)
        assert not measured or "Runs: " in behind[0] or "Verdicts: " in behind[0] or "claims" in chapter


def test_titles_are_unique_and_no_placeholder_is_left(deck):
    """A screen reader moves by title; an unfilled placeholder would be read aloud."""
    titles = [slide.shapes.title.text_frame.text for slide in deck.slides]
    assert len(set(titles)) == len(titles)
    for slide in deck.slides:
        texts = [shape.text_frame.text for shape in slide.shapes if shape.has_text_frame and shape.name != "Tokens"]
        assert not any(mark in text for text in [*texts, notes(slide)] for mark in "{}`")


def test_every_visual_has_alternative_text(deck):
    """Without alt text a chart is silence, and so is an equation that is a picture."""
    shown = 0
    for slide in deck.slides:
        for shape in slide.shapes:
            if shape.has_chart or shape.has_table or hasattr(shape, "image") or shape.name.startswith("Sketch"):
                shown += 1
                described = shape._element.xpath(".//p:cNvPr")[0].get("descr", "")
                assert len(described) > (10 if shape.name.startswith("Equation") else 30), shape.name
    assert shown >= 45


def test_shapes_are_read_in_the_order_of_the_argument(deck):
    """Title first, then text before what it speaks of, then the source, the footer and the number."""
    for slide in list(deck.slides)[1:]:
        names = [shape.name for shape in slide.shapes]
        assert slide.shapes[0] == slide.shapes.title
        assert names[-1].startswith("Slide Number") and names[-2].startswith("Footer")
        assert "Source" not in names or names.index("Source") == len(names) - 3


def test_footers_name_section_version_and_a_heading_of_the_book(deck):
    """A listener asks for a slide by its number and finds its place in the book."""
    headings = {}
    for slide, entry in zip(list(deck.slides)[1:], slides.read_outline()[1:], strict=True):
        footer = slide.shapes[-2].text_frame
        assert footer.text.startswith(f"{entry['section']} · version {identity.version()} · peftbook")
        page, _, anchor = entry["chapter"].partition("#")
        assert footer.paragraphs[0].runs[-1].hyperlink.address == f"{BOOK['address']}book/{page}.html" + (
            f"#{anchor}" if anchor else ""
        )
        text = (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")
        if page not in headings:
            headings[page] = {make_id(line.replace("'", "’")) for line in re.findall(r"^#{2,3} (.+)$", text, re.M)}
        assert not anchor or anchor in headings[page], entry["chapter"]


def test_every_numbered_chapter_has_slides():
    """Each chapter names its slides, so each must have some."""
    text = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    numbered = [part for part in text.split("- caption:")[1:] if "numbered: true" in part]
    for page in re.findall(r"file: (\S+)", "".join(numbered)):
        assert lecture.slides_of(page, slides.OUTLINE), page


def test_no_text_is_smaller_than_sixteen_points_but_sources(deck, built):
    """The last row must read it: text, charts, and the type inside drawings."""
    for slide in deck.slides:
        for shape in slide.shapes:
            if shape.has_text_frame and shape.name != "Source":
                runs = [run for p in shape.text_frame.paragraphs for run in p.runs if run.text.strip()]
                assert all(run.font.size is None or run.font.size >= Pt(16) for run in runs), shape.name
            if shape.has_chart:
                sizes = [int(size) for size in shape.chart._chartSpace.xpath(".//@sz")]
                assert min(sizes) >= 1600
    drawn = built[1]
    assert [name for name, _ in drawn] == [one for slide in slides.read_outline() for one in slide.get("figures", [])]
    for name, picture in drawn:
        assert picture.smallest >= 15.99, name


def test_pictures_are_sharp_on_a_4k_screen(deck):
    """3,840 pixels over the slide's width, in every drawing and equation."""
    for slide in deck.slides:
        for shape in slide.shapes:
            if hasattr(shape, "image"):
                with Image.open(io.BytesIO(shape.image.blob)) as image:
                    assert image.width / Emu(shape.width).inches >= 3840 / template.WIDTH * 0.99, shape.name


def test_colours_have_the_contrast_of_aa():
    """Text in ink, muted and accent on paper and panels; a pale accent or a word is refused."""
    for colour in (template.INK, template.MUTED, template.ACCENT):
        for ground in (PAPER["light"], template.FILL):
            assert template.contrast(colour, ground) >= 4.5
    for look in filter(lambda look: look.light, arm_looks().values()):
        assert template.contrast(template.INK, mixed(look.light, PAPER["light"], native.LIGHT)) >= 4.5
    assert template.contrast("#000000", "#ffffff") == pytest.approx(21)
    for bad, message in (("green", "not a colour"), ("#88cc99", "contrast")):
        with pytest.raises(InputError, match=message):
            template.check_accent(bad)


def test_charts_hold_the_quantities_of_the_records(deck):
    """A chart that was typed by hand, or built from other records, fails here."""
    charts = charts_of(deck)
    assert set(charts) == set(slides.CHARTS)
    value = lambda name: results.quantity(name, default_store()).value  # noqa: E731
    drawn = lambda name, at=0: list(charts[name].plots[0].series[at].values)  # noqa: E731
    by_label = lambda name: {  # noqa: E731
        label.rpartition(":")[0]: found
        for label, found in zip(charts[name].plots[0].categories, drawn(name), strict=True)
    }
    of_loss = {arm: value(f"methods.{arm}_minus_lora_loss") for arm in ("qlora", "prompt")}
    of_loss |= {arm: -value(f"methods.lora_minus_{arm}_loss") for arm in ("full", "fewshot")}
    assert by_label("loss_differences") == pytest.approx({arm_looks()[arm].label: of_loss[arm] for arm in of_loss})
    for arm in ("lora", "prompt"):
        found = by_label("rouge_differences")[arm_looks()[arm].label]
        assert found == pytest.approx(value(f"methods.{arm}_minus_fewshot_rougeL"))
    of_length = by_label("prompt_differences")
    assert len(of_length) == 7
    assert of_length["1, vocabulary"] == pytest.approx(value("prompt_length.vocabulary_1_minus_vocabulary_20_loss"))
    assert of_length["100, vocabulary"] == pytest.approx(
        -value("prompt_length.vocabulary_20_minus_vocabulary_100_loss")
    )
    for name, said in (("step_seconds", "time"), ("peak_memory", "memory")):
        for arm in ("full", "qlora", "prompt"):
            found = by_label("cost_ratios")[f"{arm_looks()[arm].label}, {said}"]
            assert found == pytest.approx(100 * value(f"costs.{arm}_over_lora_{name}") - 100)
    upwards = [value(f"targets_all.{arm}_minus_all_loss") for arm in ("mlp", "attention", "query_value")]
    assert drawn("target_differences") == pytest.approx(upwards)
    assert by_label("benchmark_differences")["Full"] == pytest.approx(-value("benchmark.lora_minus_full_loss"))


def test_error_bars_are_the_intervals(deck):
    """The distances stored in the chart, added to the value, are the ends of the interval; also from below."""
    chart = charts_of(deck)["target_differences"]
    ends = {
        side: [float(v.text) for v in chart._chartSpace.xpath(f".//c:errBars/c:{side}//c:v")]
        for side in ("plus", "minus")
    }
    for at, arm in enumerate(("mlp", "attention", "query_value")):
        quantity = results.quantity(f"targets_all.{arm}_minus_all_loss", default_store())
        assert quantity.value + ends["plus"][at] == pytest.approx(quantity.high)
        assert quantity.value - ends["minus"][at] == pytest.approx(quantity.low)


def test_an_interval_is_seen_whole(deck):
    """The axis that we set reaches beyond both ends of every interval."""
    for name, chart in charts_of(deck).items():
        for series in chart._chartSpace.xpath(".//c:ser[c:errBars]"):
            values = [float(v.text) for v in series.xpath("c:val//c:v")]
            plus, minus = ([float(v.text) for v in series.xpath(f"c:errBars/c:{s}//c:v")] for s in ("plus", "minus"))
            axis = chart.value_axis
            assert axis.maximum_scale >= max(v + p for v, p in zip(values, plus, strict=True)) - 1e-9, name
            assert axis.minimum_scale <= min(v - m for v, m in zip(values, minus, strict=True)) + 1e-9, name


def test_two_builds_are_the_same_bytes(part: Path, tmp_path: Path):
    """Also inside the workbooks of the charts; and the author is ours."""
    again = slides.build(tmp_path / "again.pptx", default_store(), sections=["cost", "lora"], **BOOK)
    assert again.read_bytes() == part.read_bytes()
    with zipfile.ZipFile(part) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(2026, 1, 1, 0, 0, 0)}
    assert Presentation(str(part)).core_properties.author == "peftbook"


def test_a_lecturer_takes_some_sections_in_another_colour(part: Path, tmp_path: Path):
    """Cover and the named sections; the accent changes the theme and nothing else."""
    titles = [slide.shapes.title.text_frame.text for slide in Presentation(str(part)).slides]
    assert len(titles) == 1 + sum(entry["section"] in ("Cost", "LoRA") for entry in slides.read_outline())
    green = slides.build(tmp_path / "green.pptx", default_store(), sections=["cost", "lora"], accent="#0B6E4F", **BOOK)
    with zipfile.ZipFile(part) as plain, zipfile.ZipFile(green) as other:
        changed = [name for name in plain.namelist() if plain.read(name) != other.read(name)]
        assert changed == ["ppt/theme/theme1.xml"] and b"0B6E4F" in other.read(changed[0])
    with pytest.raises(InputError, match="Unknown section 'loras': choose from opening, cost"):
        slides.build(tmp_path / "deck.pptx", default_store(), sections=["loras"], **BOOK)


def test_powerpoint_finds_nothing_to_repair(path: Path):
    """Unique ids, relationships, content types, order of children; PowerPoint's own sections cover every slide."""
    data = path.read_bytes()
    assert faults(data) == []
    with zipfile.ZipFile(path) as archive:
        presentation = archive.read("ppt/presentation.xml").decode()
    listed = re.findall(r'<p14:section name="([^"]+)"', presentation)
    assert listed == STORY
    assert re.findall(r'<p14:sldId id="(\d+)"', presentation) == re.findall(r'<p:sldId [^>]*?id="(\d+)"', presentation)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("ppt/slides/slide2.xml", b'<p:cNvPr id="3"', b'<p:cNvPr id="2"', "two shapes have the id 2"),
        ("ppt/slides/_rels/slide2.xml.rels", b"slideLayout", b"slideLayouts", "is missing"),
        ("ppt/presentation.xml", b'<p:sldId id="256"', b'<p:sldId id="12"', "below 256"),
        ("ppt/charts/chart", b"<c:overlap", b"<c:overlap2", ""),
        ("[Content_Types].xml", b'Extension="png"', b'Extension="gif"', "has no content type"),
        ("ppt/slides/slide2.xml", b"</p:cSld>", b"", "not well formed"),
    ],
)
def test_a_broken_file_is_found(part: Path, name: str, old: bytes, new: bytes, message: str):
    """The checks must see what they are for."""
    out = io.BytesIO()
    with zipfile.ZipFile(part) as source, zipfile.ZipFile(out, "w") as target:
        for file in source.namelist():
            body = source.read(file)
            target.writestr(file, body.replace(old, new) if file.startswith(name) else body)
    sentences = faults(out.getvalue())
    assert any(message in sentence for sentence in sentences) if message else sentences == []


def test_a_missing_number_fails_the_build_and_names_the_command(tmp_path: Path):
    """No silent gap: nothing is written either."""
    with pytest.raises(InputError, match="peftbook run learning_rate"):
        slides.build(tmp_path / "deck.pptx", Store(tmp_path / "none"), **BOOK)
    assert not (tmp_path / "deck.pptx").exists()


def outline(folder: Path, extra: str = "", **changes: str) -> Path:
    fields = {
        "section": "S",
        "title": "A statement here",
        "chapter": "lora",
        "notes": "word " * 70,
        "asked": "Why? So.",
    }
    lines = [f'{name} = "{value}"\n' for name, value in (fields | changes).items()]
    path = folder / "outline.toml"
    path.write_text("[[slide]]\n" + "".join(lines) + extra, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": "A title that goes on " * 12}, "overflows"),
        ({"title": "W" * 80}, "wider than its box"),
        ({"notes": "too short"}, "notes have 2 words"),
        ({"title": "It is {computed:nothing}"}, "Unknown computed value"),
        ({"title": "It is {cite:nothing}"}, "Unknown published value"),
        ({"title": "It is {nowhere.loss}"}, "Unknown study"),
        ({"title": "By {methods.qlora_minus_lora_rougeL;value}"}, "which may be zero"),
        ({"section": ""}, "no 'section'"),
        ({"chapter": ""}, "no 'chapter'"),
        ({"section": "A section whose name is far too long " * 4}, "footer .* is too long"),
        ({"extra": 'verdicts = { methods = "refuted" }'}, "rest on methods being refuted, the records say"),
        ({"extra": 'charts = ["none"]\nalts = ["x"]'}, "Unknown chart 'none'"),
        ({"extra": 'charts = ["test_loss"]'}, "1 visuals and 0 alternative texts"),
        ({"extra": 'figures = ["none"]\nalts = ["x"]'}, "Unknown figure 'none'"),
        ({"extra": 'still = { file = "none.png", width = 4, alt = "x" }'}, "Still .*none.png cannot be read"),
        ({"extra": 'still = { file = "train-it-here.png", width = 9, alt = "x" }'}, "9 in wide, is .* in high with"),
        ({"extra": 'steps = [{ text = "x", tex = "\\\\\\\\nothing", alt = "x" }]'}, "cannot be typeset"),
        ({"extra": f'steps = [{{ text = "x", tex = "{"x + " * 60} x", alt = "x" }}]'}, "too wide"),
    ],
)
def test_a_bad_outline_is_refused_in_one_sentence(tmp_path: Path, store: Store, changes: dict[str, str], message: str):
    """The build fails on text that overflows, on numbers that do not exist and on words that the records deny."""
    with pytest.raises(InputError, match=message):
        slides.build(tmp_path / "deck.pptx", store, outline(tmp_path, **changes), **BOOK)
    assert not (tmp_path / "deck.pptx").exists()


def test_words_follow_the_interval(store: Store):
    """A title may say 'below' only if the whole interval is below."""
    words = ";below|level|above"
    assert slides.fill("{methods.lora_minus_untuned_loss" + words + "}", slides.Sources(store)) == "below"
    assert slides.fill("{methods.lora_minus_untuned_rougeL" + words + "}", slides.Sources(store)) == "above"
    assert slides.fill("{methods.qlora_minus_lora_rougeL" + words + "}", slides.Sources(store)) == "level"
    assert slides.fill("{costs.qlora_over_lora_step_seconds" + words + ";1}", slides.Sources(store)) == "above"
    assert slides.fill("5 × 10^−5", slides.Sources(store)) == "5\u00a0×\u00a010⁻⁵"
    with pytest.raises(InputError, match="three words"):
        slides.fill("{methods.lora_loss;below|above}", slides.Sources(store))


def test_the_scoreboard_counts_every_claim(deck):
    """No verdict is left out of the table."""
    (table,) = [one.table for one in deck.slides[-1].shapes if one.has_table]
    counts = [int(row.cells[1].text) for row in [*table.rows][1:]]
    assert sum(counts) == sum(results.count_verdicts(results.claims()).values())


def test_claims_of_papers_alone_are_counted(store: Store):
    """A scoreboard that counts our byte model as a claim would flatter the papers."""
    papers = sum(results.count_verdicts(results.claims(store)).values())
    assert slides.fill("{claims:all}", slides.Sources(store)) == str(papers)


def test_widths_are_those_of_arial():
    """Helvetica's table: a digit is 556 thousandths wide, an M 833."""
    assert slides.text_width("7", 72) == pytest.approx(0.556)
    assert slides.text_width("M", 72) == pytest.approx(0.833)
    assert slides.lines_needed("one two three", 20, 100) == 1


def test_a_chapter_links_its_slides(tmp_path: Path):
    """Numbers lead to the pages of the handout; without a deck the foot stays empty."""
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides/outline.toml").write_text(slides.OUTLINE.read_text(encoding="utf-8"), encoding="utf-8")
    app = SimpleNamespace(srcdir=str(tmp_path))
    context = {"pathto": lambda name, _: f"../{name}", "root_doc": "book/index", "book": identity}
    lecture.add_lecture(app, "book/lora", "page.html", context, object())
    assert context["lecture"] is None
    for name in lecture.FILES:
        (tmp_path / "slides" / name).write_bytes(b"x")
    lecture.add_lecture(app, "book/lora", "page.html", context, object())
    html = Environment(loader=FileSystemLoader(ROOT / "book/templates")).get_template("lecture.html").render(context)
    assert '<a href="../slides/peft-handout.pdf#page=5">5</a>' in html and 'href="../slides/peft.pptx"' in html
    lecture.copy_lecture(tmp_path / "slides", tmp_path / "site")
    assert sorted(path.name for path in (tmp_path / "site/slides").iterdir()) == ["peft-handout.pdf", "peft.pptx"]


@pytest.mark.office
@pytest.mark.slow
def test_libreoffice_reads_the_deck_and_writes_it_back(part: Path, tmp_path: Path):
    """A deck that another program cannot open is broken: slides, titles, charts and notes survive a round trip."""
    (tmp_path / "back").mkdir()
    before = Presentation(str(part))
    after = Presentation(str(slides.convert(part, tmp_path / "back", "pptx")))
    for slide, other in zip(before.slides, after.slides, strict=True):
        title, texts = slide.shapes.title.text_frame.text, [s.text_frame.text for s in other.shapes if s.has_text_frame]
        assert any(title.split() == text.split() for text in texts), title
        assert sum(s.has_chart for s in slide.shapes) == sum(s.has_chart for s in other.shapes)
        assert notes(slide).split()[:20] == notes(other).split()[:20]


@pytest.mark.office
@pytest.mark.slow
def test_the_handout_shows_each_slide_with_all_its_notes(part: Path, tmp_path: Path):
    """One page a slide, and the last line of the notes is on it."""
    pdf = slides.handout(part, tmp_path / "handout.pdf")
    text = subprocess.run(["pdftotext", str(pdf), "-"], check=True, capture_output=True, text=True).stdout
    pages = text.split("\f")[:-1]
    deck = Presentation(str(part))
    assert len(pages) == len(deck.slides)
    for page, slide in zip(pages, deck.slides, strict=True):
        assert " ".join(notes(slide).split("\n\n")[-1].split()) in " ".join(page.split())


@pytest.mark.office
@pytest.mark.slow
def test_text_takes_the_lines_that_were_measured(part: Path, tmp_path: Path):
    """Overflow is found by measuring: the renderer breaks titles as our widths say, and no word leaves the page."""
    pdf = slides.convert(part, tmp_path)
    boxes = subprocess.run(["pdftotext", "-bbox", str(pdf), "-"], check=True, capture_output=True, text=True).stdout
    for page, slide in zip(boxes.split("<page ")[1:], list(Presentation(str(part)).slides), strict=True):
        width, height = (float(re.search(rf'{side}="([\d.]+)"', page)[1]) for side in ("width", "height"))
        words = [[float(v) for v in line] for line in
                 re.findall(r'xMin="([\d.-]+)" yMin="([\d.-]+)" xMax="([\d.-]+)" yMax="([\d.-]+)"', page)]  # fmt: skip
        assert all(x0 >= 0 and x1 <= width and y0 >= 0 and y1 <= height for x0, y0, x1, y1 in words)
        title = slide.shapes.title.text_frame.text
        if "\v" in title:
            continue
        lines = slides.lines_needed(title, template.TITLE_SIZE, template.WIDTH - 2 * template.MARGIN, True)
        tops = sorted(y0 for _, y0, _, y1 in words if y1 - y0 > 28 and y1 < template.TOP * 72)
        assert 1 + sum(below - top > 10 for top, below in pairwise(tops)) <= lines  # a superscript's font is not ours
