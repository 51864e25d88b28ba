"""Figures of the chapter on when not to fine-tune: what tuning must earn back, and what a test set can see."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from peftbook.core.records import Store
from peftbook.evidence.chart import Chart, Series
from peftbook.evidence.stats import half_width
from peftbook.methods import arm_looks
from peftbook.studies import methods
from peftbook.views.figures.drawn import lines
from peftbook.views.figures.methods import example_differences
from peftbook.views.figures.parts import SMALL, decimals, labelled, plain_ticks
from peftbook.views.figures.style import canvas, colour, tag

TRAINED = {"one run": 1, "ten runs": 10, "a hundred runs": 100}
RUN_TOKENS = 50_000
EXTRA = (10.0, 100.0, 1000.0, 10_000.0)  # tokens that examples add to every request
PAIRS = {"prompt": "fewshot", "lora": "fewshot", "full": "lora"}  # the arm and what it is compared with


def requests_to_earn_back(trained_tokens: float, extra_tokens: float) -> float:
    """Requests after which LoRA has cost less than examples in the prompt: 4 N T = 2 N k for each request.

    trained_tokens: T, over all runs; extra_tokens: k, that the examples add to a request. Floating-point operations.
    """
    return 2 * trained_tokens / extra_tokens


def requests_to_break_even() -> Chart:
    """Requests after which tuning has cost less than examples in the prompt, against the tokens that these add."""
    series = [
        Series(name, [requests_to_earn_back(runs * RUN_TOKENS, k) for k in EXTRA], look, list(EXTRA))
        for (name, runs), look in zip(TRAINED.items(), ("lora", "qlora", "prompt"), strict=True)
    ]
    return Chart(
        series,
        "Tokens that the examples add to a request",
        "Requests until tuning has paid",
        log={"x": 10, "y": 10},
        number_format="#,##0",
        x_format="#,##0",
        x_range=(10, 10_000),
        y_range=(1, 1e7),
    )


def break_even() -> Figure:
    """After how many requests does tuning cost less than examples in the prompt? Operations, for three budgets."""
    figure, axes, ends = lines(requests_to_break_even(), height=4.2, column=0.735)
    axes.set_xlabel(f"{axes.get_xlabel()}\n(a run: {RUN_TOKENS:,} tokens)")
    requests = requests_to_earn_back(TRAINED["ten runs"] * RUN_TOKENS, EXTRA[2])
    text = f"Ten runs have paid after {requests:,.0f} requests that each save {EXTRA[2]:,.0f} tokens"
    return labelled(figure, text, axes, ends, column=0.735)


def differences_seen(store: Store) -> Figure:
    """How small a difference can a test set see? Half of its 95 % interval against its size, three pairs of methods."""
    figure, axes = canvas(height=4.4)
    seen: dict[str, float] = {}
    sizes, ends = np.array([10, 30, 100, 300, 1000, 3000]), dict[str, tuple[float, float, str]]()
    for arm, other in PAIRS.items():
        found = example_differences(methods.final_records(arm, store), methods.final_records(other, store))
        errors = found.std(ddof=1) / np.sqrt(sizes)
        halves = [float(half_width(0.05, 0.0, error, 0, n - 1)) for error, n in zip(errors, sizes, strict=True)]
        axes.plot(sizes, halves, color=colour(arm), marker=arm_looks()[arm].marker, linewidth=1.6, markersize=6)
        axes.plot(len(found), abs(found.mean()), marker="*", color=colour(arm), markersize=13, linestyle="none")
        seen[arm] = halves[2]
        ends[f"{SHORT[arm]} − {SHORT[other]}"] = float(sizes[-1]), float(halves[-1]), arm
    axes.set(xscale="log", yscale="log", xlabel="Test examples", ylabel="Half of the interval, nats per token")
    plain_ticks(axes, sizes.tolist())
    decimals(axes.yaxis, (1, 2, 5))
    axes.set_xlim(8.5, 60_000)
    tag(axes, "stars: what was seen", (9, axes.get_ylim()[0]), (4, 6), "muted", fontsize=SMALL, fontweight="normal")
    near, far = (seen[arm] for arm in ("full", "lora"))
    text = f"100 test examples show full − LoRA from {near:.2f} nats on, LoRA − examples from {far:.2f} on"
    return labelled(figure, text, axes, ends, column=0.735)


SHORT = {"prompt": "prompt", "fewshot": "examples", "lora": "LoRA", "full": "full"}
