"""E2E NLG: facts about a restaurant → one or two sentences, the benchmark of the LoRA paper's Table 3.

The data is CC BY-SA 4.0 and not part of the project. Put `valid.txt` and `test.txt`, as the LoRA paper's code ships
them (examples/NLG/data/e2e), into a folder and name it in `PEFTBOOK_E2E`. Their hashes are pinned in `hub.py`.

Train on 90 % of the development inputs, choose on the other 10 %, test on the official test inputs with all their
references. Source: Novikova, Dušek and Rieser 2017, arXiv:1706.09254; Hu et al. 2021, arXiv:2106.09685, section 5.4.
"""

from __future__ import annotations

import dataclasses
import os

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.tasks import TaskData
from peftbook.tasks.hub import load_hub

SPEC = specs.Task(name="e2e", data_sha256="e5ffa9e52c53e5c6babb0ef44f70b6eb5f3266ba4fd5f69fb5572c5a22fff251", version=1)


def load() -> TaskData:
    """The task. Raises InputError if PEFTBOOK_E2E names no folder with the two pinned files."""
    folder = os.environ.get("PEFTBOOK_E2E", "")
    if not folder:
        raise InputError(
            "The E2E data is not part of the project: set PEFTBOOK_E2E to a folder with valid.txt and test.txt "
            "from examples/NLG/data/e2e of the LoRA paper's code."
        )
    return dataclasses.replace(load_hub("e2e", path=folder), name="e2e", metrics=("rouge", "bleu"))
