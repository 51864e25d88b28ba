"""The reference pages: no command, option or offered function is missing."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from peftbook.cli import whole_parser
from peftbook.views import figures
from peftbook.views.site import reference, tracing
from peftbook.views.site.execution import file_hash


def test_every_command_and_every_option_is_there():
    """What `--help` prints a reader finds on the page."""
    html = reference.commands(whole_parser()).html
    names = [name for name, _ in reference.subcommands(whole_parser())]
    assert {"run", "fit", "claims"} <= set(names) and len(set(names)) == len(names)
    for name, parser in reference.subcommands(whole_parser()):
        assert f'id="command-{name.replace(" ", "-")}"' in html
        for action in parser._actions[1:]:
            assert (action.option_strings or [action.metavar or action.dest])[-1] in html
    assert "`" not in html


@pytest.mark.parametrize(
    ("module", "asked"),
    [
        ("peftbook.scratch.lora", {"LoRALinear", "add_lora", "lora_state"}),
        ("peftbook.memory.fit", {"Fit", "as_text", "largest"}),
        ("peftbook.views.figures.lora", set()),
    ],
)
def test_what_others_use_of_a_module_is_listed_with_its_first_line(module, asked):
    """All figures; of functions and classes no name that no other file has; constants are left to the source."""
    html = reference.library().html
    part = html.partition(f'id="{module}"')[2].partition("</details>")[0]
    listed = set(re.findall(r"<dt><code>(?:class )?(\w+)", part))
    here = Path(importlib.import_module(module).__file__)
    files = [path for path in (*reference.PACKAGE.rglob("*.py"), *reference.BOOK.glob("*.md")) if path != here]
    words = set(re.findall(r"\w+", " ".join(path.read_text(encoding="utf-8") for path in files)))
    drawn = {name for name, place in figures.places().items() if module == f"peftbook.views.figures.{place}"}
    assert asked | drawn <= listed <= words | drawn
    assert part.count("<dd></dd>") == 0


def test_the_page_rests_on_modules_that_it_lists_and_does_not_import(tmp_path):
    """And on their folders, so that a new one makes it stale too."""
    trace = tracing.Trace(tmp_path / "trace.json", ())
    sys.addaudithook(trace.audit)
    reference.library()
    trace.write()
    trace.active = False
    told = set(json.loads((tmp_path / "trace.json").read_text())["files"])
    assert {str(reference.PACKAGE / name) for name in ("scratch/prompt.py", "scratch", "tasks/sql.py")} <= told
    (tmp_path / "module.py").write_text("")
    before = file_hash(tmp_path)
    (tmp_path / "another.py").write_text("")
    assert file_hash(tmp_path) != before
