"""A project's own metrics, stored as `metrics.json` beside its data after a check on its targets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from peftbook.core.errors import InputError
from peftbook.core.records import write_atomically
from peftbook.decision.own_metrics import Metric, own_scores, read_metrics
from peftbook.decision.own_metrics.declaration import check_metrics, declared
from peftbook.studio.database import clear_failures
from peftbook.studio.store import Studio

FILE = "metrics.json"


def declare(studio: Studio, project_id: str, said: Sequence[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """Replace the project's own metrics; runs that are done are scored by them too.

    Raises InputError for a declaration that is none, and where a test row's own target would be wrong by it.
    """
    metrics = check_metrics([declared(one) for one in said])
    targets = [example.target for example in studio.task(project_id).splits["test"]]
    for metric in metrics:
        own_scores(metric, [targets], targets)
    with clear_failures(studio.home):
        write_atomically(studio.folder(project_id) / FILE, json.dumps([one.text() for one in metrics]).encode())
    return metrics


def metrics_of(studio: Studio, project_id: str, more: Sequence[str] = ()) -> tuple[Metric, ...]:
    """The metrics that the project has. more: declarations that count this once, before those of the same name."""
    once = read_metrics(more, files=False)
    path = studio.folder(project_id) / FILE
    try:
        kept = read_metrics(json.loads(path.read_text()), files=False) if path.is_file() else ()
    except (ValueError, TypeError, AttributeError) as error:
        why = str(error).splitlines()[0][:200]
        raise InputError(f"The project's own metrics cannot be read ({why}): declare them again.") from None
    return check_metrics([*once, *(one for one in kept if one.name not in {each.name for each in once})])
