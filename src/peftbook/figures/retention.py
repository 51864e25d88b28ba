"""Figures of the chapter on forgetting and capacity: what an update costs the old task, and what a rank holds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.figures import figure
from peftbook.figures.lora import HIDDEN, SMOLLM2
from peftbook.figures.parts import LOSS, SMALL, as_row, draw_series, mark, note, plain_ticks
from peftbook.figures.style import canvas, colour, name_rows, question, shade, tag
from peftbook.figures.updates import PATHS
from peftbook.records import Record, Store
from peftbook.results import quantity
from peftbook.scratch.capacity import free_numbers
from peftbook.studies import forgetting

__all__ = ["forgetting_by_rate", "rank_room", "update_directions"]

LORA = tuple(arm for arm in forgetting.ARMS if arm not in forgetting.FULL)


@figure
def forgetting_by_rate(store: Store) -> Figure:
    """Does the rate decide what is forgotten? Task loss and prose loss added at the end, against the learning rate."""
    figure, (losses, forgotten) = canvas(2, 1, height=5.8, sharex=True)
    for axes, name in ((losses, "validation_loss"), (forgotten, "forgotten")):
        draw_arms(axes, forgetting.FULL, name, store)
        for at, arm in enumerate(LORA):
            draw_arms(axes, (arm,), name, store, shift=1.22 ** (at - 1))
    forgotten.axhline(0, color=colour("muted"), linewidth=1.2)
    for arm in forgetting.FULL:
        found = quantity(f"forgetting.{arm}_forgotten", store)
        place = (forgetting.ARMS[arm][1], found.high or found.value)
        tag(forgotten, f"{found.value:+.2f}".replace("-", "−"), place, (0, 5), "full", ha="center", fontsize=SMALL)
    rates = sorted({rate for _, rate in forgetting.ARMS.values()})
    forgotten.set(xscale="log", xlabel="Learning rate")
    forgotten.set_xticks(rates, [f"{rate:.1e}".replace(".0e-0", "e-").replace("e-0", "e-") for rate in rates])
    forgotten.minorticks_off()
    forgotten.set_xlim(rates[0] / 1.6, rates[-1] * 1.9)
    for axes, label in ((losses, "E2E loss"), (forgotten, "Prose loss added")):
        axes.set_ylabel(f"{label},\n{LOSS}")
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.12 * (high - low) * (axes is losses), high + 0.08 * (high - low))
    note(losses, "full fine-tuning", 0.02, 0.04, ha="left", va="bottom", color=colour("full"), fontweight="bold")
    note(losses, "LoRA, r = 8, 64, 256", 0.98, 0.04, va="bottom", color=colour("lora"), fontweight="bold")
    return question(figure, "Does the learning rate decide what is forgotten?")


def draw_arms(axes: Axes, arms: Sequence[str], name: str, store: Store, shift: float = 1.0) -> None:
    """A quantity of some arms against their rates, with intervals and seeds."""
    rows = []
    for arm in arms:
        _, tone, marker, _ = PATHS[arm]
        found = quantity(f"forgetting.{arm}_{name}", store)
        rows.append(as_row("", found, ends(forgetting.curves(arm, store), name), tone, marker))
    draw_series(axes, [forgetting.ARMS[arm][1] for arm in arms], rows, shift=shift)


def ends(curves: Sequence[Record], name: str) -> list[float]:
    """The last target loss, or the prose loss added, of each seed."""
    if name == "validation_loss":
        return [float(one.curve["validation_loss_nats"][-1]) for one in curves]
    prose = [one.curve["prose_loss_nats"] for one in curves]
    return [float(losses[-1] - losses[0]) for losses in prose]


@figure
def update_directions(store: Store) -> Figure:
    """How many directions does an update use? Singular directions with 90 % of its energy, a dot a matrix."""
    figure, axes = canvas(height=5.0)
    arms = tuple(forgetting.ARMS)
    for at, arm in enumerate(arms):
        _, tone, marker, _ = PATHS[arm]
        middle = quantity(f"forgetting.{arm}_update_rank", store).value
        draw_spread(axes, at, matrix_ranks(arm, store), middle, tone, marker)
        rank = getattr(forgetting.ARMS[arm][0], "rank", None)
        if rank is not None:
            axes.plot([rank, rank], [at - 0.36, at + 0.36], color=colour(tone), linewidth=2.4)
        found = quantity(f"forgetting.{arm}_intruders", store)
        note(axes, f"{found.value:.0f} new", 1.02, at, transform=axes.get_yaxis_transform(), va="center", ha="left")
    noise = [energy_directions(noise_energy(*reversed(sides))) for sides in SMOLLM2.linears.values()]
    draw_spread(axes, len(arms), noise, float(np.median(noise)), "muted", "*")
    axes.set_xscale("log")
    plain_ticks(axes, (1, 3, 10, 30, 100, 300))
    name_rows(axes, [*(PATHS[arm][0] for arm in arms), "Noise"], 0.4, 0.6)
    axes.set_xlim(0.8, 620)
    axes.set_xlabel("Directions with 90 % of the update's energy\n(dot: a matrix; large: the median; bar: the rank)")
    return question(figure, "How many directions does an update use?")


def draw_spread(axes: Axes, at: float, ranks: Sequence[float], middle: float, tone: str, marker: str) -> None:
    """One row: a dot a matrix, beside each other where they are equal, and their median."""
    lift = at + 0.26 * np.sin(2.4 * np.arange(len(ranks)))
    axes.plot(ranks, lift, "o", markersize=3.5, color=shade(tone, 0.45))
    axes.plot(middle, at, **(mark(tone, marker) | {"markersize": 9}))


def matrix_ranks(arm: str, store: Store) -> list[float]:
    """Effective rank of the update of each matrix that was looked at, first seed."""
    record = store.need(forgetting.intruder_probe(arm))
    return [float(rank) for rank in record.per_example.get("update_rank", [])]


@cache
def noise_energy(rows: int, columns: int) -> tuple[float, ...]:
    """Squared singular values of a matrix of independent N(0, 1) entries, largest first, as shares of their sum."""
    noise = np.random.default_rng(0).standard_normal((min(rows, columns), max(rows, columns)))
    energy = np.linalg.eigvalsh(noise @ noise.T)[::-1]
    return tuple((energy / energy.sum()).tolist())


def energy_directions(shares: Sequence[float], share: float = 0.9) -> int:
    """The least number of leading directions that hold `share` of the energy."""
    return int((np.cumsum(shares) < share).sum()) + 1


@figure
def rank_room(side: int = HIDDEN) -> Figure:
    """What does a rank buy of a square matrix? Shares of its numbers that are trained, are free, and catch noise."""
    ranks = np.arange(1, side + 1)
    free = np.array([free_numbers(int(rank), side, side) for rank in ranks])
    lines = {
        "numbers trained, 2rd": (2 * ranks / side, "muted", (0, (1, 1.2))),
        "numbers free, r(2d − r)": (free / side**2, "lora", "-"),
        "noise caught": (np.cumsum(noise_energy(side, side)), "qlora", (0, (4, 1.5))),
    }
    places = ((0.9, 0.985, "right", "top"), (0.57, 0.46, "left", "top"), (0.1, 0.48, "left", "bottom"))
    figure, axes = canvas(height=4.2)
    for (label, (values, tone, line)), (x, y, ha, va) in zip(lines.items(), places, strict=True):
        axes.plot(ranks, values, color=colour(tone), linestyle=line)
        note(axes, label, x, y, ha=ha, va=va, color=colour(tone), fontweight="bold")
    axes.axhline(1, color=colour("muted"), linewidth=1.0)
    axes.set(xscale="log", yscale="log", xlabel=f"Rank r of a {side} × {side} update", ylabel="Share of the matrix")
    axes.set_xticks([1, 4, 16, 64, 256], ["1", "4", "16", "64", "256"])
    axes.set_yticks([0.003, 0.01, 0.03, 0.1, 0.3, 1], ["0.3 %", "1 %", "3 %", "10 %", "30 %", "all"])
    axes.minorticks_off()
    axes.set(xlim=(0.9, side), ylim=(0.0025, 2.6))
    return question(figure, "What does a rank buy?")
