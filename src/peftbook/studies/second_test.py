"""Do the verdicts hold on test inputs that their studies had not seen?

Written before the runs. Several studies judge on the same first 200 of E2E's 630 test inputs. Nothing was tuned on
these, but claims were reworded and seeds added after looks at them, and one draw of inputs serves all. Here the arms
that decide some of those studies are trained again, with the same seeds at the same rates, and judged by the same rule
on the other 430 inputs. Known before: the benchmark, which judges on all 630, and every verdict on the first 200.

A verdict holds if it comes out the same, or if what showed a direction alone is now decided in that direction. It turns
over if reproduced becomes refuted or the reverse, or if the intervals of a deciding difference lie on opposite sides of
zero. The seeds are those of the first test, so what is new is the inputs alone. How alike the same seed's difference is
on both sets of inputs is told beside the count: where seeds are most of the error, a verdict can hardly turn over. So
this refutes where one does, and decides nothing where none does.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np

from peftbook.core.records import Missing, Store
from peftbook.core.specs import Probe, Run
from peftbook.evidence import stats
from peftbook.evidence.comparison import table
from peftbook.studies import Quantity, Verdict, gathered, get_study, prompt_design, rank, study, targets
from peftbook.studies.tuned_comparison import TunedComparison

FIRST, ALL = 200, 630  # test inputs of E2E: those of the studies, and those there are
# Study → the differences that decide it, the one that its claim is about first.
DECIDING: dict[str, tuple[TunedComparison, tuple[tuple[str, str], ...]]] = {
    "prompt_length": (prompt_design.COMPARISON, (("vocabulary_1", "vocabulary_20"),)),
    "prompt_longer": (prompt_design.COMPARISON, (("vocabulary_20", "vocabulary_100"),)),
    "prompt_init": (
        prompt_design.COMPARISON,
        (("random_100", "vocabulary_100"), ("random_20", "vocabulary_20"), ("random_5", "vocabulary_5")),
    ),
    "targets": (targets.COMPARISON, (("attention", "mlp"),)),
    "targets_all": (targets.COMPARISON, (("query_value", "all"),)),
    "rank": (rank.COMPARISON, (("r64", "r16"), ("r256", "r16"), ("r1", "r16"))),
}
# Studies that have refined their grids since: these are the verdicts on the ones that they had.
JUDGES = {
    name: functools.partial(judge, plan=targets.COMPARISON)
    for name, judge in {"targets": targets.mlp_verdict, "targets_all": targets.all_verdict}.items()
}
KEPT, LOST = ("reproduced", "equivalent"), "refuted"


class Others(Store):
    """The same records, in which a run that is tested on the first inputs is the one that is tested on the others."""

    def __init__(self, store: Store):
        super().__init__(*store.folders, platform=store.platform, machine=store.machine)

    def spec(self, run: Run | Probe) -> Run | Probe:
        """The run as this store sees it."""
        run = super().spec(run)
        if isinstance(run, Probe) or run.evaluation.split != "test":
            return run
        changes = {"skip": FIRST, "n_loss": ALL - FIRST}
        return run.model_copy(update={"evaluation": run.evaluation.model_copy(update=changes)})


def arms(name: str) -> list[str]:
    """The arms that decide a study."""
    return list(dict.fromkeys(arm for pair in DECIDING[name][1] for arm in pair))


def runs(store: Store) -> list[Run | Probe]:
    """The sweeps of the arms that decide, which are those of the studies; then their final runs, tested on the other
    inputs, study by study.
    """
    sweeps: dict[str, Run | Probe] = {}
    finals: dict[str, Run | Probe] = {}
    for name, (comparison, _) in DECIDING.items():
        for arm in map(comparison.arm, arms(name)):
            tuning = comparison.tuning(arm)
            sweeps |= {run.key: run for rate in tuning.rates(store.get) for run in tuning.make(rate)}
            with suppress(Missing):
                tested = map(Others(store).spec, comparison.final_runs(arm, store))
                finals |= {run.key: run for run in tested}
    return [*sweeps.values(), *finals.values()]


def differences(name: str, store: Store) -> Iterator[tuple[str, stats.Interval, stats.Interval]]:
    """Of each difference that decides a study its name, and its interval on the first and on the other inputs."""
    comparison, pairs = DECIDING[name]
    for first, second in pairs:
        on_first, on_others = (
            comparison.difference(first, second, "loss_nats", each) for each in (store, Others(store))
        )
        yield f"{name}_{first}_minus_{second}", on_first, on_others


def by_seed(name: str, store: Store) -> Iterator[np.ndarray]:
    """Of each difference that decides a study, by seed. Raises Missing."""
    comparison, pairs = DECIDING[name]
    for pair in pairs:
        one, two = comparison.finals_of(pair, store).values()
        nats, tokens = table(one, "loss_nats") - table(two, "loss_nats"), table(one, "label_tokens")
        yield nats.sum(axis=1) / tokens.sum(axis=1)


def likeness(store: Store) -> dict[str, Quantity]:
    """Of each difference the correlation, over seeds, of its values on the first and other inputs. Raises Missing."""
    pairs = [zip(*(by_seed(name, each) for each in (store, Others(store))), strict=True) for name in DECIDING]
    found = [float(np.corrcoef(*pair)[0, 1]) for pair in itertools.chain(*pairs)]
    keys = itertools.chain(*(DECIDING[name][0].keys(Others(store), *arms(name)) for name in DECIDING))
    seeds = sorted({len(DECIDING[name][0].seeds) for name in DECIDING})
    note = f"median and range over {len(found)} differences, each over {seeds[0]} to {seeds[-1]} seeds"
    return {"seed_correlation": Quantity.middle(found, "", tuple(dict.fromkeys(keys)), note, digits=3)}


def quantities(store: Store) -> Mapping[str, Quantity]:
    """The differences on the other inputs, and how alike those of one seed are on both."""
    return gathered(lambda name: of_study(name, store), DECIDING) | gathered(likeness, [store])


def of_study(name: str, store: Store) -> dict[str, Quantity]:
    """The differences of one study. Raises Missing."""
    comparison, _ = DECIDING[name]
    keys = comparison.keys(Others(store), *arms(name))
    return {what: Quantity.of(found, "nats per token", keys) for what, _, found in differences(name, store)}


def fate(before: str, after: str, same_side: bool) -> str:
    """`holds`, `turns over` or `open`: what became of a verdict.

    same_side: whether no deciding difference is surely positive on some inputs and surely negative on the others.
    """
    if not same_side or (before in KEPT and after == LOST) or (before == LOST and after in KEPT):
        return "turns over"
    return "holds" if before == after or (before == "direction only" and after in (*KEPT, LOST)) else "open"


def fate_of(name: str, store: Store) -> tuple[str, str, str]:
    """What became of a study's verdict, and the verdict before and after. Raises Missing."""
    judge = JUDGES.get(name, get_study(name).judge)
    before, after = (judge(each).outcome for each in (store, Others(store)))
    same = all(not (one.low > 0 > two.high or one.high < 0 < two.low) for _, one, two in differences(name, store))
    return fate(before, after, same), before, after


@study("second_test", runs, quantities)
def verdict(store: Store) -> Verdict:
    """Does every verdict hold on the other inputs?"""
    fates = {name: fate_of(name, store) for name in DECIDING}
    said = "; ".join(
        f"{get_study(name).title}{' (on its first grid)' if name in JUDGES else ''} {before} → {after}"
        for name, (_, before, after) in fates.items()
    )
    became = [fate for fate, _, _ in fates.values()]
    names = [next(iter(of_study(name, store))) for name in DECIDING]
    decided = [fate for fate, before, _ in fates.values() if before != "undecided"]
    idle = len(became) - len(decided)
    beside = f", beside {idle} that had decided nothing" if idle else ""
    alike = likeness(store)["seed_correlation"]
    sentence = (
        f"{decided.count('holds')} of {len(decided)} verdicts hold on the other inputs{beside}. {said}. The same "
        "trained seeds are asked, so little could have turned over. Over seeds, differences on the two sets of inputs "
        f"correlate by {alike.low:.3f} to {alike.high:.3f}; {alike.note.partition(', ')[2]}, so these are rough."
    )
    turned = "turns over" in became
    held = "" if turned else "none turned over, and of the same trained seeds hardly one could"
    return Verdict("refuted" if turned else "undecided", sentence, (*names, "seed_correlation"), held=held)
