"""`peftbook book`: parts that are up to date are left alone; outside a checkout it says so."""

from __future__ import annotations

import contextlib
import os
import shutil
from types import SimpleNamespace

import pytest

from peftbook.core.errors import InputError
from peftbook.views import build, figures, slides
from peftbook.views.site import lecture


def test_outside_a_checkout_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"_config\.yml"):
        build.build_book(tmp_path)


def test_a_deck_that_cannot_be_made_is_said(tmp_path):
    """It is made in another process, beside the site."""
    (tmp_path / "file").write_text("no folder")
    with (
        pytest.raises(InputError, match=r"slides could not be made: .*file"),
        build.deck_beside(tmp_path / "file/deck"),
    ):
        pass


def test_figures_are_written_once_and_those_of_the_pages_are_taken(tmp_path, monkeypatch):
    """A figure that a page shows is copied from there, the others are drawn; the next build leaves them alone."""
    page, given = tmp_path / "_build/html/book/page.html", []
    (tmp_path / "_config.yml").touch()
    page.parent.mkdir(parents=True)
    page.write_text(
        '<figure id="fig" data-drawing="bin_mass"><img class="figure-light" alt="" src="../_images/0a.svg"></figure>'
    )
    for name in ("cache_verdicts", "lecture_files", "copy_lecture"):
        monkeypatch.setattr(build, name, lambda *_: [])
    monkeypatch.setattr(build, "deck_beside", lambda out: contextlib.nullcontext())
    monkeypatch.setattr(build, "build_site", lambda *_, **options: tmp_path / "_build/html/index.html")
    monkeypatch.setattr(figures, "render_all", lambda *words: given.append(words))
    for _ in range(2):
        build.build_book(tmp_path)
    ((folder, _, drawn),) = given
    assert folder == tmp_path / "figures"
    assert drawn == {"bin_mass": tmp_path / "_build/html/_images/0a.svg"}


def test_pages_offer_what_is_made_meanwhile(tmp_path, monkeypatch):
    """Deck and handout are not there yet when the pages are written."""
    (tmp_path / "slides").mkdir()
    shutil.copyfile(slides.OUTLINE, tmp_path / "slides/outline.toml")
    app, context = SimpleNamespace(srcdir=str(tmp_path)), {"pathto": lambda name, _: f"../{name}"}
    for promised in ([], ["peft.pptx"], list(lecture.FILES)):
        monkeypatch.setenv(lecture.PROMISED, os.pathsep.join(promised))
        lecture.add_lecture(app, "book/lora", "page.html", context, object())
        links = [f"../slides/{name}" if name in promised else "" for name in lecture.FILES]
        offered = context["lecture"] and [context["lecture"][name] for name in ("deck", "handout")]
        assert offered == (links if promised else None)
