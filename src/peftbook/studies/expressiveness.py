"""What can a prompt not learn? Descending order, for models of one to eight layers that learned ascending order.

Written before the runs. Small Llamas are trained here from random weights, so that their depth is the only difference.
A prompt or a prefix scales what attention reads from the content and adds a constant to it, but in the first layer it
cannot change which part of the content is read more than another (Petrov, Torr and Bibi 2023). With one layer the order
in which a list is read is therefore fixed; with more layers a prompt changes what the later layers see. LoRA of rank 4
is the positive control for the task. A prompt that has to bring ascending order back, which the model was taught, is
the control for the training of prompts: where it fails, a prompt that does not sort downwards says nothing. Nor does
one whose best rate is an end of its grid. Whether depth gives a prompt what it lacks is the book's own question: the
paper calls prompts potentially less expressive and does not say that depth helps.

This is the third edition; the ledger tells what became of the first two, whose controls failed or whose losses lay so
close together that the best rate was at an end of the grid by chance. With eight layers only a seed of its own was
looked at before: there the prefix sorted three lists in four downwards, the prompt none.

Eight fresh models of one layer decide the first claim, each of which counts where both controls succeed in it; the rule
was written before any of them was there. One model, whether it counts or not, in which a prompt or a prefix sorts
downwards refutes the claim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from peftbook.core import specs
from peftbook.core.records import Record, Store
from peftbook.core.specs import Probe
from peftbook.evidence import stats
from peftbook.evidence.comparison import keys_of, paired, score
from peftbook.evidence.planning import judge_claim
from peftbook.evidence.sweep import best_of
from peftbook.studies import BLIND, Quantity, Verdict, by_seed, gathered, study

DEPTHS = (1, 2, 4, 8)  # the first and the last decide
DEEPEST = 8
SEEDS = (21, 22, 23, 24, 25)
ONE_LAYER_SEEDS = (31, 32, 33, 34, 35, 36, 37, 38)  # of the models that decide the first claim
ARMS = ("prompt", "prefix", "lora", "lora4", "prompt_ascending")
CONTEXT_ARMS = ("prompt", "prefix")
CONTROLS = {
    "lora4": "LoRA of rank 4, the positive control",
    "prompt_ascending": "the prompt that is to bring ascending order back, the control for the training of prompts",
}
SETTINGS: dict = {
    "marker": "untaught",
    "hidden": 64,
    "heads": 4,
    "length": 10,
    "pretrain_steps": 1600,
    "pretrain_rate": 0.003,
    "steps": 300,
    "prompt_rates": (0.03, 0.1, 0.3, 1.0),
    "prefix_rates": (0.03, 0.1, 0.3, 1.0),
    "lora_rates": (0.003, 0.01, 0.03),
}
SOLVED = 0.5  # a task counts as solved where more than half of the test lists come out right
LEARNED = 0.9  # the comparison means something only where the model sorts upwards this well
FLAT = 0.05  # nats per token by which a rate at an end must be better than its neighbour, or a better one is not beyond
GAIN, MARGIN = 0.5, 0.1  # least gain in accuracy that counts as solving it when deep, and a fifth of that


def probe(depth: int, seed: int) -> Probe:
    """Pretraining and all adaptations of one model."""
    return Probe(
        measure="synthetic.sort_by_depth", settings={"depth": depth, **SETTINGS}, model=specs.RANDOM_LLAMA, seed=seed
    )


def runs(store: Store) -> list[Probe]:
    """The depths that decide first, seed by seed."""
    order = sorted(DEPTHS, key=lambda depth: depth not in (1, DEEPEST))
    return [probe(depth, seed) for depth in order for seed in SEEDS]


records = by_seed(probe, SEEDS)


def depths_at_hand(store: Store) -> list[int]:
    """The depths whose records are all there. Raises Missing where there is none."""
    found = [depth for depth in DEPTHS if all(probe(depth, seed) in store for seed in SEEDS)]
    records(found[0] if found else DEPTHS[0], store)
    return found


def accuracy(depth: int, arm: str, store: Store) -> stats.Interval:
    """Share of the test lists whose whole answer is right, with its interval. Raises Missing."""
    return score(records(depth, store), f"{arm}_exact")


def gain(arm: str, store: Store) -> stats.Interval:
    """Accuracy with DEEPEST layers minus accuracy with one, paired over seeds. Raises Missing."""
    return paired(records(DEEPEST, store), records(1, store), f"{arm}_exact")


def quantities(store: Store) -> Mapping[str, Quantity]:
    """For each depth: accuracy and size of each arm, best rates, how well the model sorts upwards; gain from depth."""
    each = gathered(lambda depth: depth_quantities(depth, store), DEPTHS)
    return each | gathered(lambda measure: measure(store), (gains, one_layer_quantities))


def gains(store: Store) -> dict[str, Quantity]:
    """The gain from depth of each arm. Raises Missing."""
    keys = keys_of(*(records(depth, store) for depth in (1, DEEPEST)))
    return {f"{arm}_gain_from_depth": Quantity.of(gain(arm, store), "", keys, among=(-1, 1)) for arm in ARMS}


def one_layer(store: Store) -> list[Record]:
    """The records of the models that decide the first claim, in seed order. Raises Missing."""
    return store.need_all(probe(1, seed) for seed in ONE_LAYER_SEEDS)


def surely(arm: str, record: Record) -> bool:
    """Whether an arm solves its task in one model: the whole 95 % interval over its test lists above SOLVED."""
    return score([record], f"{arm}_exact").low > SOLVED


def able(store: Store) -> list[Record]:
    """Those of one layer that sort upwards and in which both controls succeed. Raises Missing."""
    return [
        record
        for record in one_layer(store)
        if ascending(record) >= LEARNED and all(surely(arm, record) for arm in CONTROLS)
    ]


def one_layer_quantities(store: Store) -> dict[str, Quantity]:
    """How many models of one layer count, and what the arms reach in these. Raises Missing."""
    found, keys = able(store), keys_of(one_layer(store))
    out = {"able_models": Quantity(len(found), f"of {len(keys)} models", keys, n=len(keys), digits=0)}
    for arm in ARMS if found else ():
        of_lists = score(found, f"{arm}_exact")
        out[f"able_{arm}_accuracy"] = Quantity.of(of_lists, "", keys_of(found), among=(0, 1))
    return out


def depth_quantities(depth: int, store: Store) -> dict[str, Quantity]:
    """Of one depth. Raises Missing."""
    found, out = records(depth, store), {}
    keys = keys_of(found)
    for arm in ARMS:
        out[f"depth{depth}_{arm}_accuracy"] = Quantity.of(accuracy(depth, arm, store), "", keys, among=(0, 1))
        size = float(found[0].measurements[f"{arm}_parameters"] or 0)
        out[f"depth{depth}_{arm}_parameters"] = Quantity(size, "parameters", keys[:1], digits=0)
    for arm in CONTEXT_ARMS:
        rate = best_of(mean_losses(found, arm))
        out[f"depth{depth}_{arm}_best_rate"] = Quantity(rate, "", keys, seeds=len(SEEDS), digits=-2)
    learned = stats.seed_interval([ascending(record) for record in found])
    return out | {f"depth{depth}_pretrained_accuracy": Quantity.of(learned, "", keys, among=(0, 1))}


def ascending(record: Record) -> float:
    """How many test lists the model sorted upwards after pretraining, 0–1."""
    return float(record.measurements["pretrained_ascending_accuracy"] or 0)


def mean_losses(found: Sequence[Record], arm: str) -> dict[float, float]:
    """Rate → validation loss, mean over models, nats per token."""
    rates = map(float, found[0].curve[f"{arm}_rates"])
    losses = np.mean([record.curve[f"{arm}_validation_loss_nats"] for record in found], axis=0)
    return dict(zip(rates, losses.tolist(), strict=True))


def at_an_end(found: Sequence[Record], depth: int) -> str:
    """Which arm that does not solve it has a best rate that is an end, in words; else an empty text."""
    for arm in CONTEXT_ARMS:
        if score(found, f"{arm}_exact").low <= SOLVED and falls_at_an_end(losses := mean_losses(found, arm)):
            return f"the best rate of the {arm} at depth {depth}, {best_of(losses):g}, is an end of its grid"
    return ""


def falls_at_an_end(losses: Mapping[float, float]) -> bool:
    """Whether the best rate is an end of its grid, and better than its neighbour by more than FLAT."""
    values = list(losses.values())
    return any(ends[0] == min(values) and ends[1] - ends[0] > FLAT for ends in (values[:2], values[:-3:-1]))


def unusable(depth: int, store: Store) -> str:
    """Why the failure of an arm at a depth decides nothing, or an empty text."""
    worst = min(map(ascending, records(depth, store)))
    if worst < LEARNED:
        return f"a model of depth {depth} sorts only {worst:.0%} of the lists upwards, so it has nothing to adapt"
    for arm, what in CONTROLS.items():
        if accuracy(depth, arm, store).low <= SOLVED:
            return f"{what}, is not surely above {SOLVED:.0%} at depth {depth}"
    return at_an_end(records(depth, store), depth)


@study("expressiveness", lambda store: [*(probe(1, seed) for seed in ONE_LAYER_SEEDS), *runs(store)], quantities)
def verdict(store: Store) -> Verdict:
    """Does no prompt and no prefix sort downwards in models of one layer in which LoRA does?"""
    models, able_models = one_layer(store), able(store)
    said = f"In {len(able_models)} of {len(models)} one-layer models both controls succeed"
    named: tuple[str, ...] = ("able_models",)
    solved = [record for record in models if any(surely(arm, record) for arm in CONTEXT_ARMS)]
    if solved:  # one that can is enough, whatever the controls say
        return Verdict("refuted", f"{said}; in {len(solved)} a prompt or a prefix sorts downwards.", named)
    if len(able_models) < stats.FEWEST_SEEDS:
        return Verdict("undecided", f"{said}, too few to say what cannot be done.", named, held=BLIND)
    arms = {arm: score(able_models, f"{arm}_exact") for arm in (*CONTEXT_ARMS, *CONTROLS)}
    better = max(CONTEXT_ARMS, key=lambda arm: arms[arm].mean)
    most = max(score([record], f"{arm}_exact").mean for record in able_models for arm in CONTEXT_ARMS)
    said += (
        f": LoRA of rank 4 sorts {describe(arms['lora4'])} of the lists downwards, and a prompt brings ascending order "
        f"back in {describe(arms['prompt_ascending'])}. The better of prompt and prefix ({better}) sorts "
        f"{describe(arms[better])} downwards, in no model more than {100 * most:.1f} %"
    )
    named = (*named, *(f"able_{arm}_accuracy" for arm in (better, *CONTROLS)))
    if reason := at_an_end(able_models, 1):
        return Verdict("undecided", f"{said}; but {reason}.", named, held=BLIND)
    outcome, part = judge_claim(arms[better], 0.0, (-math.inf, SOLVED))
    return Verdict(outcome, f"{said}.", named, (part,))


@study("expressiveness_depth", runs, quantities, least=GAIN - MARGIN)
def verdict_on_depth(store: Store) -> Verdict:
    """Does a prompt solve with DEEPEST layers what it does not solve with one, and a prefix too?"""
    found = {arm: gain(arm, store) for arm in CONTEXT_ARMS}
    changes = " and ".join(f"of the {arm} {one:+.3f}" for arm, one in found.items())
    said = f"From one layer to {DEEPEST} accuracy changes, {changes} (95 % intervals; claim at least {GAIN} of each"
    said += f", margin {MARGIN})"
    named = tuple(f"{arm}_gain_from_depth" for arm in found)
    if reason := unusable(1, store) or unusable(DEEPEST, store):
        return Verdict("undecided", f"{said}; but {reason}.", named, held=BLIND)
    judged = {arm: judge_claim(one, MARGIN, (GAIN, math.inf), len(found)) for arm, one in found.items()}
    solved = [arm for arm in found if accuracy(1, arm, store).high >= SOLVED]
    if solved:
        said += f"; one layer may do for the {' and the '.join(solved)}, so that depth has nothing to give there"
    outcome = stats.together(["undecided" if arm in solved else one for arm, (one, _) in judged.items()])
    parts = tuple(part for _, part in judged.values())
    return Verdict(outcome, f"{said}.", named, parts)


def describe(interval: stats.Interval) -> str:
    """An accuracy with its interval in per cent."""
    low, high = (100 * min(1.0, max(0.0, end)) for end in (interval.low, interval.high))
    return f"{100 * interval.mean:.1f} % (95 % interval {low:.1f} to {high:.1f})"
