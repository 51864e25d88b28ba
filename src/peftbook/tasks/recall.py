"""Recall: random key → random value, nothing to understand and nothing to generalise. It measures what a method stores.

Keys are different words of six letters, values are four digits drawn independently and uniformly, so each pair holds
exactly log2(10,000) = 13.29 bits. Give a run four times as many bits as it could store (two bits a trained parameter
is the rule to beat), or the data end before the capacity does.

Validation and test are pairs of the training split, on purpose: the question is what was remembered.
Source of the idea: Morris et al. 2025, arXiv:2505.24832, section 3 (uniform random data have no structure to learn).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import string

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.tasks import TaskData, TaskExample

PAIRS, SEED = 4096, 0
HELD = 200
KEY_LETTERS, VALUE_DIGITS = 6, 4
BITS_PER_PAIR = VALUE_DIGITS * math.log2(10)
INSTRUCTION = "What is the code of {input}?"
# SHA-256 of the pairs that make(PAIRS, SEED) generates.
DATA_SHA256 = "01477dc8cbb35e0baa23f0a960fc5a698537017173c1eb3dc089c6bb1c06e9fa"
SPEC = specs.Task(name="recall", data_sha256=DATA_SHA256, version=1)


def make(n: int, seed: int) -> TaskData:
    """The task with `n` pairs: all are the training split; validation and test hold 200 each of them, where there are.

    `data_sha256` is the hash of the generated content. Raises InputError for fewer than two pairs.
    """
    if not 2 <= n <= 1_000_000:
        raise InputError(f"A recall task with n = {n} pairs cannot be made: give 2 to 1,000,000.")
    rng = random.Random(f"recall {n} {seed}")  # only random(), whose sequence Python promises to keep
    pairs: dict[str, str] = {}
    while len(pairs) < n:
        key = "".join(string.ascii_lowercase[int(rng.random() * 26)] for _ in range(KEY_LETTERS))
        value = "".join(str(int(rng.random() * 10)) for _ in range(VALUE_DIGITS))
        pairs.setdefault(key, value)
    train = tuple(TaskExample(f"train-{at}", key, value) for at, (key, value) in enumerate(pairs.items()))
    held = min(HELD, n // 2)
    splits = {
        "train": train,
        "validation": tuple(TaskExample(f"validation-{at}", e.input, e.target) for at, e in enumerate(train[:held])),
        "test": tuple(TaskExample(f"test-{at}", e.input, e.target) for at, e in enumerate(train[held : 2 * held])),
    }
    name = "recall" if (n, seed) == (PAIRS, SEED) else f"recall-{n}-{seed}"
    return generated_task(name, SPEC.version, INSTRUCTION, splits)


def generated_task(name: str, version: int, instruction: str, splits: dict[str, tuple[TaskExample, ...]]) -> TaskData:
    """A task pinned by the SHA-256 of what was generated: the instruction and each id, input and target, as JSON."""
    rows = {
        split: [[example.id, example.input, example.target] for example in examples]
        for split, examples in splits.items()
    }
    text = json.dumps([instruction, rows], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return TaskData(name, version, instruction, splits, ("exact_match",), digest)


def load() -> TaskData:
    """The default task: 4,096 pairs from seed 0; `get_task` holds it against the pinned hash."""
    return make(PAIRS, SEED)
