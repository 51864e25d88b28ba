"""Contact: a short message → whether it leaves a phone number, an e-mail address, or neither. The task of the page.

tests/tools/contact_build.py puts the rows together; no wording is in two splits, so a test message is worded as no
training message is. The formats of numbers and addresses are the same in all of them.
"""

from __future__ import annotations

import csv

from peftbook.core import specs
from peftbook.core.folders import DATA
from peftbook.tasks import TaskData, TaskExample, check_pinned, task_of

PATH = DATA / "contact.csv"
DATA_SHA256 = "19119edb68cb30b3c6fc1ee6f4a8c0c51157e81ae227f5ab83a465e886080e13"
SPEC = specs.Task(name="contact", data_sha256=DATA_SHA256, version=1)


def load() -> TaskData:
    """The task, its splits in the file's order. Raises InputError if the data file is missing or not the pinned one."""
    check_pinned(PATH, DATA_SHA256, "restore it from the repository, or install peftbook again")
    with PATH.open(encoding="utf-8", newline="") as file:
        rows = [
            (row["split"], TaskExample(f"{number:03}", row["message"], row["contact"], group=row["wording"]))
            for number, row in enumerate(csv.DictReader(file))
        ]
    return task_of(SPEC, "{input}", ("exact_match",), rows)
