"""Sort: a short list of numbers → the same numbers in descending order. Every answer is certain and has one form.

Petrov, Torr and Bibi use descending order as a task that needs other attention than ascending order (arXiv:2310.19698).
No set of numbers is in two splits, in any order.
"""

from __future__ import annotations

import random

from peftbook.core import specs
from peftbook.tasks import TaskData, TaskExample
from peftbook.tasks.recall import generated_task

SIZES = {"train": 2000, "validation": 200, "test": 300}
LENGTHS = (3, 4, 5, 6)
SMALLEST, LARGEST = 10, 99  # all of two digits, so that no number has a shorter name than another
INSTRUCTION = "Sort these numbers in descending order.\n\n{input}"
# SHA-256 of what make(0) generates.
DATA_SHA256 = "244fed067f96a6c82e45559ce5edc07c567037e5a4c9568657e40c45586addc0"
SPEC = specs.Task(name="sort", data_sha256=DATA_SHA256, version=1)


def make(seed: int) -> TaskData:
    """The task from a seed: lists of three to six different numbers from 10 to 99, equally many of each length."""
    rng = random.Random(f"sort {seed}")  # only random(), whose sequence Python promises to keep
    seen: set[frozenset[int]] = set()
    splits: dict[str, tuple[TaskExample, ...]] = {}
    for split, size in SIZES.items():
        examples: list[TaskExample] = []
        while len(examples) < size:
            length = LENGTHS[len(examples) % len(LENGTHS)]
            numbers = [SMALLEST + int(rng.random() * (LARGEST - SMALLEST + 1)) for _ in range(length)]
            if len(set(numbers)) == length and frozenset(numbers) not in seen:
                seen.add(frozenset(numbers))
                question, answer = (" ".join(map(str, each)) for each in (numbers, sorted(numbers, reverse=True)))
                examples.append(TaskExample(f"{split}-{len(examples)}", question, answer))
        splits[split] = tuple(examples)
    return generated_task("sort" if seed == 0 else f"sort-{seed}", SPEC.version, INSTRUCTION, splits)


def load() -> TaskData:
    """The default task, from seed 0; `get_task` holds it against the pinned hash."""
    return make(0)
