"""Pieces of HTML: text stays text, whatever it holds, and pieces stay pieces."""

from __future__ import annotations

from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbook.views.html import joined, json_script, link, part, piece, powers_raised, prose

TEXT = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1)


@given(TEXT, TEXT)
@settings(deadline=None)
def test_a_parser_finds_the_texts_that_were_put_in(one, two):
    """In cells, attributes and folds; a piece inside another is not escaped again."""
    table = part("grid", ["a"], [[link(one, two)]])
    found = BeautifulSoup(part("details", one, joined([table, part("fact_table", [(two, one)])])), "html.parser")
    assert found.summary.text == one and [cell.text for cell in found.select(".facts :is(th, td)")] == [two, one]
    assert (found.a["href"], found.a.text) == (one, two) and not found.script


def test_data_for_a_script_does_not_end_it():
    """The browser ends a script at the first `</`, wherever it stands."""
    assert json_script({"a": "</script><b>"}).count("</") == 1
    assert piece("<i>{}</i>", "<b>") == "<i>&lt;b&gt;</i>"
    assert '<p class="nothing">None yet.</p>' in part("grid", ["a"], [])


def test_marks_in_a_text_do_not_escape_it_twice():
    """Code in a line keeps its quotes, a power stands above."""
    assert BeautifulSoup(prose('`a("b")` & c'), "html.parser").text == 'a("b") & c'
    assert powers_raised("5 × 10^−3 <") == "5 × 10<sup>−3</sup> &lt;"
