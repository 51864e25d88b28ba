"""Everything that a refactoring must not move, as one JSON file, and what differs between two of them.

    python tests/tools/baseline.py write before.json
    python tests/tools/baseline.py compare before.json after.json

Written: the key of every record; of every study its runs in order, its quantities with the keys of the runs behind
each, and its verdict; the runs behind each figure; the data of every chart of the deck; the description of the studio's
API; and the answers of `fit` to questions drawn with a fixed seed. `compare` prints a line for each value that differs,
and exits with 1 if there is one.
"""

from __future__ import annotations

import dataclasses
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftbook import studies
from peftbook.core.errors import InputError
from peftbook.core.records import Store, default_store
from peftbook.memory import SHAPES
from peftbook.memory.question import Question, answer_fields
from peftbook.studies import Study
from peftbook.studio.api import build_api
from peftbook.studio.api.context import Context
from peftbook.studio.store import Studio
from peftbook.studio.uploads import UploadStore
from peftbook.tasks.rows import Caps
from peftbook.views import figures
from peftbook.views.slides.charts import CHARTS, named_chart

QUESTIONS = 300
DRAWN = {
    "method": ("full", "lora", "qlora", "dora", "lora_fa", "prompt", "prefix", "ia3"),
    "memory": ("8GiB", "16GiB", "24GiB", "40GiB", "80GiB"),
    "stack": ("peft", "trainer", "trl", "trl0", "peftbook", "litgpt", "torchtune", "axolotl", "unsloth"),
    "batch": (None, 1, 4, 16),
    "seq": (None, 64, 512, 2048),
    "rank": (None, 1, 8, 64),
    "quant": ("", "nf4", "int8"),
    "dtype": (None, "bf16", "fp32"),
    "checkpointing": (None, True, False),
    "padding": (None, True, False),
    "device": ("cuda", "cpu"),
    "devices": (1, 2),
}


def baseline() -> dict[str, Any]:
    """All of it, of the records at hand."""
    store = default_store()
    return {
        "records": [record.key for record in store.all()],
        "studies": {name: of_study(studies.get_study(name), store) for name in studies.NAMES},
        "figures": {name: figures.runs(name, store) for name in figures.FIGURES},
        "charts": {name: dataclasses.asdict(named_chart(name, store)) for name in sorted(CHARTS)},
        "api": api(),
        "fit": fits(),
    }


def of_study(study: Study, store: Store) -> dict[str, Any]:
    """One study, computed from the records and taken from no cache."""
    quantities = study.quantities(store)
    return {
        "runs": [store.spec(run).key for run in study.runs(store)],
        "quantities": {name: dataclasses.asdict(quantities[name]) for name in quantities},
        "verdict": dataclasses.asdict(study.verdict(store)),
    }


def api() -> dict[str, Any]:
    """The description of the studio's API."""
    with tempfile.TemporaryDirectory() as home:
        return build_api(Context(Studio(Path(home)), UploadStore(Path(home), Caps()))).openapi()


def fits() -> dict[str, Any]:
    """Drawn questions of `fit`, each with its answer, or with the sentence that refuses it."""
    shapes, draw, answers = sorted(SHAPES), random.Random(0), {}
    for _ in range(QUESTIONS):
        asked: dict[str, Any] = {"model": draw.choice(shapes)}
        asked |= {name: draw.choice(values) for name, values in DRAWN.items()}
        try:
            answer: Any = answer_fields(Question(**asked))
        except InputError as error:
            answer = str(error)
        answers[json.dumps(asked)] = answer
    return answers


def differences(before: Any, after: Any, where: str = "") -> Iterator[str]:
    """A line for each value that is not the same on both sides."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            place = f"{where}/{name}"
            if name not in after:
                yield f"{place}: gone"
            elif name not in before:
                yield f"{place}: new"
            else:
                yield from differences(before[name], after[name], place)
        if [name for name in before if name in after] != [name for name in after if name in before]:
            yield f"{where}: in another order"
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for place, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{where}/{place}")
    elif before != after:
        yield f"{where}: {str(before)[:120]} -> {str(after)[:120]}"


def main(words: list[str]) -> int:
    """Write a baseline, or compare two."""
    match words:
        case ["write", out]:
            text = json.dumps(baseline(), indent=1, ensure_ascii=False)
            Path(out).write_text(text + "\n", encoding="utf-8")
            return 0
        case ["compare", before, after]:
            pair = [json.loads(Path(path).read_text(encoding="utf-8")) for path in (before, after)]
            lines = list(differences(*pair))
            print("\n".join(lines) or "equal")
            return int(bool(lines))
    print((__doc__ or "").strip(), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
