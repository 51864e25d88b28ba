"""pass@k: what are several answers to a question worth, and does the temperature matter for that?

Written before the runs. No claim of a paper is on trial: the chapter on evaluation needs answers that a model drew
itself, to a task whose answers can be executed. LoRA of rank 16 learns the SQL task as in the study `sql`, with its
budget, its chosen rate and its three seeds; each adapter then draws SAMPLES answers to each of the first QUESTIONS test
questions, at two temperatures and without a cut of the tail, and every query is executed. No test table is seen in
training. From the counts of right answers follow pass@k for every k up to SAMPLES, the plug-in that is too low, and how
many answers differ.

Before this the same was planned for the small Llama. Its pilot, seed 99, answered 2 of 640 right, of 40 questions at a
temperature of 0.3, and so the model was changed. Of this one the greedy answers were known: about three in ten are
right (`sql`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.evidence import stats
from peftbook.evidence.comparison import keys_of, table
from peftbook.scratch.pass_at_k import pass_at_k, plug_in, reliability
from peftbook.studies import Quantity, Verdict, by_seed, study
from peftbook.studies.sql import COMPARISON
from peftbook.studies.standard import probe_of, training
from peftbook.tasks import test_groups

SEEDS = (1, 2, 3)
SAMPLES = 16
QUESTIONS = 32
TEMPERATURES = {"cold": 0.3, "hot": 1.0}
TRIES = (1, 4, SAMPLES)  # the k that are named in the text
RATE = 8e-4  # that `sql` chose for LoRA
ESTIMATES = {"pass": pass_at_k, "plug_in": plug_in, "all_right": reliability}


def probe(seed: int) -> specs.Probe:
    """One adapter and its answers at both temperatures."""
    most = COMPARISON.max_new_tokens
    run = training("sql", COMPARISON.arm("lora").method, COMPARISON.tokens, RATE, seed, n_loss=1, max_new_tokens=most)
    asked = {"samples": SAMPLES, "split": "test", "first": 0, "questions": QUESTIONS}
    return probe_of("sampling.right_answers", run, temperatures=tuple(TEMPERATURES.values()), **asked)


records_of = by_seed(probe, SEEDS)


def of_questions(records: Sequence[Record], estimate: str, name: str, k: int) -> np.ndarray:
    """An estimate for each seed and question at a temperature, (seeds, questions)."""
    counts = table(records, f"right_{TEMPERATURES[name]:g}").astype(int)
    return np.array([ESTIMATES[estimate](SAMPLES, row, k) for row in counts])


def quantities(store: Store) -> Mapping[str, Quantity]:
    """pass@k and its kin at each temperature, what the plug-in misses, and how the temperatures differ."""
    records = records_of(store)
    keys, groups = keys_of(records), test_groups("sql", QUESTIONS)
    out: dict[str, Quantity] = {
        "samples": Quantity(SAMPLES, "answers", keys, digits=0),
        "questions": Quantity(QUESTIONS, "questions", keys, digits=0),
    }

    def keep(name: str, interval: stats.Interval, among: tuple[float, float] = (-1.0, 1.0)) -> None:
        out[name] = Quantity.of(interval, "", keys, among=among)

    for k in TRIES:
        found = {name: {one: of_questions(records, one, name, k) for one in ESTIMATES} for name in TEMPERATURES}
        for name, values in found.items():
            for estimate, one in values.items():
                keep(f"{name}_{estimate}_{k}", stats.score_interval(one, groups=groups), (0.0, 1.0))
            keep(f"{name}_missed_{k}", stats.paired_interval(values["plug_in"], values["pass"], groups=groups))
        hot, cold = (found[name]["pass"] for name in ("hot", "cold"))
        keep(f"hot_minus_cold_{k}", stats.paired_interval(hot, cold, groups=groups))
    for name, temperature in TEMPERATURES.items():
        texts = stats.score_interval(table(records, f"different_{temperature:g}"), groups=groups)
        out[f"{name}_different"] = Quantity.of(texts, "texts", keys, digits=1)
    return out


@study("tries", lambda store: [probe(seed) for seed in SEEDS], quantities)
def verdict(store: Store) -> Verdict:
    """No claim of a paper: the study measures what several answers are worth."""
    found = quantities(store)
    said = "; ".join(
        f"at temperature {temperature:g} pass@1 is {found[f'{name}_pass_1'].value:.3f} and pass@{SAMPLES} "
        f"{found[f'{name}_pass_{SAMPLES}'].value:.3f}"
        for name, temperature in TEMPERATURES.items()
    )
    return Verdict("measured", f"{said[0].upper()}{said[1:]}.", (f"hot_minus_cold_{SAMPLES}", "hot_minus_cold_1"))
