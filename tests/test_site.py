"""The built site in a real browser: self-contained, quiet, readable on a phone, dark when asked, searchable."""

from __future__ import annotations

import functools
import http.server
import os
import re
import threading
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import copy_records

from peftbook import studies
from peftbook.core import records, specs
from peftbook.core.records import Record, Store, default_store
from peftbook.evidence import results
from peftbook.evidence.decidable import bound
from peftbook.methods.untuned import Untuned
from peftbook.views import figures
from peftbook.views.site import bibliography, claim_cards, display, pictures, run_pages

ROOT = Path(__file__).resolve().parents[1]
LOADING = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}
NOT_LOADED = {"canonical", "license", "next", "prev", "index", "search", "author"}
PHONE, DESKTOP = {"width": 360, "height": 740}, {"width": 1280, "height": 900}


class Loads(HTMLParser):
    """Collects what a page would fetch."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag in LOADING and not set((attributes.get("rel") or "").split()) & NOT_LOADED:
            self.addresses.append(attributes.get(LOADING[tag]) or "")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *_):
        pass


def pages() -> list[str]:
    """Every page of the table of contents."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [contents["root"], *[chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]]


@pytest.fixture(scope="module")
def address(built_site):
    """The site on localhost."""
    handler = functools.partial(Quiet, directory=str(built_site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def open_page(browser, address):
    """Opens a page and returns it with all that it complained about or asked other hosts for."""
    contexts = []

    def open_page(path, viewport=DESKTOP, scheme="light"):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        page, troubles = context.new_page(), []
        page.on("console", lambda m: troubles.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("response", lambda r: troubles.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        here = (address, f"blob:{address}", "data:")
        page.on("request", lambda r: troubles.append(r.url) if not r.url.startswith(here) else None)
        page.goto(address + path, wait_until="networkidle")
        return page, troubles

    yield open_page
    for context in contexts:
        context.close()


def test_no_page_names_a_resource_of_another_host(built_site):
    """Fonts, mathematics, scripts and images come from the site's own host; links may lead away."""
    tags = re.compile(rf"</?(?:{'|'.join(LOADING)})\b[^>]*>")
    for path in built_site.rglob("*.html"):
        loads = Loads()
        loads.feed("".join(tags.findall(path.read_text(encoding="utf-8"))))
        outside = [name for name in loads.addresses if re.match(r"(https?:)?//", name)]
        assert not outside, f"{path.relative_to(built_site)} loads {outside}"


def test_no_style_sheet_names_a_resource_of_another_host(built_site):
    """Nor do style sheets load or import from elsewhere."""
    for path in built_site.rglob("*.css"):
        outside = re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//[^;)]*", path.read_text(encoding="utf-8"))
        assert not outside, f"{path.name}: {outside}"


def test_every_local_link_leads_to_a_file_and_an_anchor(built_site):
    """No dead link inside the site, run pages included."""
    anchors = {}
    dead = set()
    for path in built_site.rglob("*.html"):
        for href in set(re.findall(r'<a [^>]*?href="([^"]*)"', path.read_text(encoding="utf-8"))):
            if re.match(r"[a-z]+:|//", href):
                continue
            name, _, anchor = href.partition("#")
            target = os.path.normpath(path.parent / name.partition("?")[0]) if name else str(path)
            if target not in anchors:
                there, page = Path(target).is_file(), target.endswith(".html")
                found = Path(target).read_text(encoding="utf-8") if there and page else ""
                anchors[target] = set(re.findall(r' (?:id|name)="([^"]+)"', found)) if there else None
            if anchors[target] is None or (anchor and target.endswith(".html") and anchor not in anchors[target]):
                dead.add(f"{path.relative_to(built_site)} → {href}")
    assert not dead, "\n".join(sorted(dead))


def test_every_chapter_can_be_cited_and_described(built_site):
    """Highwire tags, a description, a favicon, a canonical address, and the block at the foot."""
    for name in pages():
        text = (built_site / f"{name}.html").read_text(encoding="utf-8")
        for needed in ('name="citation_title"', 'name="citation_author"', 'name="description"', 'property="og:title"'):
            assert text.count(needed) == 1, (name, needed)
        assert 'rel="icon"' in text and 'rel="canonical"' in text and 'id="cite-bibtex"' in text, name


@pytest.mark.browser
@pytest.mark.parametrize("page", pages())
def test_a_page_is_quiet_self_contained_and_fits_a_phone(open_page, page):
    """No request to another host, no console error, no sideways scrolling and no cut-off code at 360 pixels, light and
    dark.
    """
    opened, troubles = open_page(f"{page}.html", PHONE, "light")
    for scheme in ("light", "dark"):
        if scheme == "dark":
            opened.emulate_media(color_scheme=scheme)
        opened.wait_for_function(f"document.documentElement.dataset.theme === {scheme!r}")
        opened.wait_for_timeout(100)  # for what the other colours load
        assert troubles == [], scheme
        assert opened.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], scheme
    cut = "[...document.querySelectorAll('pre')].filter((one) => one.scrollWidth > one.clientWidth + 1).length"
    assert opened.evaluate(cut) == 0


def test_a_chapter_says_how_long_it_takes_explains_terms_and_asks_for_faults(built_site):
    """Each term is linked once, with its definition; each section ends with an issue that names it."""
    page = BeautifulSoup((built_site / "book/lora.html").read_text(encoding="utf-8"), "html.parser").article
    terms = [one.text for one in page.select("a.term[title]")]
    assert len(terms) == len({*terms}) > 0
    asked = [parse_qs(urlsplit(one["href"]).query)["title"][0] for one in page.select(".tell-us a")]
    headings = page.select("section > section > h2")
    assert len(asked) == len(headings) and asked[0].removeprefix("book/lora: ") in headings[0].text
    assert re.fullmatch(r"\d+ minutes to read", page.select_one(".reading-time").text)


@pytest.mark.browser
def test_a_printed_chapter_has_its_title_and_its_solutions_last(open_page):
    """The theme hides the title on paper, and leaves each solution under its exercise."""
    opened, _ = open_page("book/lora.html", PHONE, "light")
    opened.emulate_media(media="print")
    assert opened.locator(".bd-article section > h1").is_visible()
    exercises, solutions = (
        [one.bounding_box()["y"] for one in opened.locator(f".bd-article div.{name}").all()]
        for name in ("exercise", "solution")
    )
    assert len(solutions) > 2 and min(solutions) > max(exercises)


@pytest.mark.browser
def test_lines_break_inside_the_containers_of_docutils(open_page):
    """The printed book holds its chapters in a `toctree-wrapper compound`, which no rule of ours may mean."""
    opened, _ = open_page("book/lora.html", PHONE, "light")
    opened.evaluate("document.querySelector('.bd-article').classList.add('toctree-wrapper', 'compound', 'container')")
    wide = "[...document.querySelectorAll('.bd-article p')].filter((one) => one.scrollWidth > one.clientWidth).length"
    assert opened.evaluate(wide) == 0


def run_pages_to_look_at(site: Path) -> list[str]:
    """A study's page, the page of a run, and that of a probe."""
    found = {type(record.spec): record.short_key for record in default_store().all()}
    names = [f"study-{studies.NAMES[0]}", *found.values()]
    return [f"book/runs/{name}.html" for name in names if (site / f"book/runs/{name}.html").is_file()]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_run_pages_are_quiet_and_fit_a_phone(open_page, built_site, scheme):
    """They are made outside Sphinx's reading: look at one of each kind."""
    for path in run_pages_to_look_at(built_site):
        opened, troubles = open_page(path, PHONE, scheme)
        assert troubles == [], path
        assert opened.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path


@pytest.mark.browser
def test_choosing_a_verdict_leaves_its_claims(open_page):
    """By mouse and without a script of ours; `all` brings the others back."""
    page, _ = open_page("book/claims.html")
    cards = page.locator("article.claim")
    for label in page.locator(".claim-filter label").all():
        label.click()
        chosen = label.get_attribute("for").removeprefix("show-")
        shown = cards.evaluate_all("cards => cards.filter(card => card.offsetParent).map(card => card.className)")
        assert len(shown) == int(label.locator("b").text_content())
        assert chosen == "all" or set(shown) == {f"claim is-{chosen}"}


@pytest.mark.browser
@pytest.mark.parametrize("name", ["head_to_head", "low_rank_update", "learning_rate_curves"])
def test_the_figures_of_the_pages_are_those_of_the_command(built_site, name):
    """`make book` takes them from there: byte for byte what `peftbook figures` draws. The last is shown in part too."""
    drawn = pictures.drawn_figures(built_site)
    assert drawn[name].read_bytes() == figures.svg(name, default_store())
    assert drawn.keys() <= set(figures.FIGURES)


def test_figures_follow_the_colour_mode(open_page, built_site):
    """Of each pair exactly one image is displayed, before and after the switch is pressed."""
    name = next(name for name in pages() if "book-figure" in (built_site / f"{name}.html").read_text(encoding="utf-8"))
    page, _ = open_page(f"{name}.html")
    shown = "[...document.querySelectorAll('.book-figure img')].filter(i => i.offsetParent).map(i => i.className)"
    figures = page.locator(".book-figure").count()
    assert page.evaluate(shown) == ["figure-light"] * figures
    for _ in range(3):
        page.locator(".article-header-buttons .theme-switch-button").click()
        if page.evaluate("document.documentElement.dataset.theme") == "dark":
            break
    assert page.evaluate(shown) == ["figure-dark"] * figures


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_has_its_colours_before_any_deferred_script(browser, open_page, address, scheme):
    """Those that it has in the end; else boxes have no border at the first paint, and lines move when it comes."""
    colours = "['--ink', '--paper'].map(name => getComputedStyle(document.documentElement).getPropertyValue(name))"
    whole, _ = open_page("book/qlora.html", scheme=scheme)
    first = browser.new_page(color_scheme=scheme)
    first.route("**/*.js*", lambda route: route.abort())
    first.goto(address + "book/qlora.html", wait_until="domcontentloaded")
    assert first.evaluate(colours) == whole.evaluate(colours) != ["", ""]
    first.close()


@pytest.mark.browser
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize(("page", "figure"), [("lora", "lora"), ("quantisation", "qlora")])
def test_an_explorer_answers_its_sliders(open_page, page, figure, viewport):
    """The picture gives way to controls, and moving one changes what the figure says, in the reader's browser alone."""
    opened, troubles = open_page(f"book/{page}.html", viewport=viewport)
    one = opened.locator(f"#fig-{figure}-explorer")
    assert not one.locator("img").first.is_visible()
    before = one.locator(".explorer-says").inner_text()
    slider = one.locator("input[type=range]").first
    slider.fill(str(int(slider.get_attribute("max"))))
    assert one.locator(".explorer-says").inner_text() != before
    assert opened.evaluate("document.documentElement.scrollWidth <= innerWidth") and not troubles


@pytest.mark.browser
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_chapter_on_memory_says_what_fits(open_page, viewport):
    """The byte model comes with the site, and answers in the reader's browser alone."""
    page, troubles = open_page("book/will-it-fit.html", viewport=viewport)
    one = page.locator("#fig-fit-explorer")
    assert not one.locator("img").first.is_visible()
    one.get_by_role("spinbutton", name="Tokens a row").fill("128")
    page.wait_for_function("document.querySelector('.fit-command')?.textContent.includes('--seq 128')", timeout=60_000)
    assert "It fits: tensors take" in one.get_by_role("status").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and not troubles


@pytest.mark.browser
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("section", ["the-rule", "what-this-does-not-show"])
def test_a_link_to_a_section_lands_on_it(open_page, viewport, section):
    """Its heading is at the top of the window, whatever figures and formulas stand above it."""
    page, _ = open_page(f"book/head-to-head.html#{section}", viewport=viewport)
    top = "id => document.getElementById(id).getBoundingClientRect().top"
    page.wait_for_function(f"id => {{ const top = ({top})(id); return 0 <= top && top <= 120 }}", arg=section)


@pytest.mark.browser
def test_search_finds_what_readers_look_for(open_page):
    """In their own words: a right page is the first or the second. An unknown word finds nothing."""
    page, troubles = open_page("search.html?q=OOM")
    field = page.locator(".bd-search-container input[type=search]")
    assert field.input_value() == "OOM" and page.locator("#search-results li").count()
    asked = tomllib.loads((ROOT / "tests/searches.toml").read_text(encoding="utf-8"))["search"]
    for one in asked:
        field.fill(one["query"])
        links = page.locator("#search-results li > a:first-child").evaluate_all("all => all.map(one => one.pathname)")
        found = [link.rpartition("/")[2].removesuffix(".html") for link in links[:2]]
        assert {*found} & {*one["pages"]}, (one["query"], found)
    field.fill("qqqqqq")
    assert "No pages" in page.locator("#search-results").get_by_role("status").inner_text() and not troubles


@pytest.mark.browser
def test_the_citation_can_be_copied(open_page):
    """The button answers, with the clipboard or by selecting the text."""
    page, _ = open_page(f"{pages()[1]}.html")
    page.locator("[data-copies=cite-bibtex]").click()
    page.wait_for_function("document.querySelector('.copy-answer').textContent !== ''")


# ---------------------------------------------------------------------------------------------- the evidence


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The records of two studies, so that some claims are decided and most are not yet run."""
    return copy_records(tmp_path_factory.mktemp("records"), "methods", "costs")


@pytest.fixture(scope="module")
def board(store):
    """The scoreboard of that store."""
    return BeautifulSoup(claim_cards.scoreboard(store), "html.parser")


def badge(element) -> str:
    """The word of the verdict's badge, its sign left out."""
    sign = element.select_one(".verdict > [aria-hidden]").text
    return element.select_one(".verdict").text.removeprefix(sign).strip()


def study_card(name: str, store):
    """The card on a study's own page."""
    page = run_pages.study_page(studies.get_study(name), store)
    return BeautifulSoup(page, "html.parser").article


def test_every_study_has_one_card_on_one_of_the_two_pages(board, store):
    """No claim is left out, not even one that was refuted or has no run; public runs of others stand apart."""
    checks = BeautifulSoup(claim_cards.checks(store), "html.parser")
    cards = [card["id"] for card in (*board.select("article"), *checks.select("article"))]
    assert sorted(cards) == sorted(f"claim-{name}" for name in studies.NAMES)
    for place in board.select(".scale"):
        assert len({"is-others" in card["class"] for card in place.select("article")}) == 1


def test_a_card_says_what_its_study_says(board, store):
    """Verdict as colour, sign and word; claim, evidence, source; on its own page what refutes it and does not show."""
    for one in results.claims(store):
        card, whole = board.find(id=f"claim-{one.study.name}"), study_card(one.study.name, store)
        card = card or whole  # a tool of ours
        slug = one.verdict.outcome.replace(" ", "-")
        assert badge(card).partition(":")[0] == one.verdict.outcome
        kind = "others" if one.study.others else "own" if one.study.own else slug
        assert card["class"] == ["claim", f"is-{kind}"]
        assert card.select_one(".verdict")["class"] == ["verdict", f"verdict-{slug}"]
        assert card.find(["h2", "h3"]).text == one.study.claim
        assert card.select_one(".claim-evidence").text == f"{one.verdict.sentence} {bound(one)}".strip()
        regime = [f"{one.study.regime}."] if one.verdict.outcome == "fails in this regime" else []
        told = [one.study.refuted_if, *regime, one.study.does_not_show]
        assert [term.text for term in whole.select("dd")] == told
        key = one.study.source.partition(",")[0]
        assert card.select_one(".claim-source a")["href"].removeprefix("../") == f"bibliography.html#ref-{key}"


def test_every_claim_names_a_work_of_the_bibliography():
    """A source is a key, perhaps with a place behind it."""
    for name in studies.NAMES:
        key = studies.get_study(name).source.partition(",")[0]
        assert key in bibliography.entries(), name


def test_a_study_page_shows_its_effect_or_the_command_that_makes_it(store):
    """The deciding number with both ends of its interval and the way to its runs, or how to get it."""
    decided = 0
    for one in results.claims(store):
        card = study_card(one.study.name, store)
        if one.effect is None:
            assert card.select_one(".claim-effect code").text == results.run_command(one.study.name)
            continue
        decided += 1
        ends = [end for end in (one.effect.value, one.effect.low, one.effect.high) if end is not None]
        printed = card.select_one(".claim-effect").text
        assert all(results.format_value(end, one.effect.digits) in printed for end in ends)
        study_page = BeautifulSoup(run_pages.study_page(one.study, store), "html.parser")
        assert study_page.find(id=card.select_one(".claim-facts a")["href"].removeprefix("#"))
    assert decided


def test_a_claim_is_said_to_be_not_yet_run_without_any_record(tmp_path):
    """Then every card that waits for runs names its command, and the counts say so."""
    empty = BeautifulSoup(claim_cards.scoreboard(Store(tmp_path)), "html.parser")
    for card in empty.select("article:not(.is-others)"):
        assert badge(card) == "not yet run"
        assert f"peftbook run {card['id'].removeprefix('claim-')}" in card.text


def test_a_refuted_claim_outside_of_its_sources_range_names_the_regime_in_its_badge():
    """The excuse is printed with the verdict, and only where the study has one."""
    store = default_store()
    board = BeautifulSoup(claim_cards.scoreboard(store), "html.parser")
    excused = [one for one in results.claims(store) if one.verdict.outcome == "fails in this regime"]
    assert excused
    for one in excused:
        shown = badge(board.find(id=f"claim-{one.study.name}"))
        assert shown == f"fails in this regime: {one.study.regime.partition(';')[0]}"
    assert all(one.study.regime == "" for one in results.claims(store) if one.verdict.outcome == "refuted")


def test_checks_of_our_own_tools_are_counted_apart(store):
    """No tool of the book makes the score of the papers look better."""
    claims = results.claims(store)
    counts = [results.count_verdicts(claims, *apart) for apart in ((True, False), (False, False), (False, True))]
    own, papers, others = (sum(count.values()) for count in counts)
    judged = [one for one in claims if not one.study.measures]
    assert own == sum(one.study.own and not one.study.others for one in judged) > 0
    assert others == sum(one.study.others for one in judged) > 0 and own + papers + others == len(judged)


def test_what_measures_and_cannot_be_refuted_counts_nowhere():
    """A verdict that nothing could have turned is none."""
    claims = results.claims(default_store())
    measured = {one.study.name for one in claims if one.verdict.outcome == "measured"}
    assert measured == {one.study.name for one in claims if one.study.measures} and len(measured) > 5
    counts = [results.count_verdicts(claims, *apart) for apart in ((True, False), (False, False), (False, True))]
    assert not any("measured" in count for count in counts)


def test_a_claim_that_no_paper_makes_is_counted_as_ours():
    """Where source or claim say that it is the book's own, its verdict is none on a paper."""
    every = [studies.get_study(name) for name in studies.NAMES]
    ours = [one for one in every if re.search("this book's own|the book's question", f"{one.source} {one.claim}", re.I)]
    assert len(ours) > 3 and all(one.own for one in ours)


def test_the_filter_counts_the_cards(board):
    """The number on each button is the number of cards that it leaves, and the numbers add up."""
    counts = {label["for"]: int(label.b.text) for label in board.select("label")}
    total = counts.pop("show-all")
    assert total == sum(counts.values()) == len(board.select("article"))
    for target, count in counts.items():
        assert len(board.select(f"article.is-{target.removeprefix('show-')}")) == count
    assert [choice["id"] for choice in board.select("input[checked]")] == ["show-all"]


def test_every_verdict_has_its_own_sign_a_meaning_and_a_filter():
    """A verdict that a study can reach is not told by colour alone, and can be filtered for."""
    assert set(display.VERDICTS) == set(results.OUTCOMES)
    signs = [sign for sign, _ in display.VERDICTS.values()]
    assert len(set(signs)) == len(signs) and all(meaning for _, meaning in display.VERDICTS.values())
    style = (ROOT / "book/assets/css/evidence.css").read_text(encoding="utf-8")
    for slug in (*(outcome.replace(" ", "-") for outcome in results.OUTCOMES), "own"):
        assert slug == "measured" or f".claims:has(#show-{slug}:checked) :is(.claim:not(.is-{slug})," in style


@pytest.mark.parametrize("name", ["methods", "costs"])
def test_a_study_page_anchors_every_quantity_once_and_lists_every_record(store, name):
    """Measured numbers in chapters link to these rows."""
    page = BeautifulSoup(run_pages.study_page(studies.get_study(name), store), "html.parser")
    anchors = [span["id"] for span in page.select("table.quantities span[id]")]
    assert sorted(anchors) == sorted(results.study_quantities(name, store))
    assert badge(page).partition(":")[0] == results.study_verdict(name, store).outcome
    rows = [link["href"] for link in page.select("table.runs a.run-link")]
    assert rows == [f"{record.short_key}.html" for record in studies.get_study(name).records(store)]


def probe_record(platform: str = "cpu") -> Record:
    """An invented probe that reads one run with a record and trains one without."""
    task = specs.Task(name="docstrings", data_sha256="0" * 64)
    runs = tuple(specs.Run(task=task, method=Untuned(shots=shots), platform=platform) for shots in (0, 5))
    spec = specs.Probe(measure="weights.update_rank", settings={"blocks": (32.0, 64.0)}, runs=runs, platform=platform)
    return Record(
        key=spec.key,
        spec=spec,
        measurements={"scale_mse": 0.25, "peak_memory_bytes": 2_000_000},
        curve={"step": [1, 2, 3], "loss_nats": [3.0, 2.0, 1.5], "block_error": [0.5, 0.25]},
        provenance={"cpu": "an invented processor", "gpu": ""},
    )


def test_a_probe_has_a_page_of_its_own():
    """What it measured, drawn along steps where it was taken there; its settings; the runs behind it; its command."""
    record = probe_record()
    read, trained = record.spec.runs
    page = BeautifulSoup(run_pages.run_page(record, [], [], {read.key}), "html.parser")
    assert page.h1.text == f"Update rank {record.short_key}"
    assert f"peftbook run --key {record.short_key} --again" in page.pre.text and record.key in page.text
    cells = {row.th.text: row.td.text for row in page.select("table.facts tr")}
    assert cells["scale mse"] == "0.25" and cells["peak memory"] == "2.0 MB"
    assert cells["settings.blocks"] == "32, 64" and cells["block error"] == "0.5, 0.25"
    assert [curve["aria-label"] for curve in page.select("svg")] == ["loss (nats) by optimiser step"]
    assert [link["href"] for link in page.select("table.runs a")] == [f"{read.key[:12]}.html"]
    assert trained.key[:12] in page.select_one("table.runs").text


def test_a_run_from_a_gpu_says_so_and_is_repeated_there():
    """CPU and GPU records stand side by side and are not taken for one another."""
    page = BeautifulSoup(run_pages.run_page(probe_record("cuda"), [], []), "html.parser")
    assert page.select_one(".platform").text == "cuda" and "--platform cuda --again" in page.pre.text


def test_the_index_lists_each_record_once(tmp_path):
    """Under the first study that uses it, or under none."""
    store = copy_records(tmp_path, "methods", "costs")
    other = store.save(probe_record())
    page = BeautifulSoup(run_pages.run_index(store), "html.parser")
    listed = [link["href"] for link in page.select("table.runs a.run-link")]
    assert sorted(listed) == sorted(f"runs/{record.short_key}.html" for record in store.all())
    assert [link["href"] for link in page.select("#others a.run-link")] == [f"runs/{other.short_key}.html"]
    assert [section["id"] for section in page.select("section")] == [*studies.NAMES, "others"]
    assert not page.select("details[open]")


def test_only_pages_that_changed_are_written_again(store, tmp_path, monkeypatch):
    """Nothing changed: none; a new record: its own page and those of its studies, with the raw record beside it."""
    monkeypatch.setattr(records, "SHIPPED", *store.folders)
    monkeypatch.setenv("PEFTBOOK_RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(studies, "NAMES", ("methods", "costs"))
    app = SimpleNamespace(
        builder=SimpleNamespace(name="html"),
        config=SimpleNamespace(version="", html_theme_options={}),
        env=SimpleNamespace(titles={}, all_docs=["claims"], peftbook_store_pages=["claims"]),
        outdir=tmp_path / "html",
        srcdir=ROOT,
        peftbook_sources="",
    )

    def built() -> tuple[list[str], set[str]]:
        """What is read again, and what is written."""
        outdated, written = run_pages._outdated(app, app.env, set(), set(), set()), set()
        for page in app.outdir.glob("book/runs/*.html"):
            os.utime(page, (0, 0))
        for name, context, _ in run_pages.collect_pages(app):
            frame = f"<title>{context['title']}</title><main>{context['article']}</main><i>{name}</i>"
            (app.outdir / f"{name}.html").write_text(frame + app.config.version)
        for page in app.outdir.glob("book/runs/*.html"):
            if page.stat().st_mtime:
                written.add(page.stem)
        return outdated, written

    outdated, written = built()
    shipped = {record.short_key for record in default_store().all()}
    assert outdated == ["claims"] and written == {"study-methods", "study-costs"} | shipped
    assert built() == ([], set())
    record = default_store().save(probe_record())
    assert built() == (["claims"], {record.short_key})
    assert (app.outdir / f"book/runs/{record.short_key}.json").is_file()
    page = BeautifulSoup((app.outdir / f"book/runs/{record.short_key}.html").read_text(), "html.parser")
    assert page.title.text == run_pages.title_of(record) and page.i.text == f"book/runs/{record.short_key}"
    assert page.main.h1.text == run_pages.title_of(record)
    app.config.version = "another"
    assert built() == ([], written | {record.short_key})
