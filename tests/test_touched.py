"""`make check` runs what a change touches."""

from __future__ import annotations

import pytest
from touched import MOST, changed, touched


@pytest.mark.parametrize(
    ("path", "among", "not_among"),
    [
        ("src/peftbook/scratch/prompt.py", "tests/test_scratch_prompt.py", "tests/test_deck.py"),
        ("src/peftbook/figures/__init__.py", "tests/test_figures.py", "tests/test_stats.py"),
        ("tests/fake_records.py", "tests/test_figures.py", "tests/test_stats.py"),
        ("tests/test_stats.py", "tests/test_stats.py", "tests/test_figures.py"),
    ],
)
def test_the_tests_of_a_module_are_those_that_name_it(path, among, not_among):
    assert among in touched([path]) and not_among not in touched([path])


def test_a_module_that_all_import_has_room_for_the_nearest():
    """And a test file that changed itself is always among them."""
    several = touched(["src/peftbook/records.py", "tests/test_chart.py"])
    assert len(several) == MOST + 1 and {"tests/test_records.py", "tests/test_chart.py"} <= set(several)


def test_prose_touches_no_test():
    assert touched(["README.md", "book/lora.md", "tests/test_gone.py"]) == []


def test_the_paths_are_those_of_a_change():
    """Of this checkout, whatever its state: without git's marks, one by one."""
    assert all(path.strip() == path and "\0" not in path for path in changed())
