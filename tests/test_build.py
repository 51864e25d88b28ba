"""`peftbook book`: parts that are up to date are left alone; outside a checkout it says so."""

from __future__ import annotations

import os
import shutil
from types import SimpleNamespace

import pytest

from peftbook.core.errors import InputError
from peftbook.views import build, slides
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
