"""Every key, quantity and verdict of the shipped records, or what differs from those of another time.

python tests/audit/what_changed.py now.json               write them
python tests/audit/what_changed.py now.json before.json   write them, and print what changed, name by name
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from peftbook.records import SHIPPED, Store
from peftbook.results import study_quantities, study_verdict
from peftbook.studies import NAMES


def numbers() -> dict[str, object]:
    """A value by name: `key …`, the key that a record's spec has; `quantity …`; `verdict …`."""
    store = Store(SHIPPED)
    keys = {f"key {record.key}": record.spec.key for record in store.all()}
    quantities = {
        f"quantity {study}.{name}": asdict(quantity)
        for study in NAMES
        for name, quantity in study_quantities(study, store).items()
    }
    verdicts = {f"verdict {study}": asdict(study_verdict(study, store)) for study in NAMES}
    return {**keys, **quantities, **verdicts}


def differences(before: dict[str, object], now: dict[str, object]) -> list[str]:
    """A line for each name whose value is another, is new or is gone; of a quantity or verdict the fields that are."""
    lines = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            fields = [field for field in old.keys() | new.keys() if old.get(field) != new.get(field)]
            lines += [f"{name} {field}: {old.get(field)!r} -> {new.get(field)!r}" for field in sorted(fields)]
        else:
            lines.append(f"{name}: {old!r} -> {new!r}")
    return lines


if __name__ == "__main__":
    found = json.loads(json.dumps(numbers()))
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1))
    if len(sys.argv) > 2:
        changed = differences(json.loads(Path(sys.argv[2]).read_text()), found)
        print("\n".join(changed) or f"{len(found)} keys, quantities and verdicts: none changed")
