"""The outline: what each slide states, shows and says, read from `slides/outline.toml`, and subsets of it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftbook.core.errors import InputError
from peftbook.core.folders import PACKAGE

OUTLINE = PACKAGE.parents[1] / "slides" / "outline.toml"
NEEDED = ("title", "section", "chapter", "notes", "asked")


def read_outline(path: Path = OUTLINE) -> list[dict[str, Any]]:
    """The slides of the outline, in order. Raises InputError naming the file and what is wrong with it."""
    try:
        slides = tomllib.loads(path.read_text(encoding="utf-8"))["slide"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise InputError(f"Outline {path} cannot be read ({error}): it needs [[slide]] tables.") from None
    for number, slide in enumerate(slides, 1):
        for name in NEEDED:
            if not slide.get(name):
                raise InputError(f"Slide {number} of {path.name} has no {name!r}: every slide needs one.")
    return slides


def slug(section: str) -> str:
    """A section's name as the command line takes it: lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", section.lower()).strip("-")


def choose(slides: Sequence[dict[str, Any]], sections: Sequence[str]) -> list[dict[str, Any]]:
    """The cover and the slides of these sections, in the outline's order; all slides if none are named.

    Raises InputError for an unknown section.
    """
    known = dict.fromkeys(slug(slide["section"]) for slide in slides)  # each once, in order
    for name in sections:
        if name not in known:
            raise InputError(f"Unknown section {name!r}: choose from {', '.join(known)}.")
    if not sections:
        return list(slides)
    return [slide for slide in slides if slide.get("layout") == "cover" or slug(slide["section"]) in sections]
