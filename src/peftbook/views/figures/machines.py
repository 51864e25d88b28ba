"""Figures of the chapter on many machines: runs on many workers, one run on many devices, lost work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from peftbook.core.records import Store
from peftbook.evidence.chart import Chart, Series
from peftbook.memory import SHAPES, Setup, training_step
from peftbook.scratch.schedule import best_interval, bounds, expected_seconds, makespan
from peftbook.studies import throughput
from peftbook.views.figures import figure
from peftbook.views.figures.drawn import lines
from peftbook.views.figures.fit import draw_cards
from peftbook.views.figures.parts import Points, decimals, labelled, paint, plain_ticks
from peftbook.views.figures.style import canvas, colour, finding, say

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
    chain = found["longest chain"][0][0]
    enough = next(count for count, hours in zip(workers, found["simulated"][0], strict=True) if hours < 1.1 * chain)
    text = f"Beyond {enough} workers the longest chain sets the time, {chain:.1f} hours"
    return labelled(figure, text, axes, ends, column=0.74)


class Span(NamedTuple):
    """What happens to a layer, and from when to when."""

    kind: str
    layer: int
    start: float
    end: float


LAYERS = 3
# Time that each takes, in forward passes of a layer: in the drawing the wire is a little faster than the layers.
TAKES = {"gather": 0.8, "forward": 1.0, "backward": 2.0, "scatter": 0.8, "step": 0.6}
KINDS = {  # label, tone, hatch
    "gather": ("gather weights", "prompt", ""),
    "forward": ("forward", "lora", ""),
    "backward": ("backward", "full", ""),
    "scatter": ("reduce-scatter gradients", "qlora", "////"),
    "step": ("optimiser's step on shares", "muted", ""),
}


def fsdp_step(layers: int = LAYERS, takes: dict[str, float] = TAKES) -> list[Span]:
    """One training step in shards, as torch's `fully_shard` orders it on every device.

    One wire and one computing stream. A layer's weights are gathered while the layer before it computes, forward and
    again backward, and freed after each use; its gradients are scattered while the next one's are computed.
    """
    spans: list[Span] = []
    free = {"wire": 0.0, "device": 0.0}

    def run(kind: str, layer: int, after: float) -> Span:
        place = "wire" if kind in ("gather", "scatter") else "device"
        start = max(free[place], after)
        spans.append(Span(kind, layer, start, start + takes[kind]))
        free[place] = start + takes[kind]
        return spans[-1]

    gathered = run("gather", 1, 0.0)
    for layer in range(1, layers + 1):
        forward = run("forward", layer, gathered.end)
        gathered = run("gather", min(layer + 1, layers), forward.start if layer < layers else forward.end)
    for layer in range(layers, 0, -1):
        backward = run("backward", layer, gathered.end)
        if layer > 1:
            gathered = run("gather", layer - 1, backward.start)
        scattered = run("scatter", layer, backward.end)
    run("step", 0, scattered.end)
    return spans


def layers_held(spans: Sequence[Span], time: float) -> int:
    """How many layers' weights a device holds whole: from the start of a gather until their next use has ended."""
    held = 0
    for at, span in enumerate(spans):
        if span.kind == "gather":
            used = next(one for one in spans[at:] if one.layer == span.layer and one.kind in ("forward", "backward"))
            held += span.start <= time < used.end
    return held


@figure
def sharded_timeline() -> Figure:
    """When does a sharded step wait for the wire? Gathers, passes and scatters of three layers on two devices."""
    figure, (lanes, held) = canvas(2, 1, height=4.9, sharex=True, height_ratios=(2.6, 1))
    spans = fsdp_step()
    for span in spans:
        for lane in (1.0,) if span.kind in ("gather", "scatter") else (0.0, 2.0):
            draw_span(lanes, span, lane)
    busy = [span for span in spans if span.kind not in ("gather", "scatter")]
    for end, start in zip((0.0, *(span.end for span in busy)), (span.start for span in busy), strict=False):
        lanes.axvspan(end, start, color=colour("fill"), linewidth=0, zorder=0)
    lanes.set(ylim=(2.5, -0.5))
    lanes.set_yticks(range(3), ["device 1", "wire", "device 2"])
    times = sorted({edge for span in spans for edge in (span.start, span.end)})
    held.step(times, [layers_held(spans, time) for time in times], where="post", color=paint("prompt"))
    held.set(ylabel="Layers\nwhole", ylim=(-0.2, 2.5), xlim=(-0.1, times[-1] + 0.1), yticks=(0, 1, 2))
    held.set_xlabel("Time (1: a layer's forward pass)")
    for axes in (lanes, held):
        axes.grid(visible=False)
    handles = [
        Rectangle((0, 0), 1, 1, facecolor=colour(tone), hatch=hatch, edgecolor=colour("paper"), label=label)
        for label, tone, hatch in (*KINDS.values(), ("devices wait", "fill", ""))
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=2, columnspacing=1.2, handlelength=1.4)
    return finding(figure, "Devices wait at the first gather, at the turn and at the last scatter")


def draw_span(axes: Axes, span: Span, lane: float) -> None:
    """A box along time with the number of its layer."""
    _, tone, hatch = KINDS[span.kind]
    wide = span.end - span.start
    look: dict[str, Any] = {"facecolor": colour(tone), "edgecolor": colour("paper"), "hatch": hatch, "linewidth": 1.2}
    axes.add_patch(Rectangle((span.start, lane - 0.38), wide, 0.76, **look))
    ground = {"facecolor": colour(tone), "edgecolor": "none", "pad": 1.2} if hatch else None
    say(axes, span.start + wide / 2, lane, str(span.layer or ""), "paper", fontweight="bold", bbox=ground)


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


@figure
def memory_by_devices() -> Figure:
    """What does each of many devices hold? Peak for Llama-2-70B in shards, a row of 2,048 tokens on each device."""
    figure, axes, ends = lines(device_peaks(), height=4.6, column=0.8)
    draw_cards(axes, 0.9, lift=-4, va="top")
    decimals(axes.yaxis, (1, 3))
    axes.set_ylim(2, 2000)
    full, qlora = (ends[method][1] for method in ("Full", "QLoRA"))
    text = f"On {DEVICES[-1]} devices full fine-tuning of Llama-2-70B takes {full:.0f} GB of each, QLoRA {qlora:.0f}"
    return labelled(figure, text, axes, ends, column=0.8)


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
    minutes = best_interval(COST, FAILURES["daily"]) / 60
    text = f"A worker that fails daily should write a checkpoint every {minutes:.0f} minutes"
    return labelled(figure, text, axes, ends, column=0.775)
