"""What a page carries: style sheets without rules that match nothing, figures as files of their own."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
import tinycss2

from peftbook.views.site.lean import lean, may_match, moved
from peftbook.views.site.pictures import extract_images

CSS = (
    '@charset "utf-8";/* {a} */a{b:c}.used,.gone{d:e}.gone{f:g}@media print{.gone{h:i}}@media print{.used{j:k}}'
    '@font-face{font-family:"Font Awesome 6"}@font-face{font-family:"Own"}@keyframes x{to{l:m}}'
    '.used::before{content:"}"}'
)


def test_only_rules_that_can_match_stay():
    """Elements, known classes, keyframes and own fonts; a brace in a string ends nothing."""
    assert lean(CSS, {"used"}) == (
        '@charset "utf-8";a{b:c}.used{d:e}@media print{.used{j:k}}@font-face{font-family:"Own"}@keyframes x{to{l:m}}'
        '.used::before{content:"}"}'
    )


def test_thinning_twice_is_thinning_once():
    once = lean(CSS, {"used"})
    assert lean(once, {"used"}) == once


def test_with_every_class_known_no_rule_is_lost():
    """The theme's own sheet: as many blocks as before, fonts of icons aside."""
    import pydata_sphinx_theme

    sheet = (
        Path(pydata_sphinx_theme.__file__).parent / "theme/pydata_sphinx_theme/static/styles/pydata-sphinx-theme.css"
    )
    css = sheet.read_text(encoding="utf-8")

    class Everything:
        def __contains__(self, name):
            return True

    before, after = (
        tinycss2.parse_stylesheet(text, skip_comments=True, skip_whitespace=True)
        for text in (css, lean(css, Everything()))
    )
    fonts = [rule for rule in before if rule.type == "at-rule" and rule.lower_at_keyword == "font-face"]
    icons = sum("Font Awesome" in rule.serialize() for rule in fonts)
    assert icons > 0 and len(after) == len(before) - icons


@pytest.mark.parametrize(
    ("selector", "answer"),
    [
        ("p > a[href='.pdf']", True),
        (".used .gone", False),
        (".used:not(.gone)", True),
        (":is(.gone, .used) a", True),
        (".bs-tooltip-auto", True),
        (".used:not(:is(.gone, [x='.y']))", True),
        (r".us\65 d", True),
        (r".used\:gone", False),
    ],
)
def test_what_a_selector_needs(selector, answer):
    """Every class outside parentheses, escapes resolved; inside they may be alternatives."""
    assert may_match(tinycss2.parse_component_value_list(selector), {"used"}) is answer


def test_figures_leave_the_page_and_equal_ones_become_one_file():
    """Each is fetched when it comes into view; nothing else of the page changes."""
    files: dict[str, bytes] = {}

    def write(name, body):
        files[name] = body
        return f"../_images/{name}"

    images = [base64.b64encode(body).decode() for body in (b"<svg/>", b"<svg>2</svg>", b"<svg/>")]
    page = (
        "".join(f'<img alt="a" src="data:image/svg+xml;base64,{image}">' for image in images)
        + '<img src="data:image/png;base64,AA">'
    )
    html = extract_images(page, write)
    assert sorted(files.values()) == [b"<svg/>", b"<svg>2</svg>"]
    assert html.count('loading="lazy"') == 3 and all(f'src="../_images/{name}"' in html for name in files)
    assert html.endswith('<img src="data:image/png;base64,AA">')


def test_addresses_are_seen_from_the_new_place():
    """Relative ones move with the sheet; data and absolute ones stay."""
    css = "a{b:url(../fonts/a.woff2)}c{d:url('e.png')}f{g:url(data:image/png;base64,AA)}h{i:url(#j)}"
    sheet = moved(css, "css")
    assert 'url("fonts/a.woff2")' in sheet and 'url("css/e.png")' in sheet
    assert "url(data:image/png;base64,AA)" in sheet and "url(#j)" in sheet


def test_a_page_loads_one_sheet_and_carries_no_figure(built_site):
    """Nor does it load the words of all sections, which the page for searching has."""
    for path in [*built_site.glob("book/*.html"), *built_site.glob("book/runs/study-*.html")]:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="([^"]*)"', text) == [
            f"{'../' * (len(path.relative_to(built_site).parts) - 1)}_static/site.css"
        ]
        assert "data:image/svg+xml;base64" not in text and "sections.js" not in text, path.name
    assert "sections.js" in (built_site / "search.html").read_text(encoding="utf-8")


def test_the_sheet_names_files_that_exist(built_site):
    """Joined from many folders, it still finds its fonts, and none of icons."""
    css = (built_site / "_static/site.css").read_text(encoding="utf-8")
    named = re.findall(r'url\("(?!data:)([^")]+)"\)', css)
    assert named and all((built_site / "_static" / name).is_file() for name in named)
    assert "fontawesome/" not in css


def test_the_sheet_keeps_the_order_of_its_parts(built_site):
    """The book's own rules come last, after the colours of code in the dark, which the theme writes at the end."""
    css = (built_site / "_static/site.css").read_text(encoding="utf-8")
    places = [
        css.rindex(part) for part in ('[data-theme="dark"] .highlight .k', "KaTeX_AMS", "--book-accent", ".claim")
    ]
    assert places == sorted(places)
