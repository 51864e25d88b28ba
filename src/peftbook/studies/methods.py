"""Head to head: untuned, five examples in the prompt, full, LoRA, QLoRA and prompt tuning on docstrings.

Written before the runs. Every tuned arm gets the same tuning budget: its default learning rate and three others, a
factor of 3 apart, one seed, chosen on validation loss; where the best lies at the edge of the grid the grid is
extended until it lies inside. The chosen rate is then trained with three fresh seeds and the test split is generated
once for each; the default is judged by its sweep run. The arm with five examples in the prompt was planned as three
draws and cut to one for time while its first run was under way, before it had a result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from peftbook import metrics, specs
from peftbook.methods import Method
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.qlora import QLoRA
from peftbook.methods.untuned import Untuned
from peftbook.records import Record, Store
from peftbook.specs import Run
from peftbook.studies import Quantity, Study, Verdict
from peftbook.tasks import get_task

__all__ = ["ARMS", "SEEDS", "STUDY", "best_rate", "final_runs", "sweep"]

ARMS: dict[str, Method] = {
    "full": Full(),
    "lora": LoRA(),
    "qlora": QLoRA(),
    "prompt": PromptTuning(),
}
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
TEST_EXAMPLES = 200
MARGIN_NATS = 0.05
MARGIN_ROUGE = 0.02
SCORES = ("rouge1", "rouge2", "rougeL", "bertscore_f1", "exact_match")


def rate(arm: str, exponent: int) -> float:
    """default · 3^exponent, to three significant digits (so that the spec reads well)."""
    return float(f"{DEFAULT_RATES[arm] * FACTOR**exponent:.3g}")


def sweep_run(arm: str, exponent: int) -> Run:
    """One point of an arm's learning-rate sweep: validation loss only."""
    return Run(
        task=get_task("docstrings").spec,
        method=ARMS[arm],
        budget=specs.Budget(tokens=TOKENS, learning_rate=rate(arm, exponent)),
        evaluation=specs.Evaluation(split="validation", n_loss=200),
        seed=SWEEP_SEED,
    )


def sweep(arm: str, store: Store) -> dict[int, Record]:
    """Exponent → record of the sweep runs at hand, extensions included, in order of the rate."""
    found: dict[int, Record] = {}
    for exponent in range(-MAX_EXPONENT - 3, MAX_EXPONENT + 1):
        if (record := store.get(sweep_run(arm, exponent))) is not None:
            found[exponent] = record
    return found


def validation_loss(record: Record) -> float:
    """Validation loss of a record, infinite for a run that diverged."""
    return math.inf if record.failure else float(record.measurements["loss_nats"] or math.inf)


def sweep_exponents(arm: str, store: Store) -> list[int]:
    """The grid, extended by one point beyond the edge at which the best run lies, as often as needed."""
    exponents = list(EXPONENTS[arm])
    while True:
        found = {k: record for k in exponents if (record := store.get(sweep_run(arm, k))) is not None}
        if len(found) < len(exponents):
            return exponents
        best = min(found, key=lambda k: validation_loss(found[k]))
        if best == exponents[0] and best > -MAX_EXPONENT - 3:
            exponents.insert(0, best - 1)
        elif best == exponents[-1] and best < MAX_EXPONENT:
            exponents.append(best + 1)
        else:
            return exponents


def best_rate(arm: str, store: Store) -> float | None:
    """The rate with the lowest validation loss once the whole sweep is there, else None."""
    exponents = sweep_exponents(arm, store)
    found = sweep(arm, store)
    if any(k not in found for k in exponents):
        return None
    return rate(arm, min(exponents, key=lambda k: validation_loss(found[k])))


def final_runs(arm: str, store: Store) -> list[Run]:
    """The runs on fresh seeds whose test texts are compared; empty until the arm's rate is chosen."""
    evaluation = specs.Evaluation(split="test", n_loss=TEST_EXAMPLES, n_generate=TEST_EXAMPLES)
    task = get_task("docstrings").spec
    if arm == "untuned":
        return [Run(task=task, method=Untuned(), evaluation=evaluation)]
    if arm == "fewshot":
        return [Run(task=task, method=Untuned(shots=SHOTS), evaluation=evaluation, seed=SHOT_SEED)]
    chosen = best_rate(arm, store)
    if chosen is None:
        return []
    budget = specs.Budget(tokens=TOKENS, learning_rate=chosen)
    return [Run(task=task, method=ARMS[arm], budget=budget, evaluation=evaluation, seed=seed) for seed in SEEDS]


def runs(store: Store) -> list[Run]:
    """Baselines, then the sweeps round-robin, then the final runs of the chosen arms seed by seed, then few-shot."""
    first = final_runs("untuned", store)
    grids = {arm: sweep_exponents(arm, store) for arm in ARMS}
    for position in range(max(map(len, grids.values()))):
        first += [sweep_run(arm, grid[position]) for arm, grid in grids.items() if position < len(grid)]
    finals = [final_runs(arm, store) for arm in ARMS]
    return first + [arm[at] for at in range(len(SEEDS)) for arm in finals if arm] + final_runs("fewshot", store)


def final_records(arm: str, store: Store) -> list[Record]:
    """The arm's final records, seed order; empty unless all are there."""
    wanted = final_runs(arm, store)
    found = [record for run in wanted if (record := store.get(run)) is not None and not record.failure]
    return found if wanted and len(found) == len(wanted) else []


def table(records: list[Record], name: str) -> list[list[float]]:
    """(seeds, examples) scores; one seed stands for all where a method has no randomness."""
    rows = [[float(value) for value in record.per_example[name]] for record in records]
    return rows * len(SEEDS) if len(rows) == 1 else rows


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Every named result of the study that its records determine."""
    out: dict[str, Quantity] = {}
    finals = {arm: records for arm in LABELS if (records := final_records(arm, store))}
    for arm in ARMS:
        out |= sweep_quantities(arm, store)
    for arm, records in finals.items():
        out |= arm_quantities(arm, records)
    for arm in finals:
        if arm != "untuned" and "untuned" in finals:
            out |= paired_quantities(f"{arm}_minus_untuned", finals[arm], finals["untuned"])
    for first, second in (("lora", "full"), ("qlora", "lora"), ("prompt", "lora"), ("prompt", "fewshot"),
                          ("lora", "fewshot"), ("qlora", "full"), ("prompt", "full")):  # fmt: skip
        if first in finals and second in finals:
            out |= paired_quantities(f"{first}_minus_{second}", finals[first], finals[second])
    return out


def sweep_quantities(arm: str, store: Store) -> dict[str, Quantity]:
    """Chosen and default rate with their validation losses, and how many runs the arm's tuning took."""
    chosen = best_rate(arm, store)
    found = sweep(arm, store)
    if chosen is None:
        return {}
    keys = tuple(record.key for record in found.values())
    best = min(found, key=lambda k: validation_loss(found[k]))
    out = {
        f"{arm}_best_rate": Quantity(chosen, "", keys, digits=-2, seeds=1),
        f"{arm}_default_rate": Quantity(DEFAULT_RATES[arm], "", (found[0].key,), digits=-2, seeds=1),
        f"{arm}_sweep_runs": Quantity(len(found), "runs", keys, digits=0, seeds=1),
    }
    for name, exponent in (("best", best), ("default", 0)):
        loss = validation_loss(found[exponent])
        out[f"{arm}_{name}_validation_loss"] = Quantity(
            loss, "nats per token", (found[exponent].key,), seeds=1, n=200, digits=3
        )
    return out


def arm_quantities(arm: str, records: list[Record]) -> dict[str, Quantity]:
    """An arm's test scores with intervals, its size and its counts."""
    keys = tuple(record.key for record in records)
    first = records[0]
    out: dict[str, Quantity] = {}
    weights = [float(value) for value in first.per_example["label_tokens"]]
    loss = metrics.mean_interval(table(records, "loss_nats"), weights)
    out[f"{arm}_loss"] = quantity(loss, "nats per token", keys, len(records), 3)
    mean, low, high = (math.exp(value) for value in (loss.mean, loss.low, loss.high))
    out[f"{arm}_perplexity"] = Quantity(mean, "", keys, low, high, len(records), loss.examples, 2)
    for name in SCORES:
        interval = metrics.mean_interval(table(records, name))
        out[f"{arm}_{name}"] = quantity(interval, "", keys, len(records), 3)
    trainable, total = (int(first.measurements[f"{which}_parameters"] or 0) for which in ("trainable", "total"))
    out[f"{arm}_trainable_parameters"] = Quantity(trainable, "parameters", keys[:1], digits=0)
    out[f"{arm}_trainable_percent"] = Quantity(100 * trainable / total, "%", keys[:1], digits=3)
    out[f"{arm}_adapter_bytes"] = Quantity(4 * trainable, "bytes", keys[:1], digits=0)
    if isinstance(first.spec, Run) and first.spec.budget is not None:
        out[f"{arm}_train_tokens"] = Quantity(first.measurements["train_tokens"] or 0, "tokens", keys[:1], digits=0)
        out[f"{arm}_train_steps"] = Quantity(first.measurements["train_steps"] or 0, "steps", keys[:1], digits=0)
    return out


def paired_quantities(name: str, first: list[Record], second: list[Record]) -> dict[str, Quantity]:
    """Paired differences over shared seeds and test examples: loss, ROUGE-L, BERTScore, exact match."""
    keys = tuple(record.key for record in [*first, *second])
    weights = [float(value) for value in first[0].per_example["label_tokens"]]
    out = {}
    for score, unit in (("loss", "nats per token"), *((score, "") for score in SCORES)):
        column = "loss_nats" if score == "loss" else score
        interval = metrics.paired_interval(
            table(first, column), table(second, column), weights if score == "loss" else None
        )
        out[f"{name}_{score}"] = quantity(interval, unit, keys, max(len(first), len(second)), 3)
    return out


def quantity(interval: metrics.Interval, unit: str, runs: tuple[str, ...], seeds: int, digits: int) -> Quantity:
    """An interval as a named quantity."""
    return Quantity(interval.mean, unit, runs, interval.low, interval.high, seeds, interval.examples, digits)


def verdict(store: Store) -> Verdict:
    """Is LoRA's test loss within the margin of full fine-tuning's, or better? ROUGE-L is told beside it."""
    lora, full = final_records("lora", store), final_records("full", store)
    if not lora or not full:
        return Verdict("not yet run", "The final runs of LoRA and full fine-tuning are not all there.")
    weights = [float(value) for value in lora[0].per_example["label_tokens"]]
    difference = metrics.paired_interval(table(lora, "loss_nats"), table(full, "loss_nats"), weights)
    outcome = metrics.judge(difference, 0.0, (-math.inf, MARGIN_NATS))  # the claim holds the margin already
    rouge = metrics.paired_interval(table(lora, "rougeL"), table(full, "rougeL"))
    in_rouge = metrics.judge(rouge, 0.0, (-MARGIN_ROUGE, math.inf))
    sentence = (
        f"LoRA's test loss minus full fine-tuning's is {difference.mean:+.3f} nats per token "
        f"(95 % interval {difference.low:+.3f} to {difference.high:+.3f}; margin {MARGIN_NATS}). In ROUGE-L it is "
        f"{rouge.mean:+.3f} ({rouge.low:+.3f} to {rouge.high:+.3f}; margin {MARGIN_ROUGE}): {in_rouge}."
    )
    return Verdict(outcome, sentence, ("lora_minus_full_loss", "lora_minus_full_rougeL"))


STUDY = Study(
    name="methods",
    title="Head to head: which method for one small task?",
    claim="LoRA matches full fine-tuning while training a small share of the parameters.",
    source="hu2021, Table 3",
    refuted_if=f"LoRA's test loss is worse than full fine-tuning's by more than {MARGIN_NATS} nats per token "
    "(the whole 95 % interval beyond the margin).",
    does_not_show="One model of 135M parameters that comes from a 4-bit file, one task, one budget; "
    "larger models, longer training and other tasks may order the methods differently.",
    chapter="book/head-to-head",
    runs=runs,
    quantities=quantities,
    verdict=verdict,
)

STUDIES = {STUDY.name: STUDY}
