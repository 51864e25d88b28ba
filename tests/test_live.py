"""Training in the page: the engine's pieces against the package's, its losses against PyTorch's."""

from __future__ import annotations

import re
from pathlib import Path

from peftbook.tasks import file_sha256

ROOT = Path(__file__).resolve().parents[1]
ENGINE = ROOT / "book/assets/live"


def test_the_vendored_files_are_those_that_the_notice_names():
    """Nothing of another's code was changed, and none came without its licence."""
    named = dict(re.findall(r"live/jax/(\S+\.cjs) +([0-9a-f]{64})", (ROOT / "NOTICE").read_text(encoding="utf-8")))
    there = {path.name: file_sha256(path) for path in (ENGINE / "jax").glob("*.cjs")}
    assert there == named and len(named) == 2
    assert "MIT License" in (ENGINE / "jax/LICENSE").read_text(encoding="utf-8")
