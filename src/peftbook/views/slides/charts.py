"""The deck's charts by name, described beside the figures of the same numbers; `native` draws them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from peftbook.core.errors import InputError
from peftbook.core.records import Store
from peftbook.evidence import results
from peftbook.evidence.chart import Chart
from peftbook.methods import arm_looks
from peftbook.studies import Quantity, methods, prompt_design
from peftbook.views import figures
from peftbook.views.figures.charts import differences, forest
from peftbook.views.figures.parts import LOSS
from peftbook.views.placeholders import ends


def arm_differences(score: str, base: str, axis: str, store: Store) -> Chart:
    """Docstrings: every method's test score minus that of `base`, paired, lowest on top; but for the untuned model."""
    found = {arm: methods.final_records(arm, store) for arm in methods.LABELS if arm != "untuned"}
    of_base = found.pop(base)
    rows = [
        (arm_looks()[arm].label, arm, figures.methods.difference(records, of_base, score)[0])
        for arm, records in found.items()
    ]
    return differences(sorted(rows, key=lambda row: row[2].mean), axis)


def cost_ratios(store: Store) -> Chart:
    """Time and peak memory of a training step over LoRA's, paired by repeat: how far from one, in per cent."""
    names = {"time": "step_seconds", "memory": "peak_memory"}
    found = []
    for arm in ("full", "qlora", "prompt"):
        for what, name in names.items():
            one = results.quantity(f"costs.{arm}_over_lora_{name}", store)
            value, low, high = (100 * (end - 1) for end in (one.value, *ends(one)))
            found.append((f"{arm_looks()[arm].label}, {what}", arm, Quantity(value, "", (), low, high)))
    return forest(found, "Difference from LoRA, %", 0, "0")


def prompt_differences(store: Store) -> Chart:
    """E2E NLG: test loss of each length and start of the prompt minus that of 20 tokens from the vocabulary, paired."""
    base = prompt_design.arm_name(20, "vocabulary")
    looks = {"vocabulary": "prompt", "random": "fewshot"}
    rows = [
        (f"{n}, {init}", look, prompt_design.COMPARISON.difference(arm, base, "loss_nats", store))
        for n in prompt_design.LENGTHS
        for init, look in looks.items()
        if (arm := prompt_design.arm_name(n, init)) != base
    ]
    return differences(rows, f"Test loss − that of 20 from vocabulary, {LOSS}")


COMPUTED: dict[str, Callable[[], Chart]] = {
    "parameter_counts": figures.lora.parameter_counts,
    "training_state": figures.costs.kept_state,
    "time_ratio": figures.bill.time_ratios,
    "codebook_errors": figures.quantisation.block_errors,
    "code_shares": figures.quantisation.code_shares,
    "devices": figures.machines.device_peaks,
    "break_even": figures.restraint.requests_to_break_even,
}
MEASURED: dict[str, Callable[[Store], Chart]] = {
    "loss_differences": partial(arm_differences, "loss", "lora", f"Test loss − LoRA's, {LOSS}"),
    "rouge_differences": partial(arm_differences, "rougeL", "fewshot", "ROUGE-L − five-shot's"),
    "best_rates": figures.evidence.best_rates,
    "prompt_differences": prompt_differences,
    "benchmark_differences": figures.evidence.benchmark_differences,
    "target_differences": figures.updates.target_differences,
    "cost_ratios": cost_ratios,
}
CHARTS = (*COMPUTED, *MEASURED)


def named_chart(name: str, store: Store) -> Chart:
    """A chart of the deck. Raises InputError for an unknown name."""
    if name not in CHARTS:
        raise InputError(f"Unknown chart {name!r}: choose one of {', '.join(CHARTS)}.")
    return COMPUTED[name]() if name in COMPUTED else MEASURED[name](store)
