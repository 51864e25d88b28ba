"""Checks of uploaded rows, in words, and the project that an upload becomes; for page and API alike."""

from __future__ import annotations

import functools
import math
from typing import Any

from peftbook.core.errors import InputError
from peftbook.core.options import Bound
from peftbook.evidence.planning import POWER
from peftbook.evidence.stats import quantile
from peftbook.studio.settings import MOST_GENERATED, Reading
from peftbook.studio.store import Project, Studio
from peftbook.studio.uploads import Upload, UploadStore
from peftbook.tasks.cautions import cautions
from peftbook.tasks.columns import Columns
from peftbook.tasks.files import Split, TableFindings, examine
from peftbook.tasks.table import TextTable

MOST_SHARE = 30  # per cent of the rows that are offered for the test
SPREAD = 0.11  # of one row's difference in ROUGE-L: the median of the pairs of methods in our own runs on docstrings

SPLIT_BOUNDS = (
    Bound("A validation share of {} % is chosen", 1, 49, whole=False),
    Bound("A test share of {} % is chosen", 1, 49, whole=False),
    Bound("A split seed of {} is chosen", 0, 2**32 - 1),
)


def split_of(validation: float, test: float, seed: float, near_copies: Any = "any") -> Split:
    """A split from two shares in per cent and a seed. Raises InputError for what is out of bounds."""
    for bound, value in zip(SPLIT_BOUNDS, (validation, test, seed), strict=True):
        bound.check(value)
    parts = [float(share) / 100 for share in (validation, test)]
    return Split(int(seed), (1 - sum(parts), parts[0], parts[1]), near_copies=near_copies)


@functools.lru_cache(8)
def examined(found: TextTable, columns: Columns, split: Split) -> TableFindings:
    """`examine`, cached."""
    return examine(found, columns, split)


def notes_of(seen: TableFindings, instruction: str) -> list[tuple[str, str]]:
    """What the rows do not carry, and what so few test rows can tell, each with its kind: info, good or warn."""
    words = cautions(seen, instruction)
    if seen.splits and (test := seen.splits["test"]) < MOST_GENERATED:
        words.append((say_power(seen.usable, test), "info"))
    return words


def say_power(usable: int, test: int) -> str:
    """What so many test rows can tell apart, and what a larger share of the usable rows could."""
    words = f"{test:,} test rows find a difference of {found_with(test):.2f} ROUGE-L between two methods"
    words += " four times in five, if yours scatter as ours did."
    share = min(MOST_SHARE, math.ceil(100 * MOST_GENERATED / usable))
    if (more := round(usable * share / 100)) > 1.2 * test:
        words += f" A test share of {share} % would be {more:,} rows and find {found_with(more):.2f}."
    return words


def found_with(rows: int) -> float:
    """The difference that rows find four times in five: (z_0.975 + z_0.8) · SPREAD / √rows."""
    return (quantile(0.05, math.inf) + quantile(2 * (1 - POWER), math.inf)) * SPREAD / math.sqrt(max(1, rows))


def project_of_upload(studio: Studio, uploads: UploadStore, upload_id: str, name: str, reading: Reading) -> Project:
    """Make a project of an upload and delete the upload. Raises InputError for rows that are no task."""
    with uploads.alone(upload_id):
        if obstacle := examined(uploads.table(upload_id), reading.columns, reading.split).obstacle:
            raise InputError(obstacle)
        upload = uploads.get(upload_id)
        content = upload.path.read_bytes()
        project = studio.create_project(name, content, upload.filename, reading, uploads.caps)
        uploads.drop(upload_id)
    return project


def upload_again(studio: Studio, uploads: UploadStore, project_id: str) -> Upload:
    """A project's file as a new upload, to be read in another way: the project itself never changes."""
    project, content = studio.project(project_id), studio.content(project_id)
    upload = uploads.new(project.filename, len(content))
    with uploads.receiving(upload.id) as write:
        write(content)
    return upload
