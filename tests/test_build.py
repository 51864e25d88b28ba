"""`peftbook book`: parts that are up to date are left alone; outside a checkout it says so."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from peftbook.core.errors import InputError
from peftbook.views import build, slides
from peftbook.views.site import lecture


def test_outside_a_checkout_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"_config\.yml"):
        build.build_book(tmp_path)


def test_the_deck_is_made_once_and_before_the_pages_that_offer_it(tmp_path, monkeypatch):
    """The next build leaves it alone."""
    made: list[str] = []
    (tmp_path / "_config.yml").touch()
    (tmp_path / "slides").mkdir()
    monkeypatch.setattr(build, "build_deck", lambda deck: made.append("deck") or deck.touch())
    monkeypatch.setattr(build, "build_site", lambda *_, **options: made.append("site") or tmp_path / "html/index.html")
    for _ in range(2):
        build.build_book(tmp_path)
    assert made == ["deck", "site", "site"]
    assert (tmp_path / "html/slides/peft.pptx").is_file()


@pytest.mark.parametrize("there", [[], ["peft.pptx"], list(lecture.FILES)])
def test_pages_offer_the_files_that_are_there(tmp_path, there):
    (tmp_path / "slides").mkdir()
    shutil.copyfile(slides.OUTLINE, tmp_path / "slides/outline.toml")
    for name in there:
        (tmp_path / "slides" / name).touch()
    app, context = SimpleNamespace(srcdir=str(tmp_path)), {"pathto": lambda name, _: f"../{name}"}
    lecture.add_lecture(app, "book/lora", "page.html", context, object())
    links = [f"../slides/{name}" if name in there else "" for name in lecture.FILES]
    offered = context["lecture"] and [context["lecture"][name] for name in ("deck", "handout")]
    assert offered == (links if there else None)
