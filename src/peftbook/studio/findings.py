"""Findings: what was found in an upload, in words, and the upload as a project; page and API say and do the same."""

from __future__ import annotations

import functools

from peftbook.errors import InputError
from peftbook.options import Bound
from peftbook.studio.drafts import Drafts
from peftbook.studio.store import Project, Studio
from peftbook.tasks.columns import Columns
from peftbook.tasks.files import Findings, Split, examine
from peftbook.tasks.table import Table

__all__ = ["examined", "notes_of", "project_of_draft", "split_of"]

SPLIT_BOUNDS = (
    Bound("A validation share of {} % is chosen", 1, 49, whole=False),
    Bound("A test share of {} % is chosen", 1, 49, whole=False),
    Bound("A split seed of {} is chosen", 0, 2**32 - 1),
)


def split_of(validation: float, test: float, seed: float) -> Split:
    """A split from two shares in per cent and a seed. Raises InputError for what is out of bounds."""
    for bound, value in zip(SPLIT_BOUNDS, (validation, test, seed), strict=True):
        bound.check(value)
    parts = [float(share) / 100 for share in (validation, test)]
    return Split(int(seed), (1 - sum(parts), parts[0], parts[1]))


@functools.lru_cache(8)
def examined(found: Table, columns: Columns, split: Split) -> Findings:
    """`examine`, remembered."""
    return examine(found, columns, split)


def notes_of(seen: Findings) -> list[tuple[str, str]]:
    """Repetition, conflict and leakage in words, each with its kind: info, good or warn."""
    if not seen.splits:
        return []
    compared, test = seen.compared, seen.splits["test"]
    leaks = (
        f"Leakage: {{:,}} of {compared:,} test inputs are nearly those of a training row, so scores will flatter every "
        "method. Choose a group column, or remove near copies."
    )
    conflicts = "{:,} rows have an input that occurs with another target too: no model can answer both rightly."
    shared = f"{{:,}} of {test:,} test targets also occur in training: right for labels, a shortcut for free text."
    said = [
        (seen.duplicates, "{:,} rows repeat another's input and target; they always share a split.", "warn"),
        (seen.conflicting, conflicts, "warn"),
        (seen.near_duplicates, leaks, "warn"),
        (compared if not seen.near_duplicates else 0,
         "No leakage found: none of {:,} test inputs nearly repeats a training row.", "good"),
        (seen.shared_targets, shared, "info"),
    ]  # fmt: skip
    words = [(sentence.format(count), kind) for count, sentence, kind in said if count]
    if test < 50:
        words.append((f"With {test:,} test rows only large differences will show: intervals will be wide.", "info"))
    return words


def project_of_draft(
    studio: Studio, drafts: Drafts, draft_id: str, name: str, columns: Columns, split: Split, instruction: str
) -> Project:
    """Keep an upload as a project, and forget it as an upload. Raises InputError for what is no task."""
    if obstacle := examined(drafts.table(draft_id), columns, split).obstacle:
        raise InputError(obstacle)
    draft = drafts.get(draft_id)
    content = draft.path.read_bytes()
    project = studio.create_project(name, content, draft.filename, columns, split, instruction, drafts.caps)
    drafts.drop(draft_id)
    return project
