"""A thousand hostile files: each gives a table with its faults, or one sentence; soon, and nothing else."""

from __future__ import annotations

import resource
import time
from collections import Counter

import pytest
from hostile_files import CLASSES, bomb, hostile

from peftbook.core.errors import InputError
from peftbook.tasks.columns import guess_columns
from peftbook.tasks.files import examine, task_from_table
from peftbook.tasks.table import TextTable, read_table

COUNT = 1000
SECONDS_EACH = 10.0  # on a slow machine that does other things too; most take milliseconds
GROWTH_BYTES = 1 << 30


def check_table(table: TextTable) -> None:
    """A table that is whole: cells of plain text, as many as columns, and every fault a sentence with a row."""
    assert table.columns and len(set(table.columns)) == len(table.columns) and all(table.columns)
    assert len(table.numbers) == len(table.rows) and list(table.numbers) == sorted(set(table.numbers))
    for row in table.rows:
        assert len(row) == len(table.columns)
        for cell in row:
            cell.encode()
            assert len(cell) <= 100_000
    for fault in table.faults:
        assert fault.row >= 1 and fault.problem and "\n" not in fault.problem and len(fault.problem) < 1000
        assert fault.row not in table.numbers


@pytest.mark.slow
def test_a_thousand_hostile_files_give_a_thousand_clear_answers():
    """A table, or one sentence that names the file and the fix; in seconds, without a gigabyte, never anything else."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outcomes: Counter[str] = Counter()
    slowest, bombs = (0.0, -1), set[bytes]()
    for seed in range(COUNT):
        kind, name, content = hostile(seed)
        if content in bombs:  # the same bytes, which take a second
            continue
        bombs |= {content} if kind == "parquet_bomb" else set()
        began = time.process_time()
        try:
            table = read_table(content, name)
            check_table(table)
            outcomes[f"{kind}: table"] += 1
            columns, _ = guess_columns(table)
            if not examine(table, columns).obstacle:
                task_from_table(table, columns)
        except InputError as error:
            sentence = str(error)
            assert "\n" not in sentence and sentence.endswith(".") and ":" in sentence, (seed, kind, sentence)
            assert 20 < len(sentence) < 1500, (seed, kind, sentence)
            outcomes[f"{kind}: refused"] += 1
        except BaseException as error:
            raise AssertionError(f"seed {seed} ({kind}, {name[:20]!r}) raised {error!r}") from error
        slowest = max(slowest, (time.process_time() - began, seed))
    assert slowest[0] < SECONDS_EACH, f"seed {slowest[1]} took {slowest[0]:.1f} s"
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert grown < GROWTH_BYTES, f"memory grew by {grown / 2**20:.0f} MiB"
    seen = {name.split(":")[0] for name in outcomes}
    assert seen == {kind.__name__ for kind in CLASSES}, "a class was never drawn"
    assert bomb.cache_info().currsize == 3, "a bomb was never drawn"
    assert all(f"{kind}: table" not in outcomes for kind in ("archive", "parquet_bomb"))


@pytest.mark.parametrize("unit", ['x","\n', '"\n', "a,b\n", "\n", " \n", "[],", '{"a":1}\n', '"a""\n', ",\n"])
def test_a_large_file_of_one_pattern_takes_seconds(unit):
    """No pattern of quotes or lines makes the reader go over the file again and again."""
    content = b"q,a\n" + unit.encode() * (1_000_000 // len(unit))
    began = time.process_time()
    try:
        check_table(read_table(content))
    except InputError as error:
        assert str(error).endswith(".")
    assert time.process_time() - began < 4
