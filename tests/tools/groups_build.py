"""Write data/groups.json: what the examples of each task share whose data takes an extra to read.

    python tests/tools/groups_build.py

The letters of E2E, whose data is not part of the project, stay as they are.
"""

from __future__ import annotations

import json

from peftbook.core.records import write_atomically
from peftbook.tasks import GROUPS, get_task

READ_BY_PYARROW = ("docstrings", "spam", "sql")


def groups_in_data(name: str) -> dict[str, list[str]]:
    """Split → the group of each example, as the task's data has it."""
    splits = get_task(name).splits
    return {split: [example.group for example in splits[split]] for split in ("validation", "test")}


if __name__ == "__main__":
    known = json.loads(GROUPS.read_text()) if GROUPS.exists() else {}
    known |= {name: groups_in_data(name) for name in READ_BY_PYARROW}
    write_atomically(GROUPS, (json.dumps(known, sort_keys=True) + "\n").encode())
