"""What starts at once loads no large library: each part in turn, in one process."""

from __future__ import annotations

import json

import pytest

from peftbook.runtime.processes import run_child

PARTS = {  # what one does → libraries that it does not need
    "help": ("from peftbook.cli import build_parser; build_parser().format_help()", "numpy pydantic matplotlib"),
    "methods": ("from peftbook import methods; methods.presets(); methods.kinds()", "numpy"),
    "decide": ("import peftbook.decision; from peftbook.evidence.outside import decide", "pyarrow"),
    "studies": ("from peftbook.studies import NAMES, get_study; [get_study(name) for name in NAMES]", ""),
    "plan": ("from peftbook.studio.plan import plan", ""),
    "threads": ("from peftbook.runtime.threads import best_threads; best_threads()", ""),  # another process is asked
    "web process": (
        "import pathlib, tempfile, peftbook.studio.report, peftbook.studio.downloads\n"
        "from peftbook.studio.app import build_app; from peftbook.studio.store import Studio\n"
        "from peftbook.tasks.table import Caps\n"
        "build_app(Studio(pathlib.Path(tempfile.mkdtemp())), Caps())",
        "ray",
    ),
    "deck": (
        "from peftbook.views import slides; from peftbook.core.records import default_store\n"
        "deck = pathlib.Path(tempfile.mkdtemp(), 'deck.pptx')\n"
        "slides.build(deck, default_store(), address='https://x.org/', version='1', sections=['lora'])",
        "datasets",
    ),
}
ALWAYS = "torch transformers peft bitsandbytes"


@pytest.fixture(scope="module")
def loaded() -> dict[str, list[str]]:
    """Part → the modules that were there after it and all before it."""
    steps = [f"{code}\nprint(json.dumps([*sys.modules]))" for code, _ in PARTS.values()]
    lines = run_child("-W", "ignore", "-c", "\n".join(["import json, sys", *steps]))
    return dict(zip(PARTS, map(json.loads, lines), strict=True))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_loads_no_library_that_it_does_not_need(part, loaded):
    """Help, pages and plans come at once, and the process that serves pages stays small."""
    assert not {*ALWAYS.split(), *PARTS[part][1].split()} & {*loaded[part]}
