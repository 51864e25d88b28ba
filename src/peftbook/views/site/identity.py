"""Who and where: the one place that holds addresses, authors, version, date and licences."""

from __future__ import annotations

from datetime import date
from functools import cache

import yaml

from peftbook import __version__
from peftbook.core.folders import PACKAGE

TITLE = "Parameter-Efficient Fine-Tuning, measured"
AUTHORS = ("The peftbook authors",)
REPOSITORY = "https://github.com/peftbook/peftbook"
PAGES_BRANCH = "gh-pages"  # holds the built site, its notebooks included
PUBLIC_ADDRESS = "https://peftbook.github.io/peftbook/"
CODE_LICENCE = "MIT"
TEXT_LICENCE = "CC BY 4.0"
TEXT_LICENCE_ADDRESS = "https://creativecommons.org/licenses/by/4.0/"

CITATION_FILE = PACKAGE.parents[1] / "CITATION.cff"


@cache
def _citation_fields() -> dict[str, str]:
    """CITATION.cff, its values as they are written; empty where the package is installed without it."""
    text = CITATION_FILE.read_text(encoding="utf-8") if CITATION_FILE.is_file() else "{}"
    return yaml.load(text, yaml.BaseLoader)


def version() -> str:
    """The book's version: CITATION.cff's, else the package's."""
    return _citation_fields().get("version", __version__)


def released() -> date | None:
    """The day this version was released, as CITATION.cff says, or None."""
    text = _citation_fields().get("date-released", "")
    return date.fromisoformat(text) if text else None
