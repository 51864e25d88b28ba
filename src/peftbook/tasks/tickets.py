"""Tickets: a message to an invented shop → the team that it is for. The 300 rows of the demonstration.

tests/tools/tickets_build.py puts them together; no customer and no message is in two splits.
"""

from __future__ import annotations

from peftbook.core import specs
from peftbook.core.folders import DATA
from peftbook.tasks import TaskData, check_pinned
from peftbook.tasks.columns import Columns
from peftbook.tasks.files import read_file, split_examples, usable_rows

PATH = DATA / "tickets.csv"
COLUMNS = Columns("message", "team", group="customer")
SHARES = (0.6, 0.2, 0.2)
DATA_SHA256 = "8bd6e2a8a66a049cfeb29e62b4b63986e12137d40e5c27a2d2214bf9c180120c"
SPEC = specs.Task(name="tickets", data_sha256=DATA_SHA256, version=1)


def load() -> TaskData:
    """The task. Raises InputError if the data file is missing or not the pinned one."""
    check_pinned(PATH, DATA_SHA256, "restore it from the repository, or install peftbook again")
    examples, _ = usable_rows(read_file(PATH)[1], COLUMNS)
    splits = split_examples(examples, fractions=SHARES)
    return TaskData(SPEC.name, SPEC.version, "{input}", splits, ("exact_match",), SPEC.data_sha256)
