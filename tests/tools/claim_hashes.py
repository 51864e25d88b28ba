"""The lines of the ledger's table `[claims]` that are not what the studies claim now, as they should be.

python tests/tools/claim_hashes.py           print them
python tests/tools/claim_hashes.py --write   put them into ledger.toml; amendments are yours to write
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime

from peftbook.evidence import ledger
from peftbook.records import SHIPPED, Store
from peftbook.studies import NAMES, get_study


def lines() -> dict[str, str]:
    """Study → its line, for those whose hash is another than the ledger's."""
    store, known, today = Store(SHIPPED), ledger.wordings(), datetime.now(UTC).date()
    out = {}
    for name in NAMES:
        study = get_study(name)
        current = ledger.claim_hash(study)
        if name not in known or known[name].hash != current:
            records = len(study.records(store))
            out[name] = f'{name} = {{hash = "{current}", date = "{today}", records = {records}}}'
    return out


def write(changed: dict[str, str]) -> None:
    """Replace the lines of these studies in the table; those of new ones go to its end."""
    head, mark, table = ledger.PATH.read_text(encoding="utf-8").partition("[claims]\n")
    for name, line in changed.items():
        table, found = re.subn(rf"^{name} = .*$", line, table, flags=re.MULTILINE)
        table += "" if found else f"{line}\n"
    ledger.PATH.write_text(head + mark + table, encoding="utf-8")


if __name__ == "__main__":
    changed = lines()
    if sys.argv[1:] == ["--write"]:
        write(changed)
    print("\n".join(changed.values()) or f"{len(NAMES)} claims: none changed")
