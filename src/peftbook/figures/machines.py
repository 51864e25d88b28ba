"""Figures of the chapter on many machines: runs on many workers, one run on many devices, lost work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from matplotlib.figure import Figure

from peftbook.evidence.chart import Chart, Series
from peftbook.figures import figure
from peftbook.figures.drawn import lines
from peftbook.figures.fit import draw_cards
from peftbook.figures.parts import SMALL, Points, decimals, label_points, paint, plain_ticks
from peftbook.figures.style import canvas, colour, question
from peftbook.memory import SHAPES, Setup, training_step
from peftbook.records import Store
from peftbook.results import quantity
from peftbook.scratch.schedule import best_interval, bounds, expected_seconds, makespan
from peftbook.studies import throughput

__all__ = ["lost_work", "memory_by_devices", "runs_an_hour", "time_by_workers"]

DEVICES = (1, 2, 4, 8, 16, 32)
ROW = Setup(seq=2048, checkpointing=True)
BY_DEVICES = {
    "Full": (replace(ROW, method="full"), "full"),
    "LoRA": (ROW, "lora"),
    "QLoRA": (replace(ROW, quantised="nf4"), "qlora"),
}
HOUR = 3600.0
FAILURES = {"hourly": HOUR, "daily": 24 * HOUR, "monthly": 720 * HOUR}  # of a worker
COST = 5.0  # seconds that a checkpoint takes, in the drawing
MOST_LOST = 300  # per cent


@figure
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
    question(figure, "How long do the book's runs take on many workers?")
    label_points(axes, ends, column=0.74)
    return figure


@figure
def runs_an_hour(store: Store) -> Figure:
    """Do more workers make more runs? Runs an hour of small runs, measured, for one, two and four workers."""
    figure, axes = canvas(height=3.6)
    rows = [quantity(f"throughput.measured_{count}", store) for count in throughput.MEASURED]
    places = range(len(rows))
    axes.barh(places, [row.value for row in rows], height=0.55, color=colour("lora"), alpha=0.85)
    for place, row in zip(places, rows, strict=True):
        axes.plot([row.low, row.high], [place, place], color=colour("ink"), linewidth=2.0)
        axes.annotate(f"{row.value:,.0f}", (row.high or row.value, place), xytext=(8, 0), textcoords="offset points",
                      va="center", fontsize=SMALL)  # fmt: skip
    axes.set_yticks(places, [f"{count} worker{'s' * (count > 1)}" for count in throughput.MEASURED])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.15 * max(row.high or row.value for row in rows)), xlabel="Small runs an hour, median and range")
    axes.grid(axis="y", visible=False)
    return question(figure, "Do more workers on two cores make more runs?")


def device_peaks() -> Chart:
    """Peak on each device for Llama-2-70B in shards."""
    devices = [float(count) for count in DEVICES]
    series = []
    for label, (setup, look) in BY_DEVICES.items():
        steps = [training_step(SHAPES["llama-2-70b"], replace(setup, devices=count)) for count in DEVICES]
        series.append(Series(label, [step.peak().total / 1e9 for step in steps], look, devices))
    return Chart(series, "Devices that share the model", "GB on each at the peak", log={"x": 2, "y": 10},
                 number_format="#,##0", x_format="0", x_range=(1, 32), y_range=(1, 10_000))  # fmt: skip


@figure
def memory_by_devices() -> Figure:
    """What does each of many devices hold? Peak for Llama-2-70B in shards, a row of 2,048 tokens on each device."""
    figure, axes, ends = lines(device_peaks(), height=4.6, column=0.8)
    draw_cards(axes, 0.9, lift=-4, va="top")
    decimals(axes.yaxis, (1, 3))
    axes.set_ylim(2, 2000)
    question(figure, "What does each of many devices hold? Llama-2-70B")
    label_points(axes, ends, column=0.8)
    return figure


@figure
def lost_work() -> Figure:
    """How often should a run write a checkpoint? Time lost to checkpoints and failures against the interval."""
    figure, axes = canvas(height=4.2)
    intervals = np.geomspace(10, 20_000, 80)
    ends: Points = {}
    for (name, between), tone in zip(FAILURES.items(), ("prompt", "qlora", "lora"), strict=True):
        lost = [100 * (expected_seconds(1.0, one, COST, between) - 1) for one in intervals]
        seen = [(one, share) for one, share in zip(intervals, lost, strict=True) if share < MOST_LOST]
        axes.plot(*zip(*seen, strict=True), color=paint(tone), linewidth=1.8)
        best = best_interval(COST, between)
        axes.plot(best, 100 * (expected_seconds(1.0, best, COST, between) - 1), "o", color=paint(tone), markersize=7)
        ends[f"fails {name}"] = *seen[-1], tone
    axes.set(xscale="log", yscale="log", ylabel="Time lost, %")
    axes.set_xlabel(f"Seconds between checkpoints of {COST:.0f} s (dots: √2cM)")
    plain_ticks(axes, (10, 60, 600, 3600))
    decimals(axes.yaxis, (1, 3))
    axes.set(xlim=(8, 300_000), ylim=(0.1, MOST_LOST))
    question(figure, "How often should a run write a checkpoint?")
    label_points(axes, ends, column=0.775)
    return figure
