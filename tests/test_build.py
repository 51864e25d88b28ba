"""`peftbook book`: parts that are up to date are left alone; outside a checkout it says so."""

from __future__ import annotations

import pytest

from peftbook import build
from peftbook.errors import InputError


def test_outside_a_checkout_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"_config\.yml"):
        build.build_book(tmp_path)


def test_a_part_is_fresh_until_a_source_changes(tmp_path):
    source = tmp_path / "source.py"
    source.write_text("one")
    assert not build.fresh(tmp_path, "figures", [source])
    build.remember(tmp_path, "figures", [source])
    assert build.fresh(tmp_path, "figures", [source])
    source.write_text("two")
    assert not build.fresh(tmp_path, "figures", [source])


def test_a_new_file_makes_a_part_stale(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text("1")
    build.remember(tmp_path, "deck", [first])
    second.write_text("2")
    assert not build.fresh(tmp_path, "deck", [first, second])


def test_figures_that_cannot_be_drawn_are_said(tmp_path):
    """They are drawn in another process, beside the site."""
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="figures could not be drawn"), build.figures_drawn(tmp_path / "file"):
        pass
