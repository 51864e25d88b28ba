"""Verdicts computed again from the raw JSON of the records, by the rule as `book/measuring.md` words it.

Nothing of the package makes a number here (`raw_rule` reads, measures and judges; only what groups the test examples
form is asked of the tasks).

python tests/tools/recomputed_verdicts.py STUDY   print a verdict and the quantities behind it
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import raw_rule
from raw_rule import (
    INF,
    Interval,
    Raw,
    Setting,
    column,
    lora,
    over_examples,
    over_seeds,
    probe,
    prompt,
    rates,
    verdict_of,
)

from peftbook.tasks import test_groups as groups_of_task

# --- the studies: each gives its outcome and printed quantities, as mean, low and high -------------------------

Found = tuple[str, Mapping[str, Sequence[float | None]]]
E2E = Setting("e2e", 34_000, factor=4)
PROMPT_RATES, LORA_RATES = rates(0.3 / 64, 4, 4), rates(5e-5, 4, 4)


def exp(interval: Interval) -> list[float]:
    return [math.exp(end) for end in interval.ends]


def difference(setting: Setting, first: tuple, second: tuple, name: str = "loss_nats") -> Interval:
    """First − second, each a method with its rates, over seeds and groups of examples; a loss with its choice."""
    one_arm, other = setting.finals(*first), setting.finals(*second)
    weights = column(other, "label_tokens")[0] if name == "loss_nats" else None
    groups = groups_of_task(setting.task, setting.tested)
    found = over_examples(column(one_arm, name) - column(other, name), weights, groups)
    chosen = [setting.choice(*arm) for arm in (first, second) if name == "loss_nats"]
    return replace(found, choice=math.hypot(*chosen))


def methods() -> Found:
    setting = Setting("docstrings", 48_000, factor=3, validated=200, generated=200)
    arms = (lora(), rates(2e-4 / 3, 3, 4)), (raw_rule.FULL, rates(5e-5 / 3, 3, 4))
    nats, rouge = (difference(setting, *arms, name) for name in ("loss_nats", "rougeL"))
    return verdict_of(nats, 0, -INF, 0.02), {"lora_minus_full_loss": nats.ends, "lora_minus_full_rougeL": rouge.ends}


def rank() -> Found:
    """Higher ranks must not be better by the margin; that says something only where rank 1 is worse by it."""
    setting = replace(E2E, factor=2)
    grid = rates(5e-5, 2, 8)
    found = {r: difference(setting, (lora(r), grid), (lora(16), grid)) for r in (64, 256, 1)}
    higher = [found[64], found[256]]
    # Holm around the margin: a rank is better if the 1 − α/m interval lies below −0.02, the clearest one first.
    clearest = sorted(higher, key=lambda each: (each.mean + 0.02) / math.hypot(each.seed_se, each.unit_se))
    if clearest[0].mean + clearest[0].half(0.05 / 2) < -0.02:
        outcome = "refuted"
    elif all(verdict_of(each, 0, -0.02, INF) == "reproduced" for each in higher) and found[1].ends[1] >= 0.02:
        outcome = "reproduced"
    else:
        outcome = "undecided"
    return outcome, {f"r{r}_minus_r16_loss": each.ends for r, each in found.items()}


def dora() -> Found:
    """Equality counts only where at some rate of both sweeps the losses are apart by the margin."""
    setting = replace(E2E, seeds=(1, 2, 3, 4, 5), refined=0.01)
    arms = [({**lora(), "dora": dora}, LORA_RATES) if dora else (lora(), LORA_RATES) for dora in (True, False)]
    found = difference(setting, *arms)
    one, two = (setting.grid(*arm) for arm in arms)
    apart = max(abs(one[rate] - two[rate]) for rate in one if rate in two)
    outcome = verdict_of(found, 0.02, -INF, 0)
    return ("undecided" if outcome == "equivalent" and apart < 0.02 else outcome), {"dora_minus_lora_loss": found.ends}


def targets(first: Raw, second: Raw, name: str) -> Found:
    """Five seeds, of which three had been looked at; too coarse a grid is refined."""
    setting = replace(E2E, seeds=(1, 2, 3, 4, 5), refined=0.01)
    found = difference(setting, (first, LORA_RATES), (second, LORA_RATES))
    found = replace(found, first_look=3 / 5)
    return verdict_of(found, 0.02, 0, INF), {f"{name}_loss": found.ends}


def prompts(first: tuple[int, str], second: tuple[int, str], claim: tuple[float, float]) -> Found:
    """As `targets`."""
    setting = replace(E2E, seeds=(1, 2, 3, 4, 5), refined=0.01)
    found = difference(setting, (prompt(*first), PROMPT_RATES), (prompt(*second), PROMPT_RATES))
    found = replace(found, first_look=3 / 5)
    names = [f"{init}_{length}" for length, init in (first, second)]
    return verdict_of(found, 0, *claim), {"_minus_".join(names) + "_loss": found.ends}


def loftq() -> Found:
    """Two bits on the small Llama, from LoftQ's start and from the plain one; the other two differences are told."""
    setting = Setting("e2e", 68_000, factor=4, seeds=(1, 2, 3, 4, 5), refined=0.025, model="small-llama")
    plain = {**lora(), "kind": "qlora", "quant": "nf2", "double_quant": True}
    arms = {
        "nf2": plain, "nf2_loftq": {**plain, "init": "loftq"}, "lora": lora(),
        "loftq": {**plain, "init": "loftq", "rounded": False},
    }  # fmt: skip
    found = {
        f"small_{first}_minus_{second}_loss": replace(
            difference(setting, *((arms[name], rates(4e-4, 4, 3)) for name in (first, second))),
            first_look=3 / 5,
        )
        for first, second in (("nf2_loftq", "nf2"), ("nf2", "lora"), ("loftq", "lora"))
    }
    outcome = verdict_of(next(iter(found.values())), 0.02, -INF, 0)
    return outcome, {name: each.ends for name, each in found.items()}


def sql(first: str, second: str) -> Found:
    """Four tables are the groups of the questions."""
    setting = Setting("sql", 48_000, factor=4, tested=300, generated=300)
    arms = {
        "lora": (lora(), LORA_RATES),
        "prompt": (prompt(8, "text", "Write the SQL query that answers the question."), PROMPT_RATES),
        "fewshot": ({"kind": "untuned", "shots": 5, "version": 1},),
    }
    found = difference(setting, arms[first], arms[second], "execution_match")
    return verdict_of(found, 0.05, 0, INF), {f"{first}_minus_{second}_execution_match": found.ends}


def data_size() -> Found:
    setting = replace(E2E, examples=100, generated=200)
    arms = (lora(), rates(5e-5, 4, 3)), (raw_rule.FULL, rates(1.25e-5, 4, 3))
    found = difference(setting, *arms)
    return verdict_of(found, 0, -INF, 0.02), {"n100_lora_minus_full_loss": found.ends}


def prose_at(record: Raw, target: float) -> np.ndarray:
    """Nats of each piece of prose when the target loss is first reached, on the line between two moments."""
    aims = record["curve"]["validation_loss_nats"]
    nats = [np.array(record["per_example"][f"prose_nats_{step:.0f}"]) for step in record["curve"]["step"]]
    at = next((at for at in range(1, len(aims)) if aims[at] <= target), None)
    if at is None:
        return nats[-1]
    share = (aims[at - 1] - target) / (aims[at - 1] - aims[at])
    return nats[at - 1] + max(share, 0.0) * (nats[at] - nats[at - 1])


def forgetting() -> Found:
    def curves(method: Raw, rate: float) -> list[Raw]:
        matching = [
            record for record in raw_rule.every_record()
            if record["spec"].get("measure") == "curves.learning_curve" and record["spec"]["settings"].get("prose")
            and raw_rule.agrees(record["spec"]["runs"][0], {"method": method, "budget": {"learning_rate": rate}})
        ]  # fmt: skip
        return sorted(matching, key=lambda record: record["spec"]["seed"])

    small, found = curves(lora(64), 8e-4), {}
    full = {rate: curves(raw_rule.FULL, rate) for rate in (2.5e-5, 1e-4, 4e-4)}
    for rate, records in full.items():
        rows = []
        for pair in zip(records, small, strict=True):
            target = max(min(record["curve"]["validation_loss_nats"]) for record in pair)
            rows.append(prose_at(pair[0], target) - prose_at(pair[1], target))
        found[rate] = over_examples(np.array(rows), column(small, "prose_tokens")[0])
    best = min(full, key=lambda rate: sum(record["curve"]["validation_loss_nats"][-1] for record in full[rate]))
    outcome = verdict_of(found[best], 0.01, 0, INF)
    unlike = len({each.mean > 0 for each in found.values()}) > 1
    beyond = any(each.ends[1] > 0.01 or each.ends[2] < -0.01 for each in found.values())
    if (outcome in ("reproduced", "refuted") and unlike) or (outcome == "equivalent" and beyond):
        outcome = "undecided"
    names = zip(("low", "middle", "high"), found.values(), strict=True)
    return outcome, {f"full_{name}_minus_r64_prose": each.ends for name, each in names}


def merging_quality() -> Found:
    records = [probe("serving.merge_gap", seed) for seed in (1, 2, 3)]
    gained = (column(records, "untuned_loss_nats") - column(records, "unmerged_loss_nats")).mean(axis=0)
    lost = column(records, "merged_bf16_loss_nats") - column(records, "unmerged_bf16_loss_nats")
    found = over_examples(lost, gained)
    return verdict_of(found, 0, -INF, 0.05), {"bf16_merge_lost": [100 * end for end in found.ends]}


def double_quant_loss() -> Found:
    """8-bit constants against a tenth of what NF4 itself costs."""
    record = probe("codebooks.double_quant_cost", model="small-llama")
    full, tokens = (column([record], name) for name in ("full", "label_tokens"))
    outcomes, printed = [], {}
    for block in (64, 256):
        plain, double = (column([record], f"{block}_{kind}") for kind in ("none", "dynamic8"))
        beyond = over_examples(double - plain - 0.1 * (plain - full), tokens[0])
        outcomes.append(verdict_of(beyond, 0, -INF, 0))
        printed[f"small_{block}_cost"] = over_examples(double - plain, tokens[0]).ends
        printed[f"small_{block}_beyond_margin"] = beyond.ends
    return raw_rule.of_parts(outcomes), printed


def weight_error_order() -> Found:
    """Each codebook against the next of the paper's order, over copies and texts; one of three may turn."""
    order = ("nf4", "e3m0", "e2m1", "int4")
    known = {"measure": "codebooks.quantised_loss", "settings": {"source": "small"}}
    matching = [record for record in raw_rule.every_record() if raw_rule.agrees(record["spec"], known)]
    records, tokens = sorted(matching, key=lambda each: each["spec"]["seed"]), column(matching, "label_tokens")[0]
    apart = {
        f"small_{first}_minus_{second}": over_examples(
            column(records, f"{first}_64") - column(records, f"{second}_64"), tokens
        )
        for first, second in itertools.pairwise(order)
    }
    outcome = raw_rule.of_parts(verdict_of(each, 0.005, -INF, 0) for each in apart.values())
    turned = any(each.mean > each.half(0.05 / 3) for each in apart.values())
    surely = any(each.mean - each.half(0.05 / 3) > 0.005 for each in apart.values())
    if outcome == "refuted" and not surely:
        outcome = "undecided"
    printed = {name: each.ends for name, each in apart.items()}
    printed["small_nf4_64_cost"] = over_examples(column(records, "nf4_64") - column(records, "full"), tokens).ends
    return ("direction only" if outcome == "undecided" and turned else outcome), printed


def subspace() -> Found:
    """φ(1, 1) against the paper's 0.5; directions 2 to 8 against random spaces."""
    records = [probe("weights.subspaces", seed) for seed in (1, 2, 3)]
    first, later = over_examples(column(records, "small_large_first")), []
    for record in records:
        overlap = np.array(record["curve"]["small_large_map"]).reshape(8, 64)
        cosines = overlap * np.minimum.outer(np.arange(1, 9), np.arange(1, 65))  # sums over the first i and j
        rest = cosines[7, 7] - cosines[0, 7] - cosines[7, 0] + cosines[0, 0]
        later.append(rest / 7 - 7 * record["measurements"]["mean_inverse_width"])
    excess = over_seeds(later)
    outcome = raw_rule.of_parts([verdict_of(first, 0.1, 0.5, INF), verdict_of(excess, 0, -INF, 0.1)])
    return outcome, {"small_large_first": first.ends, "small_large_later_excess": excess.ends}


def costs() -> Found:
    def peaks(method: Raw, seed: int) -> float:
        record = raw_rule.one(task={"name": "docstrings"}, purpose="timing", method=method, seed=seed)
        return record["measurements"]["peak_memory_bytes"]

    qlora = {**lora(), "kind": "qlora", "quant": "nf4", "double_quant": True}
    found = over_seeds([math.log(peaks(qlora, seed) / peaks(lora(), seed)) for seed in (0, 1, 2)])
    return verdict_of(found, math.log(1.05), -INF, 0), {"qlora_over_lora_peak_memory": exp(found)}


def log_best_rates(
    setting: Setting, method: Raw, steps: int, grid: Sequence[float], seeds: Sequence[int], picks: np.ndarray
) -> np.ndarray:
    """log rate at the vertex of a least-squares parabola, (1 + draws, seeds), over rates near the first seed's best."""
    losses = setting.grid(method, grid)
    best, tried = min(losses, key=losses.__getitem__), list(losses)
    near = tried[max(0, tried.index(best) - steps) : tried.index(best) + steps + 1]
    fits = []
    for seed in seeds:
        records = [setting.sweep(method, rate, seed) for rate in near]
        learnt = [each for each in records if raw_rule.loss(each) < each["curve"]["train_loss_nats"][0]]
        nats, tokens = (column(learnt, name)[:, picks].sum(axis=2) for name in ("loss_nats", "label_tokens"))
        x = np.log([each["spec"]["budget"]["learning_rate"] for each in learnt])
        design = np.stack([x**2, x, np.ones_like(x)], axis=1)
        square, linear, _ = np.linalg.lstsq(design, nats / tokens, rcond=None)[0]
        fits.append(np.where(square > 0, np.clip(-linear / (2 * square), x[0], x[-1]), np.nan))
    return np.stack(fits, axis=1)


def learning_rate(tokens: int, wide_seeds: Sequence[int], name: str) -> Found:
    """The ratio of best rates, LoRA's over full fine-tuning's, by three rates each; what five move it is its bias."""
    setting, rng = Setting("e2e", tokens, factor=2), np.random.default_rng(7)
    picks = np.concatenate([np.arange(100)[None], rng.integers(100, size=(2000, 100))])
    narrow, wide = (
        log_best_rates(setting, lora(), steps, rates(5e-5, 2, 8), seeds, picks)
        - log_best_rates(setting, raw_rule.FULL, steps, rates(2e-4 / 32, 2, 8), seeds, picks)
        for steps, seeds in ((1, (0, 10, 11)), (2, wide_seeds))
    )
    found = raw_rule.over_draws(narrow[np.isfinite(narrow).all(axis=1)], 100)
    found = replace(found, bias=abs(float(np.mean(wide[0] - narrow[0, : len(wide_seeds)]))))
    return verdict_of(found, 0, math.log(5), math.log(20)), {name: exp(found)}


def serving() -> Found:
    """Of three trials there are 27 samples: their medians, with no draw."""
    settings = {"adapters": 16, "batch": 16, "tokens": 64, "new_tokens": 8, "trials": 3}
    records = [probe("serving.many_adapters", seed, **settings) for seed in (0, 1, 2)]
    picks = np.array([(0, 1, 2), *itertools.product(range(3), repeat=3)])
    medians = []
    for name in ("swapped", "mixed"):
        seconds = column(records, f"{name}_forward_seconds") + column(records, f"{name}_decode_seconds")
        medians.append(np.median(seconds[:, picks], axis=2).T)
    logs = np.log(medians[0] / medians[1])
    found = raw_rule.spread(logs[0], logs[1:] - logs[1:].mean(axis=0), 1 / 27, 2)
    least = math.log(1.05)
    return verdict_of(found, least, least, INF), {"mixed_over_swapped_16": exp(found)}


def codebooks(rival: str, measure: str) -> Found:
    records = [probe("codebooks.codebook_error", seed, source="normal") for seed in range(5)]
    at = records[0]["curve"]["block"].index(64)
    curves = [record["curve"] for record in records]
    found = over_seeds([each[f"nf4_{measure}"][at] / each[f"{rival}_{measure}"][at] - 1 for each in curves])
    return verdict_of(found, 0.02, -INF, 0), {f"nf4_excess_{measure}_over_{rival}": found.ends}


def bertscore_negation() -> Found:
    """Paraphrases minus opposites, as many words from the reference, over packages."""
    packages, found = groups_of_task("docstrings", 200), {}
    for kind in ("added", "replaced"):
        record = probe("paraphrases.scores", kind=kind)
        lead = column([record], "paraphrase_bertscore_f1") - column([record], "negated_bertscore_f1")
        found[kind] = over_examples(lead, groups=[packages[int(at)] for at in record["per_example"]["example"]])
    outcome = raw_rule.of_parts(verdict_of(each, 0, -INF, 0.02) for each in found.values())
    return outcome, {f"{kind}_minus_negated": each.ends for kind, each in found.items()}


def qlora_7b_memory() -> Found:
    """Bytes are counted, so that there is no interval."""
    shape = {"context": 4096, "ffn": 11008, "heads": 32, "hidden": 4096, "kv_heads": 32, "layers": 32, "vocab": 32000}
    peaks = []
    for setup in ({"device": "cpu", "quantised": "nf4", "seq": 128}, {"device": "cpu", "seq": 128}):
        text = json.dumps([shape, setup], separators=(",", ":"), sort_keys=True)
        record = probe("memory.peak", model="random-decoder", configuration=text)
        peaks.append(record["measurements"]["tensor_peak_bytes"])
    ratio = peaks[0] / peaks[1]
    return "reproduced" if ratio < 0.5 else "refuted", {"qlora_over_lora_peak": (ratio, None, None)}


def kept_gain(records: Sequence[Raw], task: str, subset: Sequence[str]) -> Interval:
    """What an average of adapters keeps of the gain that the task's own has over no adapter."""
    untuned = column(records, f"{task}_untuned_loss_nats")
    return gain_share(records, task, untuned - column(records, f"{task}_{'+'.join(subset)}_average_loss_nats"))


def gain_share(records: Sequence[Raw], task: str, part: np.ndarray) -> Interval:
    """Nats of each seed and row, over those that the task's own adapter gains on no adapter."""
    untuned, alone = (column(records, f"{task}_{state}_loss_nats") for state in ("untuned", f"by_{task}"))
    return raw_rule.over_statistic(
        lambda counted: (part @ counted) / ((untuned - alone) @ counted), np.ones(60), groups_of_task(task, 60)
    )


def surely_below(found: Interval, edge: float, level: float) -> bool:
    return found.mean + max(found.half(), found.half(level)) < edge


def averaging() -> Found:
    """Sixteen shares: any may refute at the level of one of them, all must bear the claim out; controls first."""
    tasks, level = ("tickets", "sort", "docstrings", "e2e"), 0.05 / 16
    records = [probe("combining.kept_gains", seed, model="small-llama") for seed in range(1, 6)]
    outcomes, shares, idle = [], {}, False
    for subset in (*itertools.combinations(tasks, 2), tasks):
        surely = False
        for task in subset:
            tokens, groups = column(records, f"{task}_label_tokens")[0], groups_of_task(task, 60)
            untuned = column(records, f"{task}_untuned_loss_nats")
            gains, changes = (
                over_examples(untuned - column(records, f"{task}_{state}_loss_nats"), tokens, groups)
                for state in (f"by_{task}", f"{'+'.join(subset)}_average")
            )
            surely = surely or abs(changes.mean) > changes.half(level)
            shares[subset, task] = found = kept_gain(records, task, subset)
            outcome = verdict_of(found, 0.05, 0.9, INF)
            sure = outcome != "refuted" or surely_below(found, 0.85, level)
            outcomes.append(outcome if sure and gains.ends[1] > 0.1 else "undecided")
        idle = idle or not surely
    lowest = {}
    for name, count in (("two", 2), ("four", 4)):
        found = min((share for (subset, _), share in shares.items() if len(subset) == count), key=lambda one: one.mean)
        ends = (found.mean, found.mean - found.half(level), found.mean + found.half(level))
        lowest[f"{name}_adapters_average_least"] = [100 * end for end in ends]
    return "undecided" if idle else raw_rule.of_parts(outcomes), lowest


def joint_adapter() -> Found:
    """Four differences in what is kept of a gain: any may refute at the level of one of them; gains are controls."""
    tasks = ("tickets", "sort", "docstrings", "e2e")
    records = [probe("combining.kept_gains", seed, model="small-llama") for seed in range(1, 6)]

    def joint(rate: float, seed: int) -> Raw:
        return probe("combining.joint_losses", seed, model="small-llama", learning_rate=rate)

    losses = raw_rule.extended(lambda rate: joint(rate, 0)["measurements"]["loss_nats"], rates(1e-3, 2, 3), 2)
    best = min(losses, key=losses.__getitem__)
    finals = [joint(best, seed) for seed in range(1, 6)]
    outcomes, printed = [], {}
    for task in tasks:
        averaged = column(records, f"{task}_{'+'.join(tasks)}_average_loss_nats")
        found = gain_share(records, task, averaged - column(finals, f"{task}_joint_loss_nats"))
        own = column(records, f"{task}_untuned_loss_nats") - column(records, f"{task}_by_{task}_loss_nats")
        gain = over_examples(own, column(records, f"{task}_label_tokens")[0], groups_of_task(task, 60))
        outcome = verdict_of(found, 0.05, 0, INF)
        sure = outcome != "refuted" or surely_below(found, -0.05, 0.05 / 4)
        outcomes.append(outcome if sure and gain.ends[1] > 0.1 else "undecided")
        printed[f"{task}_lead"] = [100 * end for end in found.ends]
    return raw_rule.of_parts(outcomes), printed


def sorted_by(rank: int, rate: float, seed: int, split: str) -> Raw:
    return probe("reward.sort_by_reward", seed, model="random-llama", rank=rank, rate=rate, split=split)


def reward_rank() -> Found:
    """Test lists sorted by rank 1 less those by all weights, where these surely gained more than the margin.

    Ten seeds, of which five had been looked at.
    """
    finals, chosen = {}, []
    for rank, lowest in ((0, 5e-4), (1, 2.5e-4)):
        wrong = raw_rule.refined(
            lambda rate, rank=rank: 1 - np.mean(
                [sorted_by(rank, rate, seed, "validation")["measurements"]["accuracy"] for seed in (0, 6, 7)]
            ),
            rates(lowest, 2, 4), 2, 0.01,
        )  # fmt: skip
        best, beside = min(wrong, key=wrong.__getitem__), raw_rule.best_and_beside(wrong)
        finals[rank] = [sorted_by(rank, best, seed, "test") for seed in (*range(1, 6), *range(8, 13))]
        lower, upper = (
            [sorted_by(rank, rate, seed, "validation") for seed in (0, 6, 7)] for rate in (beside[0], beside[-1])
        )
        chosen.append(raw_rule.choice(wrong, raw_rule.sweep_noise(finals[rank], lower, upper, "exact")))
    again = partial(replace, first_look=5 / 10)
    found = again(over_examples(column(finals[1], "exact") - column(finals[0], "exact")), choice=math.hypot(*chosen))
    gained = again(over_examples(column(finals[0], "exact") - column(finals[0], "start_exact")))
    outcome = verdict_of(found, 0, -0.05, INF)
    if outcome != "refuted" and gained.ends[1] <= 0.05:
        outcome = "undecided"
    return outcome, {"rank1_minus_full": found.ends, "full_gain": gained.ends}


def expressiveness() -> Found:
    """Models of one layer in which both controls succeed; one in which a prompt or a prefix does refutes."""
    models = [probe("synthetic.sort_by_depth", seed, model="random-llama", depth=1) for seed in range(31, 39)]

    def sorted_lists(records: Sequence[Raw], arm: str) -> Interval:
        return over_examples(column(records, f"{arm}_exact"))

    def solves(record: Raw, arm: str) -> bool:
        return sorted_lists([record], arm).ends[1] > 0.5

    able = [
        record for record in models
        if record["measurements"]["pretrained_ascending_accuracy"] >= 0.9
        and solves(record, "lora4") and solves(record, "prompt_ascending")
    ]  # fmt: skip
    found = {arm: sorted_lists(able, arm) for arm in ("prompt", "prefix", "lora4", "prompt_ascending")}
    better = max(("prompt", "prefix"), key=lambda arm: found[arm].mean)
    solved = any(solves(record, arm) for record in models for arm in ("prompt", "prefix"))
    outcome = "refuted" if solved else "undecided" if len(able) < 3 else verdict_of(found[better], 0, -INF, 0.5)
    shown = (better, "lora4", "prompt_ascending")
    return outcome, {f"able_{arm}_accuracy": np.clip(found[arm].ends, 0, 1) for arm in shown}


# --- gain and forgetting at one target loss: arms are a kind of method and a share of replay -------------------

Way = tuple[str, float]
LORA, OFT, REPLAY = ("lora", 0.0), ("peft", 0.0), ("lora", 0.05)


def watched(way: Way, rate: float, seed: int, split: str) -> Raw:
    """The record of a training that was watched."""
    kind, replay = way
    matching = [
        record for record in raw_rule.every_record()
        if record["spec"].get("measure") == "curves.frontier"
        and raw_rule.agrees(record["spec"], {"seed": seed, "settings": {"replay": replay}})
        and raw_rule.agrees(record["spec"]["runs"][0], {"budget": {"learning_rate": rate}})
        and record["spec"]["runs"][0]["evaluation"]["split"] == split
        and record["spec"]["runs"][0]["method"]["kind"] == kind
    ]  # fmt: skip
    assert len(matching) == 1
    return matching[0]


def unwatched(split: str) -> Raw:
    """The record of the model before any training."""
    return next(
        record for record in raw_rule.every_record()
        if record["spec"].get("measure") == "curves.frontier" and record["spec"]["runs"][0]["budget"] is None
        and record["spec"]["runs"][0]["evaluation"]["split"] == split
    )  # fmt: skip


def nats_along(record: Raw, split: str, name: str) -> np.ndarray:
    """(moments, examples), the first before the training."""
    later = [record["per_example"][f"{name}_nats_{step:.0f}"] for step in record["curve"]["step"]]
    return np.array([unwatched(split)["per_example"][f"{name}_nats_0"], *later])


def frontier_grid(way: Way, lowest: float) -> dict[float, float]:
    """Rate → target loss at the end, on validation."""
    tokens = column([unwatched("validation")], "target_tokens")[0]

    def last(rate: float) -> float:
        record = watched(way, rate, 0, "validation")
        diverged = record["measurements"].get("diverged")
        return INF if diverged else nats_along(record, "validation", "target")[-1].sum() / tokens.sum()

    return raw_rule.extended(last, rates(lowest, 2, 3), 2)


class Paths:
    """Trainings with one seed of several ways, whose general loss is read where all have one target loss."""

    def __init__(self, records: Mapping[Way, Raw], split: str):
        self.nats = {
            way: [nats_along(record, split, name) for name in ("target", "general")] for way, record in records.items()
        }
        first = unwatched(split)
        self.tokens = [column([first], f"{name}_tokens")[0] for name in ("target", "general")]
        self.sources = first["per_example"]["general_source"]

    def losses(self, way: Way, counted: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        each = zip(self.nats[way], self.tokens, counted, strict=True)
        aims, known = (nats @ counts / (tokens @ counts) for nats, tokens, counts in each)
        return aims, known - known[0]

    def added(self, counted: Sequence[np.ndarray], bent: bool = False) -> dict[Way, float]:
        """General loss added by each; with `bent` what a parabola through a third moment has above the line."""
        losses = {way: self.losses(way, counted) for way in self.nats}
        level = max(aims[1:].min() for aims, _ in losses.values())
        return {way: (self.bend if bent else self.on_line)(*each, level) for way, each in losses.items()}

    @staticmethod
    def on_line(aims: np.ndarray, known: np.ndarray, level: float) -> float:
        at = next(at for at in range(1, len(aims)) if aims[at] <= level)
        share = min(1.0, (aims[at - 1] - level) / (aims[at - 1] - aims[at])) if aims[at - 1] > aims[at] else 1.0
        return known[at - 1] + share * (known[at] - known[at - 1])

    @staticmethod
    def bend(aims: np.ndarray, known: np.ndarray, level: float) -> float:
        at = next(at for at in range(1, len(aims)) if aims[at] <= level)
        three = [at - 1, at, at - 2 if at > 1 else at + 1]
        if max(three) >= len(aims) or len(set(aims[three])) < 3:
            return 0.0
        curved, straight = (np.polyval(np.polyfit(aims[among], known[among], len(among) - 1), level)
                            for among in (three, three[:2]))  # fmt: skip
        most = abs(known[at] - known[at - 1])
        return float(np.clip(curved - straight, -most, most))


def at_one_loss(seeds: Sequence[Paths], one: Way, other: Way | None = None) -> Interval:
    """General loss added by one way, less that by another; errors of both kinds of text, and the bend."""
    tokens, whole = seeds[0].tokens, [np.ones(len(each)) for each in seeds[0].tokens]

    def values(counted: Sequence[np.ndarray], bent: bool = False) -> np.ndarray:
        found = [paths.added(counted, bent) for paths in seeds]
        return np.array([each[one] - (each[other] if other else 0.0) for each in found])

    units = [
        raw_rule.units_of(groups_of_task("e2e", len(tokens[0])), len(tokens[0])),
        raw_rule.units_of(seeds[0].sources, len(tokens[1])),
    ]
    lists = [
        [(kept, whole[1]) for kept in raw_rule.leaving_out(units[0])],
        [(whole[0], kept) for kept in raw_rule.leaving_out(units[1])],
    ]
    moved = [math.sqrt(1 - 1 / len(each)) * (values(counted) - values(whole)) for each in lists for counted in each]
    freedom = min(raw_rule.evenness(unit, weights) for unit, weights in zip(units, tokens, strict=True))
    found = raw_rule.spread(values(whole), np.array(moved), 1.0, freedom, min(map(len, lists)))
    return replace(found, bias=abs(float(values(whole, bent=True).mean())))


def below_cliff(way: Way, losses: Mapping[float, float]) -> list[float]:
    """The best rate and those beside it whose target loss ends no higher than at any moment before."""
    along = {
        rate: nats_along(watched(way, rate, 0, "validation"), "validation", "target")[1:].sum(axis=1)
        for rate in raw_rule.best_and_beside(losses)
    }
    return [rate for rate, sums in along.items() if sums[-1] == sums.min()]


def signs_hold(one: Way, other: Way, grids: Mapping[Way, Mapping[float, float]], outcome: str, mean: float) -> str:
    """The outcome, undecided where another rate of either contradicts it."""
    moved = []
    for rates_of_both in itertools.product(*(below_cliff(way, grids[way]) for way in (one, other))):
        pair = {way: watched(way, rate, 0, "validation") for way, rate in zip((one, other), rates_of_both, strict=True)}
        paths = Paths(pair, "validation")
        added = paths.added([np.ones(len(each)) for each in paths.tokens])
        moved.append(added[one] - added[other])
    if outcome == "equivalent":
        return "undecided" if max(map(abs, moved)) > 0.05 else outcome
    return "undecided" if outcome != "undecided" and min(each * mean for each in moved) <= 0 else outcome


def frontier(ways: Sequence[Way], pairs: Mapping[str, tuple[Way, Way]]) -> Found:
    """Each pair's difference in forgetting must be above zero by the margin; for replay no gain may be lost either."""
    grids = {way: frontier_grid(way, 2e-3 if way == OFT else 4e-3) for way in ways}
    finals = {
        way: [watched(way, min(grids[way], key=grids[way].__getitem__), seed, "test") for seed in range(1, 6)]
        for way in ways
    }
    seeds = [Paths({way: finals[way][at] for way in ways}, "test") for at in range(5)]
    outcomes, printed = [], {}
    for name, (one, other) in pairs.items():
        found = at_one_loss(seeds, one, other)
        outcomes.append(signs_hold(one, other, grids, verdict_of(found, 0.05, 0, INF), found.mean))
        printed[name] = found.ends
    if REPLAY in ways:
        last = {way: np.array([nats_along(record, "test", "target")[-1] for record in finals[way]]) for way in ways}
        groups = groups_of_task("e2e", len(last[LORA][0]))
        cost = over_examples(last[REPLAY] - last[LORA], seeds[0].tokens[0], groups)
        spread = {way: over_examples(last[way], seeds[0].tokens[0]).seed_se * math.sqrt(0.65 * 5) for way in last}
        chosen = [raw_rule.choice(grids[way], math.hypot(cost.unit_se, spread[way])) for way in (REPLAY, LORA)]
        cost = replace(cost, choice=math.hypot(*chosen))
        outcomes.append(verdict_of(cost, 0, -INF, 0.02))
        printed["replay_minus_lora_target"] = cost.ends
    forgotten = at_one_loss(seeds, LORA).ends[1] > 0.2
    outcome = outcomes[0] if len(outcomes) == 1 else raw_rule.of_parts(outcomes)
    return outcome if forgotten else "undecided", printed


# study → how it is computed, how its sentence prints the numbers, and the tolerance, above 1e-9 where samples are drawn
ATTENTION_ONLY, MLP_ONLY = lora(26, 52.0, raw_rule.ATTENTION), lora(16, 32.0, raw_rule.MLP)
Q_AND_V, ALL_LAYERS = lora(53, 106.0, ["q_proj", "v_proj"]), lora(10, 20.0)
CASES: dict[str, tuple[Callable[[], Found], str, float]] = {
    "methods": (methods, "+.3f", 1e-9),
    "rank": (rank, "+.3f", 1e-9),
    "dora": (dora, "+.3f", 1e-9),
    "targets": (lambda: targets(ATTENTION_ONLY, MLP_ONLY, "attention_minus_mlp"), "+.3f", 1e-7),
    "targets_all": (lambda: targets(Q_AND_V, ALL_LAYERS, "query_value_minus_all"), "+.3f", 1e-7),
    "prompt_length": (lambda: prompts((1, "vocabulary"), (20, "vocabulary"), (0.02, INF)), "+.3f", 1e-9),
    "prompt_longer": (lambda: prompts((20, "vocabulary"), (100, "vocabulary"), (-INF, 0.02)), "+.3f", 1e-9),
    "prompt_init": (lambda: prompts((100, "random"), (100, "vocabulary"), (0.02, INF)), "+.3f", 1e-9),
    "loftq": (loftq, "+.3f", 1e-7),
    "sql_prompt": (lambda: sql("prompt", "fewshot"), "+.3f", 1e-9),
    "sql_lora": (lambda: sql("lora", "prompt"), "+.3f", 1e-9),
    "data_size": (data_size, "+.3f", 1e-9),
    "forgetting": (forgetting, "+.3f", 1e-9),
    "merging_quality": (merging_quality, "+.2f", 1e-9),
    "double_quant_loss": (double_quant_loss, "", 1e-9),
    "weight_error_order": (weight_error_order, "+.4f", 1e-9),
    "subspace": (subspace, ".3f", 1e-9),
    "costs": (costs, ".2f", 1e-9),
    "learning_rate": (lambda: learning_rate(34_000, (0, 10, 11), "r16_over_full"), ".1f", 0.02),
    "learning_rate_long": (lambda: learning_rate(340_000, (0,), "long_ratio"), "", 0.02),
    "serving": (serving, "", 0.01),
    "codebooks_squared": (lambda: codebooks("lloyd_pinned", "mse"), "+.2%", 1e-9),
    "codebooks_absolute": (lambda: codebooks("l1_pinned", "mae"), "+.2%", 1e-9),
    "bertscore_negation": (bertscore_negation, "+.3f", 1e-9),
    "qlora_7b_memory": (qlora_7b_memory, ".2f", 1e-9),
    "averaging": (averaging, ".0f", 1e-9),
    "joint_adapter": (joint_adapter, "+.0f", 0.01),
    "reward_rank": (reward_rank, "+.3f", 1e-9),
    "expressiveness": (expressiveness, "", 1e-9),
    "frontier": (lambda: frontier((LORA, OFT), {"lora_minus_oft": (LORA, OFT)}), "+.3f", 1e-9),
    "replay": (
        lambda: frontier((LORA, OFT, REPLAY), {"oft_minus_replay": (OFT, REPLAY), "lora_minus_replay": (LORA, REPLAY)}),
        "+.3f", 1e-9,
    ),
}  # fmt: skip
# whose sources name a size, a length or bits of reward a weight that these runs are far from
REGIME = ("prompt_longer", "subspace", "reward_rank")


if __name__ == "__main__":
    for study in sys.argv[1:] or CASES:
        outcome, numbers = CASES[study][0]()
        print(study, outcome, *(f"{name} {ends}" for name, ends in numbers.items()), sep="\n  ")
