"""The deck: every slide states, shows, describes and sources; the charts hold the records' numbers."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest
from fake_records import fill_store
from pptx import Presentation
from pptx.util import Pt

from peftbook import results, slides
from peftbook.errors import InputError
from peftbook.figures.style import METHODS
from peftbook.records import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return fill_store(tmp_path_factory.mktemp("records"))


@pytest.fixture(scope="module")
def path(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slides.build(tmp_path_factory.mktemp("deck") / "peft.pptx", store)


@pytest.fixture(scope="module")
def deck(path: Path):
    return Presentation(str(path))


def visuals(slide):
    return [
        shape
        for shape in slide.shapes
        if shape.shape_type is not None and (shape.has_chart or shape.has_table or hasattr(shape, "image"))
    ]


def test_every_slide_has_a_statement_and_notes(deck):
    """A lecturer reads the notes; they name sources and end with runs where the slide is measured."""
    assert len(deck.slides) >= 14
    for slide in deck.slides:
        assert len(slide.shapes.title.text_frame.text.split()) >= 3
        words = len(slide.notes_slide.notes_text_frame.text.split())
        assert slides.NOTES_WORDS[0] <= words <= slides.NOTES_WORDS[1]


def test_titles_are_unique_and_no_placeholder_is_left(deck):
    """A screen reader moves by title; an unfilled placeholder would be read aloud."""
    titles = [slide.shapes.title.text_frame.text for slide in deck.slides]
    assert len(set(titles)) == len(titles)
    for slide in deck.slides:
        texts = [shape.text_frame.text for shape in slide.shapes if shape.has_text_frame]
        assert not any(mark in text for text in [*texts, slide.notes_slide.notes_text_frame.text] for mark in "{}")


def test_every_visual_has_alternative_text_and_ids_are_unique(deck):
    """Without alt text a chart is silence; PowerPoint repairs files with repeated ids."""
    shown = 0
    for slide in deck.slides:
        elements = [shape._element.xpath(".//p:cNvPr")[0] for shape in slide.shapes]
        ids = [element.get("id") for element in elements]
        assert len(set(ids)) == len(ids)
        for shape in visuals(slide):
            shown += 1
            assert len(shape._element.xpath(".//p:cNvPr")[0].get("descr", "")) > 30
    assert shown >= 14


def test_every_content_slide_has_footer_and_number(deck):
    """A listener asks for a slide by its number."""
    for slide in list(deck.slides)[1:]:
        kinds = {shape.placeholder_format.type.name for shape in slide.placeholders}
        assert {"FOOTER", "SLIDE_NUMBER"} <= kinds


def test_no_text_is_smaller_than_sixteen_points_but_sources(deck):
    """The last row must read it."""
    for slide in deck.slides:
        for shape in slide.shapes:
            if shape.has_text_frame and shape.name != "Source":
                sizes = [
                    run.font.size for p in shape.text_frame.paragraphs for run in p.runs if run.font.size is not None
                ]
                assert all(size >= Pt(16) for size in sizes)


def test_charts_hold_the_quantities_of_the_records(deck, store: Store):
    """A chart that was typed by hand, or built from other records, fails here."""
    charts = {
        shape.name.removeprefix("Chart "): shape.chart for s in deck.slides for shape in s.shapes if shape.has_chart
    }
    assert set(charts) == set(slides.CHARTS)
    found = results.quantities(store)
    loss = list(charts["test_loss"].plots[0].series[0].values)
    assert loss == pytest.approx([found[f"methods.{arm}_loss"].value for arm in METHODS])
    for series, score in zip(charts["test_scores"].plots[0].series, ("rougeL", "bertscore_f1"), strict=True):
        assert list(series.values) == pytest.approx([found[f"methods.{arm}_{score}"].value for arm in METHODS])
    for name, key, unit in (("step_seconds", "step_seconds", 1), ("peak_memory", "peak_memory", 1e9)):
        values = list(charts[name].plots[0].series[0].values)
        assert values == pytest.approx(
            [found[f"costs.{arm}_{key}"].value / unit for arm in ("full", "lora", "qlora", "prompt")]
        )
    for series in charts["learning_rates"].plots[0].series:
        arm = next(name for name, look in METHODS.items() if look.label == series.name)
        assert min(series.values) == pytest.approx(found[f"methods.{arm}_best_validation_loss"].value)


def test_error_bars_are_the_intervals(deck, store: Store):
    """The distances stored in the chart, added to the value, are the ends of the interval."""
    chart = next(shape.chart for s in deck.slides for shape in s.shapes if shape.name == "Chart test_loss")
    ends = {
        side: [float(v.text) for v in chart._chartSpace.xpath(f".//c:errBars/c:{side}//c:v")]
        for side in ("plus", "minus")
    }
    for at, arm in enumerate(METHODS):
        quantity = results.quantity(f"methods.{arm}_loss", store)
        assert quantity.value + ends["plus"][at] == pytest.approx(quantity.high)
        assert quantity.value - ends["minus"][at] == pytest.approx(quantity.low)


def test_two_builds_are_the_same_bytes(path: Path, store: Store, tmp_path: Path):
    """Also inside the workbooks of the charts; and the author is ours."""
    again = slides.build(tmp_path / "again.pptx", store)
    assert again.read_bytes() == path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(2026, 1, 1, 0, 0, 0)}
        assert len(set(archive.namelist())) == len(archive.namelist())
    assert Presentation(str(path)).core_properties.author == "peftbook"


def test_a_missing_number_fails_the_build_and_names_the_command(tmp_path: Path):
    """No silent gap: nothing is written either."""
    with pytest.raises(InputError, match="peftbook run methods"):
        slides.build(tmp_path / "deck.pptx", Store(tmp_path / "none"))
    assert not (tmp_path / "deck.pptx").exists()


def outline(folder: Path, **changes: str) -> Path:
    fields = {"section": "S", "title": "A statement", "notes": "word " * 70} | changes
    path = folder / "outline.toml"
    path.write_text(
        "[[slide]]\n" + "".join(f'{name} = "{value}"\n' for name, value in fields.items()), encoding="utf-8"
    )
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
        ({"section": ""}, "no 'section'"),
    ],
)
def test_a_bad_outline_is_refused_in_one_sentence(tmp_path: Path, store: Store, changes: dict[str, str], message: str):
    """The build fails on text that overflows and on numbers that do not exist."""
    with pytest.raises(InputError, match=message):
        slides.build(tmp_path / "deck.pptx", store, outline(tmp_path, **changes))


def test_words_follow_the_interval(store: Store):
    """A title may say 'below' only if the whole interval is below."""
    words = ";below|level|above"
    assert slides.fill("{methods.lora_minus_untuned_loss" + words + "}", slides.Sources(store)) == "below"
    assert slides.fill("{methods.lora_minus_untuned_rougeL" + words + "}", slides.Sources(store)) == "above"
    assert slides.fill("{methods.lora_minus_full_loss" + words + "}", slides.Sources(store)) == "level"
    assert slides.fill("{costs.full_over_lora_step_seconds" + words + ";1}", slides.Sources(store)) == "above"
    assert slides.fill("10^−5", slides.Sources(store)) == "10⁻⁵"
    with pytest.raises(InputError, match="three words"):
        slides.fill("{methods.lora_loss;below|above}", slides.Sources(store))


def test_widths_are_those_of_arial():
    """Helvetica's table: a digit is 556 thousandths wide, an M 833."""
    assert slides.text_width("7", 72) == pytest.approx(0.556)
    assert slides.text_width("M", 72) == pytest.approx(0.833)
    assert slides.lines_needed("one two three", 20, 100) == 1


@pytest.mark.office
@pytest.mark.slow
def test_libreoffice_renders_every_slide(path: Path, deck, tmp_path: Path):
    """A deck that another program cannot open is broken, however well it reads here."""
    command = ["soffice", "--headless", f"-env:UserInstallation=file://{tmp_path}/profile", "--convert-to", "pdf"]
    subprocess.run([*command, "--outdir", str(tmp_path), str(path)], check=True, capture_output=True, timeout=540)
    info = subprocess.run(["pdfinfo", str(tmp_path / "peft.pdf")], check=True, capture_output=True, text=True).stdout
    assert f"Pages:           {len(deck.slides)}" in info
