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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from peftbook.core.records import Missing, Record, Store
from peftbook.core.specs import Run
from peftbook.evidence import comparison, stats
from peftbook.evidence.comparison import keys_of
from peftbook.evidence.comparison import table as table  # for chapters
from peftbook.evidence.sweep import interleave
from peftbook.methods import Method
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.methods.qlora import QLoRA
from peftbook.methods.untuned import Untuned
from peftbook.studies import Quantity, Verdict, available, margins, study
from peftbook.studies.tuned_comparison import Arm, TunedComparison, decide, score_quantities
from peftbook.tasks import test_groups

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
SEEDS = (1, 2, 3)
TOKENS = 48_000
SHOTS = 5
TEST_EXAMPLES = 200
MARGIN_NATS, MARGIN_ROUGE = margins.LOSS, margins.ROUGE
PAIRS = (
    *((name, "untuned") for name in LABELS if name != "untuned"),
    ("lora", "full"), ("qlora", "lora"), ("prompt", "lora"), ("prompt", "fewshot"), ("lora", "fewshot"),
    ("qlora", "full"), ("prompt", "full"),
)  # fmt: skip


def arm(name: str) -> Arm:
    """One contender with its grid, default · 3^k, to three significant digits so that the spec reads well."""
    if name not in ARMS:
        return Arm(name, LABELS[name], Untuned(shots=SHOTS if name == "fewshot" else 0))
    default = DEFAULT_RATES[name]
    rates = tuple(float(f"{default * FACTOR**exponent:.3g}") for exponent in EXPONENTS[name])
    return Arm(name, LABELS[name], ARMS[name], rates, default)


class HeadToHead(TunedComparison):
    """Texts are decoded in float32. Five examples are drawn once: that arm is one prompt, without a spread of draws."""

    def final_runs(self, arm: Arm, store: Store) -> list[Run]:
        """The arm's runs whose test texts are compared. Raises Missing until its rate is chosen."""
        runs = super().final_runs(arm, store)[: 1 if arm.method.examples_shown else None]
        evaluation = runs[0].evaluation.model_copy(update={"generation_dtype": "fp32"})
        return [run.model_copy(update={"evaluation": evaluation}) for run in runs]


plan = HeadToHead(
    task="docstrings",
    tokens=TOKENS,
    arms=tuple(map(arm, LABELS)),
    factor=FACTOR,
    seeds=SEEDS,
    sweep_examples=200,
    test_examples=TEST_EXAMPLES,
    generate=TEST_EXAMPLES,
)
best_rate, final_records = plan.best_rate, plan.finals


def final_runs(name: str, store: Store) -> list[Run]:
    """The arm's runs on the test split. Raises Missing until its rate is chosen."""
    return plan.final_runs(plan.arm(name), store)


def runs(store: Store) -> list[Run]:
    """Baselines, then the sweeps round-robin, then the final runs of the chosen arms seed by seed, then few-shot."""
    plans = [plan.tuning(plan.arm(name)).plan(store.get) for name in ARMS]
    finals = available(lambda name: final_runs(name, store), ARMS)
    sweeps = interleave([[run for trial in found.values() for run in trial] for found in plans])
    return [*final_runs("untuned", store), *sweeps, *interleave(finals), *final_runs("fewshot", store)]


def groups() -> tuple[str, ...]:
    """The package of each test example."""
    return test_groups("docstrings", TEST_EXAMPLES)


def score(records: list[Record], column: str) -> stats.Interval:
    """An arm's score over its seeds and the test examples."""
    return comparison.score(records, column, groups())


def paired(first: list[Record], second: list[Record], column: str) -> stats.Interval:
    """first − second over shared seeds and test examples; one run without randomness is set against every seed."""
    return comparison.paired(first, second, column, groups())


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Every named result of the study that its records determine."""
    out: dict[str, Quantity] = {}
    for one in plan.arms:
        out |= plan.sweep_quantities(one, store)
        with suppress(Missing):
            out |= arm_quantities(one.name, final_records(one.name, store))
    for first, second in PAIRS:
        out |= plan.paired(first, second, store)
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
    nats, rouge = (plan.difference("lora", "full", column, store) for column in ("loss_nats", "rougeL"))
    found = decide(nats, 0.0, (-math.inf, MARGIN_NATS), what, "lora_minus_full_loss", "nats per token")
    in_rouge = stats.judge(rouge, 0.0, (-MARGIN_ROUGE, math.inf))
    beside = f"In ROUGE-L it is {rouge:+.3f} (margin {MARGIN_ROUGE}): {in_rouge}."
    return replace(
        found, sentence=f"{found.sentence} {beside}", quantities=(*found.quantities, "lora_minus_full_rougeL")
    )
