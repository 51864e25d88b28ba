"""Figures of the chapter on many machines: runs on many workers, one run on many devices, lost work."""

from __future__ import annotations

from dataclasses import replace

from matplotlib.figure import Figure

from peftbook.core.records import Store
from peftbook.evidence.chart import Chart, Series
from peftbook.memory import SHAPES, Setup, training_step
from peftbook.scratch.schedule import bounds, makespan
from peftbook.studies import throughput
from peftbook.views.figures.drawn import lines
from peftbook.views.figures.fit import draw_cards
from peftbook.views.figures.parts import Points, decimals, labelled, paint, plain_ticks
from peftbook.views.figures.style import canvas

DEVICES = (1, 2, 4, 8, 16, 32)
ROW = Setup(seq=2048, checkpointing=True)
BY_DEVICES = {
    "Full": (replace(ROW, method="full"), "full"),
    "LoRA": (ROW, "lora"),
    "QLoRA": (replace(ROW, quantised="nf4"), "qlora"),
}
HOUR = 3600.0


def time_by_workers(store: Store) -> Figure:
    """How long do the book's runs take on many workers? Simulated from their wall times, between what bounds it."""
    known = throughput.stages(store)
    workers = sorted({round(2 ** (exponent / 2)) for exponent in range(21)})
    found = {
        "simulated": ([makespan(known, count) / HOUR for count in workers], "lora", "-"),
        "even shares": ([makespan(known, 1) / HOUR / count for count in workers], "muted", (0, (1, 1.5))),
        "longest chain": ([bounds(known, 10**9)[0] / HOUR] * len(workers), "ink", (0, (4, 1.5))),
    }
    figure, axes = canvas(height=4.4)
    ends: Points = {}
    for name, (hours, tone, line) in found.items():
        axes.plot(workers, hours, color=paint(tone), linestyle=line, linewidth=2.0 if name == "simulated" else 1.4)
        ends[name] = workers[-1], hours[-1], tone
    axes.set(xscale="log", yscale="log", xlabel="Workers", ylabel="Hours until the last run ends")
    plain_ticks(axes, (1, 4, 16, 64, 256, 1024))
    decimals(axes.yaxis, (1, 3))
    axes.set_xlim(0.85, workers[-1] * 18)
    chain = found["longest chain"][0][0]
    enough = next(count for count, hours in zip(workers, found["simulated"][0], strict=True) if hours < 1.1 * chain)
    text = f"Beyond {enough} workers the longest chain sets the time, {chain:.1f} hours"
    return labelled(figure, text, axes, ends, column=0.74)


def device_peaks() -> Chart:
    """Peak on each device for Llama-2-70B in shards."""
    devices = [float(count) for count in DEVICES]
    series = []
    for label, (setup, look) in BY_DEVICES.items():
        steps = [training_step(SHAPES["llama-2-70b"], replace(setup, devices=count)) for count in DEVICES]
        series.append(Series(label, [step.peak().total / 1e9 for step in steps], look, devices))
    return Chart(
        series,
        "Devices that share the model",
        "GB on each at the peak",
        log={"x": 2, "y": 10},
        number_format="#,##0",
        x_format="0",
        x_range=(1, 32),
        y_range=(1, 10_000),
    )


def memory_by_devices() -> Figure:
    """What does each of many devices hold? Peak for Llama-2-70B in shards, a row of 2,048 tokens on each device."""
    figure, axes, ends = lines(device_peaks(), height=4.6, column=0.8)
    draw_cards(axes, 0.9, lift=-4, va="top")
    decimals(axes.yaxis, (1, 3))
    axes.set_ylim(2, 2000)
    full, qlora = (ends[method][1] for method in ("Full", "QLoRA"))
    text = f"On {DEVICES[-1]} devices full fine-tuning of Llama-2-70B takes {full:.0f} GB of each, QLoRA {qlora:.0f}"
    return labelled(figure, text, axes, ends, column=0.8)
