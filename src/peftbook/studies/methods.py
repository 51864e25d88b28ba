"""Head to head: untuned, five examples in the prompt, full, LoRA, QLoRA and prompt tuning on docstrings.

Written before the runs. Every tuned arm gets the same tuning budget: its default learning rate and three others, a
factor of 3 apart, one seed, chosen on validation loss; where the best lies at the edge of the grid the grid is
extended until it lies inside. The chosen rate is then trained with three fresh seeds and the test split is generated
once for each; the default is judged by its sweep run. The arm with five examples in the prompt was planned as three
draws and cut to one for time while its first run was under way, before it had a result.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from peftbook.core import specs
from peftbook.core.records import Missing, Record, Store, Unusable
from peftbook.core.specs import Run
from peftbook.core.tracking import untracked
from peftbook.evidence import comparison, stats
from peftbook.evidence.comparison import keys_of, table
from peftbook.evidence.sweep import Sweep, best_of, interleave, validation_loss
from peftbook.methods import Method
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.qlora import QLoRA
from peftbook.methods.untuned import Untuned
from peftbook.studies import Quantity, Verdict, available, gathered, margins, study
from peftbook.studies.tuned_comparison import decide, score_quantities
from peftbook.tasks import get_task, split_groups, test_groups

__all__ = ["ARMS", "SEEDS", "best_rate", "final_runs", "sweep", "table", "tuning", "validation_loss"]

ARMS: dict[str, Method] = {"full": Full(), "lora": LoRA(), "qlora": QLoRA(), "prompt": PromptTuning()}
LABELS = {
    "untuned": "Untuned",
    "fewshot": "Five examples in the prompt",
    "full": "Full fine-tuning",
    "lora": "LoRA",
    "qlora": "QLoRA (NF4, double quantisation)",
    "prompt": "Prompt tuning",
}
# Defaults: transformers' Trainer 5e-5; Hu et al. 2021, Table 11, and Dettmers et al. 2023, Table 9, 2e-4;
# Lester et al. 2021, section 3.1, 0.3. The grid is default · 3^k for the four exponents k of each arm.
DEFAULT_RATES = {"full": 5e-5, "lora": 2e-4, "qlora": 2e-4, "prompt": 0.3}
EXPONENTS = {"full": (-1, 0, 1, 2), "lora": (-1, 0, 1, 2), "qlora": (-1, 0, 1, 2), "prompt": (-3, -2, -1, 0)}
FACTOR = 3.0
MAX_EXPONENT = 5  # the extension stops here even if the loss still falls
SWEEP_SEED = 0
SEEDS = (1, 2, 3)
SHOT_SEED = 1  # draws the five examples, once: the arm is this one prompt, its spread over draws is not measured
TOKENS = 48_000
SHOTS = 5
SWEEP_EXAMPLES, TEST_EXAMPLES = 200, 200
MARGIN_NATS, MARGIN_ROUGE = margins.LOSS, margins.ROUGE


def rate(arm: str, exponent: int) -> float:
    """default · 3^exponent, to three significant digits (so that the spec reads well)."""
    return float(f"{DEFAULT_RATES[arm] * FACTOR**exponent:.3g}")


def sweep_run(arm: str, exponent: int, seed: int = SWEEP_SEED) -> Run:
    """One point of an arm's learning-rate sweep: validation loss only."""
    return Run(
        task=get_task("docstrings").spec,
        method=ARMS[arm],
        budget=specs.Budget(tokens=TOKENS, learning_rate=rate(arm, exponent)),
        evaluation=specs.Evaluation(split="validation", n_loss=SWEEP_EXAMPLES),
        seed=seed,
    )


def tuning(arm: str, further: Sequence[int] = ()) -> Sweep[Run]:
    """The sweep that chooses the arm's rate, over exponents; further: as of `TunedComparison.tuning`."""
    more = functools.partial(sweep_runs, arm, further)
    return Sweep(
        functools.partial(sweep_runs, arm, [SWEEP_SEED]),
        EXPONENTS[arm],
        longer,
        further=more,
        position=lambda k: math.log(rate(arm, int(k))),
    )


def sweep_runs(arm: str, seeds: Sequence[int], exponent: float) -> list[Run]:
    """The runs of a rate with these seeds."""
    return [sweep_run(arm, int(exponent), seed) for seed in seeds]


def longer(losses: Mapping[float, float]) -> list[float]:
    """The exponents, and one more beyond the best if that is an end."""
    exponents, best = list(losses), best_of(losses)
    if best == exponents[0] and best > -MAX_EXPONENT - 3:
        return [best - 1, *exponents]
    return [*exponents, best + 1] if best == exponents[-1] and best < MAX_EXPONENT else exponents


def sweep(arm: str, store: Store) -> dict[int, Record]:
    """Exponent → record of the sweep and of further rates at hand, in order of the rate. Raises Missing."""
    tuning(arm).losses(store.get)
    every = {k: store.get(sweep_run(arm, k)) for k in range(-MAX_EXPONENT - 3, MAX_EXPONENT + 1)}
    return {exponent: record for exponent, record in every.items() if record is not None}


def best_rate(arm: str, store: Store) -> float:
    """The rate with the lowest validation loss. Raises Missing until the whole sweep is there."""
    return rate(arm, int(tuning(arm).best(store.get)))


def final_runs(arm: str, store: Store) -> list[Run]:
    """The runs on fresh seeds whose test texts are compared. Raises Missing until the arm's rate is chosen."""
    evaluation = specs.Evaluation(split="test", n_loss=TEST_EXAMPLES, n_generate=TEST_EXAMPLES)
    task = get_task("docstrings").spec
    if arm == "untuned":
        return [Run(task=task, method=Untuned(), evaluation=evaluation)]
    if arm == "fewshot":
        return [Run(task=task, method=Untuned(shots=SHOTS), evaluation=evaluation, seed=SHOT_SEED)]
    with untracked():
        budget = specs.Budget(tokens=TOKENS, learning_rate=best_rate(arm, store))
    return [Run(task=task, method=ARMS[arm], budget=budget, evaluation=evaluation, seed=seed) for seed in SEEDS]


def runs(store: Store) -> list[Run]:
    """Baselines, then the sweeps round-robin, then the final runs of the chosen arms seed by seed, then few-shot."""
    grids = [[sweep_run(arm, int(k)) for k in tuning(arm).rates(store.get)] for arm in ARMS]
    finals = available(lambda arm: final_runs(arm, store), ARMS)
    return [*final_runs("untuned", store), *interleave(grids), *interleave(finals), *final_runs("fewshot", store)]


def final_records(arm: str, store: Store) -> list[Record]:
    """The arm's final records, seed order. Raises Missing where one is not there, Unusable where one diverged."""
    records = store.need_all(final_runs(arm, store))
    if failed := [record for record in records if record.failure]:
        raise Unusable(failed[0].spec, f"{LABELS[arm]} diverged at the chosen rate with seed {failed[0].spec.seed}.")
    return records


def groups() -> tuple[str, ...]:
    """The package of each test example."""
    return test_groups("docstrings", TEST_EXAMPLES)


def score(records: list[Record], column: str) -> stats.Interval:
    """An arm's score over its seeds and the test examples."""
    return comparison.score(records, column, groups())


def paired(first: list[Record], second: list[Record], column: str) -> stats.Interval:
    """first − second over shared seeds and test examples; one run without randomness is set against every seed."""
    return comparison.paired(first, second, column, groups())


def difference(first: str, second: str, column: str, store: Store) -> stats.Interval:
    """`paired` of two arms' final records; of losses, with the choice of rates. Raises Missing."""
    records = {arm: final_records(arm, store) for arm in (first, second)}
    tuned = [arm for arm in records if arm in ARMS and column == "loss_nats"]
    with untracked():
        units = split_groups("docstrings", "validation", SWEEP_EXAMPLES)
        errors = [comparison.choice_error(tuning(arm), records[arm], column, store.get, units) for arm in tuned]
    return stats.with_choice(paired(records[first], records[second], column), *errors)


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Every named result of the study that its records determine."""
    out = gathered(lambda arm: sweep_quantities(arm, store), ARMS)
    finals: dict[str, list[Record]] = {}
    for arm in LABELS:
        with suppress(Missing):
            finals[arm] = final_records(arm, store)
            out |= arm_quantities(arm, finals[arm])
    pairs = [(arm, "untuned") for arm in finals if arm != "untuned"]
    for first, second in (
        *pairs,
        ("lora", "full"),
        ("qlora", "lora"),
        ("prompt", "lora"),
        ("prompt", "fewshot"),
        ("lora", "fewshot"),
        ("qlora", "full"),
        ("prompt", "full"),
    ):
        if first in finals and second in finals:
            both = finals[first], finals[second]
            each = functools.partial(difference, first, second, store=store)
            out |= score_quantities(f"{first}_minus_{second}", both[0], each, keys_of(*both), least=-1.0)
    return out


def sweep_quantities(arm: str, store: Store) -> dict[str, Quantity]:
    """Chosen and default rate with their validation losses, and how many runs the tuning took. Raises Missing."""
    chosen, found = best_rate(arm, store), sweep(arm, store)
    keys = keys_of(list(found.values()))
    best = min(found, key=lambda k: validation_loss(found[k]))
    out = {
        f"{arm}_best_rate": Quantity(chosen, "", keys, digits=-2, seeds=1),
        f"{arm}_default_rate": Quantity(DEFAULT_RATES[arm], "", (found[0].key,), digits=-2, seeds=1),
        f"{arm}_sweep_runs": Quantity(len(found), "runs", keys, digits=0, seeds=1),
    }
    for name, exponent in (("best", best), ("default", 0)):
        loss, key = validation_loss(found[exponent]), found[exponent].key
        out[f"{arm}_{name}_validation_loss"] = Quantity(loss, "nats per token", (key,), seeds=1, n=200, digits=3)
    return out


def arm_quantities(arm: str, records: list[Record]) -> dict[str, Quantity]:
    """An arm's test scores with intervals, its size and its counts."""
    keys, first, loss = keys_of(records), records[0], score(records, "loss_nats")
    perplexity = Quantity.ratio(loss, keys, 2, unit="")
    scores = score_quantities(arm, records, functools.partial(score, records), keys)
    out = {f"{arm}_loss": scores[f"{arm}_loss"], f"{arm}_perplexity": perplexity} | scores
    trainable, total = (int(first.measurements[f"{which}_parameters"] or 0) for which in ("trainable", "total"))
    out[f"{arm}_trainable_parameters"] = Quantity(trainable, "parameters", keys[:1], digits=0)
    out[f"{arm}_trainable_percent"] = Quantity(100 * trainable / total, "%", keys[:1], digits=3)
    out[f"{arm}_adapter_bytes"] = Quantity(4 * trainable, "bytes", keys[:1], digits=0)
    if isinstance(first.spec, Run) and first.spec.budget is not None:
        out[f"{arm}_train_tokens"] = Quantity(first.measurements["train_tokens"] or 0, "tokens", keys[:1], digits=0)
        out[f"{arm}_train_steps"] = Quantity(first.measurements["train_steps"] or 0, "steps", keys[:1], digits=0)
    return out


@study("methods", runs, quantities)
def verdict(store: Store) -> Verdict:
    """Is LoRA's test loss within the margin of full fine-tuning's, or better? ROUGE-L is told beside it."""
    what = "LoRA's test loss minus full fine-tuning's"
    nats, rouge = (difference("lora", "full", column, store) for column in ("loss_nats", "rougeL"))
    found = decide(nats, 0.0, (-math.inf, MARGIN_NATS), what, "lora_minus_full_loss", "nats per token")
    in_rouge = stats.judge(rouge, 0.0, (-MARGIN_ROUGE, math.inf))
    beside = f"In ROUGE-L it is {rouge:+.3f} (margin {MARGIN_ROUGE}): {in_rouge}."
    return replace(
        found, sentence=f"{found.sentence} {beside}", quantities=(*found.quantities, "lora_minus_full_rougeL")
    )
