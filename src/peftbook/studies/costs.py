"""What a training step costs: seconds and peak memory by method, on one named machine.

Timing runs have the machine to themselves; their records carry its name, so that a reader's machine adds its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from peftbook import specs
from peftbook.records import Record, Store
from peftbook.specs import Run
from peftbook.studies import Quantity, Study, Verdict
from peftbook.studies.methods import ARMS
from peftbook.tasks import get_task

__all__ = ["MACHINE", "REPEATS", "STUDY", "arm_records"]

MACHINE = "Intel(R) Xeon(R) Processor, 2 cores"  # the machine whose records ship
REPEATS = (0, 1, 2)
TOKENS = 8_000
RATES = {"full": 5e-5, "lora": 2e-4, "qlora": 2e-4, "prompt": 0.03}


def timing_run(arm: str, seed: int, machine: str = MACHINE) -> Run:
    """Some steps of training at the batch of the methods study, and the smallest evaluation."""
    return Run(
        task=get_task("docstrings").spec,
        method=ARMS[arm],
        budget=specs.Budget(tokens=TOKENS, learning_rate=RATES[arm]),
        evaluation=specs.Evaluation(n_loss=1),
        seed=seed,
        purpose="timing",
        machine=machine,
    )


def runs(store: Store) -> list[Run]:
    """Repeats round-robin over the arms, so that a slow minute of the machine touches all of them."""
    return [timing_run(arm, seed) for seed in REPEATS for arm in ARMS]


def arm_records(arm: str, store: Store) -> list[Record]:
    """The arm's timing records at hand."""
    return [record for seed in REPEATS if (record := store.get(timing_run(arm, seed))) is not None]


def quantities(store: Store) -> Mapping[str, Quantity]:
    """Median, fastest and slowest of the repeats, for step time, speed and peak memory; ratios to LoRA's median."""
    out: dict[str, Quantity] = {}
    for arm in ARMS:
        records = arm_records(arm, store)
        if len(records) < len(REPEATS):
            continue
        keys = tuple(record.key for record in records)
        for name, field, unit, digits in (
            ("step_seconds", "median_step_seconds", "s", 2),
            ("tokens_per_second", "train_tokens_per_second", "tokens/s", 0),
            ("peak_memory", "peak_memory_bytes", "bytes", 2),
        ):
            values = sorted(float(record.measurements[field] or 0) for record in records)
            middle = values[len(values) // 2]
            low, high = (None, None) if unit == "bytes" else (values[0], values[-1])
            note = "median and range of the repeats"
            out[f"{arm}_{name}"] = Quantity(middle, unit, keys, low, high, len(values), digits=digits, note=note)
    for arm in ARMS:
        for name in ("step_seconds", "peak_memory"):
            if f"{arm}_{name}" in out and f"lora_{name}" in out and arm != "lora":
                one, base = out[f"{arm}_{name}"], out[f"lora_{name}"]
                out[f"{arm}_over_lora_{name}"] = Quantity(
                    one.value / base.value, "×", one.runs + base.runs, seeds=len(REPEATS), digits=2
                )
    return out


def verdict(store: Store) -> Verdict:
    """Does QLoRA need less peak memory than LoRA here?"""
    found = quantities(store)
    if "qlora_peak_memory" not in found or "lora_peak_memory" not in found:
        return Verdict("not yet run", "The timing runs of LoRA and QLoRA are not all there.")
    low = [max(float(r.measurements["peak_memory_bytes"] or 0) for r in arm_records("qlora", store))]
    high = [min(float(r.measurements["peak_memory_bytes"] or 0) for r in arm_records("lora", store))]
    ratio = found["qlora_over_lora_peak_memory"].value
    outcome = "reproduced" if low[0] < high[0] else "refuted"
    return Verdict(
        outcome,
        f"At 135M parameters QLoRA's peak process memory is {ratio:.2f} times LoRA's on {MACHINE}.",
        ("qlora_over_lora_peak_memory",),
    )


STUDY = Study(
    name="costs",
    title="What does a training step cost?",
    claim="QLoRA trains in less memory than LoRA on an unquantised base.",
    source="dettmers2023, abstract",
    refuted_if="every repeat of QLoRA has a peak process memory at or above the lowest of LoRA's repeats "
    "at this size, batch and sequence length.",
    does_not_show="At 135M parameters activations and logits dominate, and a CPU process counts its libraries too; "
    "at 7B the weights dominate. Times are this machine's.",
    chapter="book/head-to-head",
    runs=runs,
    quantities=quantities,
    verdict=verdict,
)

STUDIES = {STUDY.name: STUDY}
