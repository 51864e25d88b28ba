"""Charts of what is computed: those that a figure of the book draws too, and the counts of the family."""

from __future__ import annotations

import functools
from collections.abc import Callable

from peftbook.evidence.chart import Chart, Series
from peftbook.figures import bill, costs, family, fit, lora, machines, prompt, quantisation, restraint
from peftbook.memory import SHAPES
from peftbook.records import Store
from peftbook.slides.charts import CHARTS, chart

SHORT_NUMBERS = '[>=1000000000]0,,," bn";[>=1000000]0,," M";#,##0'
SHARED: dict[str, Callable[[], Chart]] = {
    "parameter_counts": lora.parameter_counts,
    "training_state": costs.kept_state,
    "time_ratio": bill.time_ratios,
    "codebook_errors": quantisation.block_errors,
    "stored_bits": quantisation.stored_bits,
    "code_shares": quantisation.code_shares,
    "prompt_parameters": prompt.length_counts,
    "devices": machines.device_peaks,
    "stack_peaks": fit.stack_bars,
    "break_even": restraint.requests_to_break_even,
}
for _name, _describe in SHARED.items():
    CHARTS[_name] = functools.partial(lambda describe, store: describe(), _describe)


@chart
def trained_numbers(store: Store) -> Chart:
    """Numbers that each method trains on Llama-2-7B; computed."""
    counts = family.trained_parameters(SHAPES["llama-2-7b"])
    shown = [name for name in family.MEMBERS if counts[name] and name not in ("dora", "adalora")]
    members = [family.MEMBERS[name] for name in shown]
    names = [", ".join(filter(None, (member.label, member.setting))) for member in members]
    labels = [f"{label}: {counts[name]:,}" for label, name in zip(names, shown, strict=True)]
    series = Series("Trained numbers", [float(counts[name]) for name in shown])
    return Chart([series], "", "Trained numbers of Llama-2-7B", labels, log={"y": 10}, y_range=(100, 1e10),
                 horizontal=True, number_format=SHORT_NUMBERS, gap=35,
                 point_looks=[member.tone for member in members])  # fmt: skip
