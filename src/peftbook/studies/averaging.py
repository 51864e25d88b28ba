"""Does the average of several task adapters keep what each of them had gained?

Written before the runs. On the small Llama: four tasks that differ (which team a message is for, numbers sorted in
descending order, a docstring for a function, a sentence about a restaurant), and for each of them LoRA of rank 16 at
the rate of its own sweep. With five fresh seeds the four adapters are trained, each with a seed of its own, so that no
two share a start of A, as adapters from different hands. Those of each pair and of all four are combined, and every
task is scored on test rows.

On trial is the average of the updates, Σ γB_iA_i / k, which is the mean of the k merged models. Shown beside it and not
on trial: the factors averaged instead, as peft's `linear` does it and as plain means of A and of B; and the sum, TIES
and DARE, each times the one of five scales that keeps most of the gains on validation rows; and what an average of two
would keep if losses were parabolas.

Kept share: of the gain in loss that a task's own adapter has over the untuned model, what the combined one has. All
sixteen shares are judged, and none is chosen for being the worst.

Tasks, budgets, rates to start from and the range of scales were chosen with runs of seed 99: the gains of single
adapters, and of one pair, tickets and sorting at one rate, what each scale keeps on validation rows. So it was known of
that pair that its average keeps about nine tenths of one gain and three quarters of the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Missing, Record, Store
from peftbook.core.tracking import untracked
from peftbook.evidence import resampling, stats
from peftbook.evidence.comparison import keys_of, table
from peftbook.evidence.planning import judge_claim
from peftbook.evidence.sweep import trials
from peftbook.methods.lora import LoRA
from peftbook.studies import BLIND, Quantity, Verdict, available, margins, merging, study
from peftbook.studies.tuned_comparison import Arm, TunedComparison
from peftbook.tasks import test_groups

SEEDS = (1, 2, 3, 4, 5)
ROWS = 60  # test rows of each task
CHOOSING = 20  # validation rows of each task, by which a scale is chosen
LEAST = 0.9  # of the gain
MARGIN = margins.SHARE
FLOOR = 0.1  # nats per token that a task's own adapter surely gains
DENSITY, DROP = 0.2, 0.9  # of TIES, of DARE
SCALES = {
    "sum": (0.25, 0.35, 0.5, 0.7, 1.0),
    "ties": (0.5, 0.7, 1.0, 1.4, 2.0),
    "dare": (0.25, 0.35, 0.5, 0.7, 1.0),
}
WAYS = ("average", "factors", "factor_mean", "sum", "ties", "dare")
LABELS = {"tickets": "tickets", "sort": "sorting", "docstrings": "docstrings", "e2e": "E2E"}
TASKS = tuple(LABELS)
TOKENS = {"tickets": 10_000, "sort": 14_000, "docstrings": 28_000, "e2e": 24_000}
ARM = Arm("lora", "LoRA", LoRA(), (1e-3, 2e-3, 4e-3))
SWEEPS = {
    task: TunedComparison(
        task=task, tokens=TOKENS[task], arms=(ARM,), model=specs.SMALL_LLAMA, sweep_examples=40, test_examples=ROWS
    )
    for task in TASKS
}


class MergeCase(NamedTuple):
    """One task, and the tasks whose adapters are combined."""

    subset: tuple[str, ...]
    task: str

    @property
    def name(self) -> str:
        """As the quantities have it: the subset, `four` for all, and the task."""
        return f"{name_of(self.subset)}_{self.task}"


def name_of(subset: tuple[str, ...]) -> str:
    """A pair by its tasks, all as `four`."""
    return "four" if subset == TASKS else "_".join(subset)


PAIRS = tuple((one, two) for at, one in enumerate(TASKS) for two in TASKS[at + 1 :])
CELLS = tuple(MergeCase(subset, task) for subset in (*PAIRS, TASKS) for task in subset)
LEVEL = 0.05 / len(CELLS)
COUNTS = {"two": 2, "four": len(TASKS)}


def cells_of(count: int) -> list[MergeCase]:
    """The cells in which so many adapters are combined."""
    return [cell for cell in CELLS if len(cell.subset) == count]


def probe(seed: int, store: Store) -> specs.Probe:
    """The adapters of a seed, trained and combined. Raises Missing until every task's rate is chosen."""
    with untracked():
        rates = {task: sweep.tuning(ARM).best(store.get) for task, sweep in SWEEPS.items()}
    trained = tuple(SWEEPS[task].final_run(ARM, rates[task], 10 * seed + at) for at, task in enumerate(TASKS))
    return specs.Probe(
        measure="combining.kept_gains",
        settings={
            "validation_examples": CHOOSING,
            "density": DENSITY,
            "drop": DROP,
            **{f"{way}_scales": scales for way, scales in SCALES.items()},
        },
        runs=trained,
        model=specs.SMALL_LLAMA,
        seed=seed,
    )


def runs(store: Store) -> list[specs.Run | specs.Probe]:
    """The sweeps, middle of each grid first; then seed by seed the adapters that are combined."""
    sweeps = trials([SWEEPS[task].tuning(ARM) for task in TASKS], store.get)
    return [*sweeps, *available(lambda seed: probe(seed, store), SEEDS)]


def records_of(store: Store) -> list[Record]:
    """The records of all seeds. Raises Missing."""
    return store.need_all(probe(seed, store) for seed in SEEDS)


def nats(records: Sequence[Record], task: str, state: str) -> np.ndarray:
    """(seeds, rows), summed nats of a task's test rows in a state."""
    return table(records, f"{task}_{state}_loss_nats")


def gain(records: Sequence[Record], task: str, state: str) -> stats.Interval:
    """By how many nats per token a state is better than the untuned model on a task."""
    tokens = table(records[:1], f"{task}_label_tokens")[0].tolist()
    untuned, tuned = nats(records, task, "untuned"), nats(records, task, state)
    return stats.paired_interval(untuned, tuned, tokens, test_groups(task, ROWS))


def share_replicates(records: Sequence[Record], task: str, state: str) -> np.ndarray:
    """The share of the gain of the task's own adapter that a state has, (1 + replicates, seeds)."""
    counts = resampling.replicates(ROWS, test_groups(task, ROWS))
    untuned, single = nats(records, task, "untuned"), nats(records, task, f"by_{task}")
    return (counts @ (untuned - nats(records, task, state)).T) / (counts @ (untuned - single).T)


def share(records: Sequence[Record], task: str, state: str) -> stats.Interval:
    """The same over seeds and test rows."""
    return resampling.statistic_interval(share_replicates(records, task, state), ROWS, test_groups(task, ROWS))


def cell_share(records: Sequence[Record], cell: MergeCase, way: str) -> stats.Interval:
    """What a way of combining the adapters of a subset keeps of a task's gain."""
    return share(records, cell.task, f"{'+'.join(cell.subset)}_{way}")


def corrected(interval: stats.Interval) -> stats.Interval:
    """The interval at the level of one of sixteen."""
    return replace(interval, half95=interval.half(LEVEL))


def scale_curve(records: Sequence[Record], way: str, count: int, task: str) -> np.ndarray:
    """The share of a task that each scale keeps on validation rows, mean over its cells of so many: (seeds, scales)."""
    cells = [cell for cell in cells_of(count) if cell.task == task]
    curves = [[record.curve[f"{'+'.join(cell.subset)}_{way}_{cell.task}"] for cell in cells] for record in records]
    return np.array(curves, dtype=float).mean(axis=1)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Rates, gains, what each adapter does to the others' tasks, kept shares by cell and way, and their summaries."""
    out: dict[str, Quantity] = {}
    for task in TASKS:
        out |= {f"{task}_{name}": one for name, one in SWEEPS[task].sweep_quantities(ARM, store).items()}
    with suppress(Missing):
        records = records_of(store)
        for task in TASKS:
            out |= task_quantities(records, task)
        for cell in CELLS:
            for way in WAYS:
                out[f"{cell.name}_{way}_kept"] = merging.percent(cell_share(records, cell, way), keys_of(records), 0)
        for name, count in COUNTS.items():
            for way in WAYS:
                out |= summary(records, f"{name}_adapters_{way}", way, count)
            out |= geometry_quantities(records, name, count)
        out |= parabola_quantities(records)
    return out


def task_quantities(records: Sequence[Record], task: str) -> dict[str, Quantity]:
    """The gain of a task's own adapter, and what each other one has of it."""
    keys = keys_of(records)
    out = {f"{task}_gain": Quantity.of(gain(records, task, f"by_{task}"), "nats per token", keys, 2)}
    others = [other for other in TASKS if other != task]
    return out | {
        f"{task}_by_{one}_kept": merging.percent(share(records, task, f"by_{one}"), keys, 0) for one in others
    }


def summary(records: Sequence[Record], name: str, way: str, count: int) -> dict[str, Quantity]:
    """Over the cells of so many adapters: the mean share, with its interval over seeds, the lowest and the highest, and
    the mean of each task's.
    """
    cells, keys = cells_of(count), keys_of(records)
    shares = [cell_share(records, cell, way) for cell in cells]
    single = np.array([share_replicates(records, cell.task, f"{'+'.join(cell.subset)}_{way}")[0] for cell in cells])
    mean = merging.percent(stats.seed_interval(single.mean(axis=0)), keys, 0, "interval over seeds alone")
    note = f"of {len(cells)}, at the level of one of {len(CELLS)}"
    ends = {"least": min(shares, key=lambda one: one.mean), "most": max(shares, key=lambda one: one.mean)}
    out = {f"{name}_{end}": merging.percent(corrected(one), keys, 0, f"{end} {note}") for end, one in ends.items()}
    out[f"{name}_mean"] = mean
    for task in TASKS:
        tables = [
            share_replicates(records, task, f"{'+'.join(cell.subset)}_{way}") for cell in cells if cell.task == task
        ]
        interval = resampling.statistic_interval(np.mean(tables, axis=0), ROWS, test_groups(task, ROWS))
        out[f"{name}_{task}"] = merging.percent(interval, keys, 0)
    if way in SCALES:
        names = {"+".join(cell.subset) for cell in cells}
        chosen = [float(record.measurements[f"{subset}_{way}_scale"] or 0) for record in records for subset in names]
        out[f"{name}_scale"] = Quantity.middle(chosen, "", keys, "median and range of the chosen scales", digits=2)
    return out


def parabola(records: Sequence[Record], cell: MergeCase) -> np.ndarray:
    """What an average of two would keep if losses were parabolas with minimum at the own adapter.

    Halfway between D_i, which keeps 1, and D_j, which alone keeps s, a parabola that is 0 at D = 0 keeps (3 + s) / 4.
    """
    (other,) = set(cell.subset) - {cell.task}
    return (3 + share_replicates(records, cell.task, f"by_{other}")) / 4


def parabola_quantities(records: Sequence[Record]) -> dict[str, Quantity]:
    """That share for each task of each pair, and how far the measured ones are from it, mean over them, by seed."""
    keys, cells = keys_of(records), cells_of(2)
    out, distances = {}, []
    for cell in cells:
        expected = parabola(records, cell)
        interval = resampling.statistic_interval(expected, ROWS, test_groups(cell.task, ROWS))
        out[f"{cell.name}_parabola"] = merging.percent(interval, keys, 0)
        measured = share_replicates(records, cell.task, f"{'+'.join(cell.subset)}_average")
        distances.append(np.abs(measured[0] - expected[0]))
    return out | {"parabola_distance": merging.percent(stats.seed_interval(np.mean(distances, axis=0)), keys, 0)}


def geometry_quantities(records: Sequence[Record], name: str, count: int) -> dict[str, Quantity]:
    """Of the updates: cross terms, signs that conflict and, of pairs, the cosine. Means over subsets, by seed."""
    subsets, keys = dict.fromkeys("+".join(cell.subset) for cell in cells_of(count)), keys_of(records)

    def mean(what: str) -> stats.Interval:
        values = [[float(record.measurements[f"{one}_{what}"] or 0) for one in subsets] for record in records]
        return stats.seed_interval(np.mean(values, axis=1))

    out = {
        f"{name}_adapters_cross": Quantity.of(mean("cross"), "", keys, 2),
        f"{name}_adapters_sign_conflict": merging.percent(mean("sign_conflict"), keys, 0),
    }
    return out | ({"cosine": Quantity.of(mean("cosine"), "", keys, 3)} if count == 2 else {})


def outcome_of(records: Sequence[Record], cell: MergeCase) -> str:
    """The verdict on one of the sixteen shares, any of which may refute."""
    if gain(records, cell.task, f"by_{cell.task}").low <= FLOOR:
        return "undecided"
    return judge_claim(cell_share(records, cell, "average"), MARGIN, (LEAST, math.inf), len(CELLS))[0]


def moves(records: Sequence[Record], subset: tuple[str, ...]) -> bool:
    """Whether the average surely changes the loss of one of its tasks, at the corrected level."""
    changes = [corrected(gain(records, task, f"{'+'.join(subset)}_average")) for task in subset]
    return any(change.low > 0 or change.high < 0 for change in changes)


@study("averaging", runs, quantities, cells=len(CELLS), percent=100 * (1 - LEVEL))
def verdict(store: Store) -> Verdict:
    """Does the average of two and of four adapters keep nine tenths of every task's gain?"""
    records = records_of(store)
    outcomes = [outcome_of(records, cell) for cell in CELLS]
    if idle := [name_of(subset) for subset in (*PAIRS, TASKS) if not moves(records, subset)]:
        said = f"The average of {', '.join(idle)} does not surely differ from the untuned model."
        return Verdict("undecided", said, held=BLIND)
    first, second = (sentence(records, name, count) for name, count in COUNTS.items())
    below, above = (outcomes.count(one) for one in ("refuted", "reproduced"))
    weak = [LABELS[task] for task in TASKS if gain(records, task, f"by_{task}").low <= FLOOR]
    control = f" The adapter of {', '.join(weak)} does not surely gain {FLOOR:g} nats per token." if weak else ""
    return Verdict(
        stats.together(outcomes),
        f"{first[:1].upper()}{first[1:]}; {second}. Of {len(CELLS)} shares {below} are surely below "
        f"{LEAST - MARGIN:.0%} and {above} surely above {LEAST + MARGIN:.0%} (claim at least {LEAST:.0%}, margin "
        f"{MARGIN:.0%}).{control}",
        tuple(f"{name}_adapters_average_{end}" for name in COUNTS for end in ("least", "most")),
    )


def sentence(records: Sequence[Record], name: str, count: int) -> str:
    """What an average of so many keeps."""
    shares = {cell: cell_share(records, cell, "average") for cell in cells_of(count)}
    least, most = (choose(shares, key=lambda cell: shares[cell].mean) for choose in (min, max))
    one = corrected(shares[least])
    return (
        f"an average of {name} keeps {shares[most].mean:.0%} of a gain at most ({LABELS[most.task]}) and "
        f"{one.mean:.0%} at least ({LABELS[least.task]}; {100 * (1 - LEVEL):.1f} % interval {one.low:.0%} to "
        f"{one.high:.0%})"
    )
