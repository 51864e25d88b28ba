"""pass@k: what are several answers to a question worth, and does the temperature matter for that?

Written before the runs. No claim of a paper is on trial: the chapter on evaluation needs answers that a model drew
itself, to a task whose answers can be executed. LoRA of rank 16 learns the SQL task on the small Llama with three
seeds, from the first TRAINED training rows; each adapter then draws SAMPLES answers to each of the QUESTIONS rows that
follow, at two temperatures and without a cut of the tail, and every query is executed. The questions are new and the
nine tables are not: of a table that it has not seen this model cannot copy the names. From the counts of right answers
follow pass@k for every k up to SAMPLES, the plug-in that is too low, and how many answers differ.

Of a pilot, seed 99 and the same rate and tokens, single answers at a temperature of 0.2 to questions about a table of
the validation split were looked at: well-formed queries that name a table of the training rows. Hence the questions
about known tables. Right answers were not counted before this was written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from peftbook import specs
from peftbook.evidence import stats
from peftbook.evidence.comparison import keys_of, table
from peftbook.methods.lora import LoRA
from peftbook.records import Record, Store
from peftbook.scratch.pass_at_k import pass_at_k, plug_in, reliability
from peftbook.studies import Quantity, Verdict, study
from peftbook.tasks import get_task, task_spec

__all__ = ["QUESTIONS", "SAMPLES", "TEMPERATURES", "TRIES", "of_questions", "probe", "records_of"]

SEEDS = (1, 2, 3)
SAMPLES = 16
TRAINED, QUESTIONS = 1_600, 60  # training rows, and the rows after them that are asked
TEMPERATURES = {"cold": 0.3, "hot": 1.0}
TRIES = (1, 4, SAMPLES)  # the k that are named in the text
TOKENS, RATE = 96_000, 4e-3
ESTIMATES = {"pass": pass_at_k, "plug_in": plug_in, "all_right": reliability}


def probe(seed: int) -> specs.Probe:
    """One adapter and its answers at both temperatures."""
    run = specs.Run(
        model=specs.Model(name=specs.SMALL_MODEL, revision=specs.SMALL_REVISION),
        task=task_spec("sql"),
        method=LoRA(),
        budget=specs.Budget(tokens=TOKENS, learning_rate=RATE, train_examples=TRAINED),
        evaluation=specs.Evaluation(split="validation", n_loss=1, max_new_tokens=60),
        seed=seed,
        dtype="fp32",
    )
    settings = {
        "samples": SAMPLES,
        "temperatures": tuple(TEMPERATURES.values()),
        "split": "train",
        "first": TRAINED,
        "questions": QUESTIONS,
    }
    return specs.Probe(measure="sampling.right_answers", settings=settings, runs=(run,), model=run.model, seed=seed)


def records_of(store: Store) -> list[Record]:
    """The records of all seeds. Raises Missing."""
    return store.need_all(probe(seed) for seed in SEEDS)


def of_questions(records: Sequence[Record], estimate: str, name: str, k: int) -> np.ndarray:
    """An estimate for each seed and question at a temperature, (seeds, questions)."""
    counts = table(records, f"right_{TEMPERATURES[name]:g}").astype(int)
    return np.array([ESTIMATES[estimate](SAMPLES, row, k) for row in counts])


def tables() -> tuple[str, ...]:
    """The table of each question, which questions share."""
    return tuple(example.group for example in get_task("sql").splits["train"][TRAINED : TRAINED + QUESTIONS])


def quantities(store: Store) -> Mapping[str, Quantity]:
    """pass@k and its kin at each temperature, what the plug-in misses, and how the temperatures differ."""
    records = records_of(store)
    keys, groups = keys_of(records), tables()
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
