"""The figure of the chapter on formats of a frozen base: the error of outputs against the bits that are stored."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from peftbook.core.records import Store
from peftbook.evidence.comparison import measured
from peftbook.evidence.results import quantity
from peftbook.studies import bases
from peftbook.views.figures.parts import SMALL, Points, decimals, label_points, mark, mosaic
from peftbook.views.figures.style import SIZE, colour, finding

LOOKS = {  # format → name, tone, marker
    "four": {
        "mxfp4": ("MXFP4", "qlora", "v"), "e2m1_half": ("E2M1, block 32", "qlora", "^"),
        "nvfp4": ("NVFP4", "qlora", "D"), "nf4_double": ("NF4, double", "lora", "<"), "nf4": ("NF4", "lora", "o"),
        "rtn_4": ("to the nearest", "muted", "s"), "hqq_4": ("HQQ", "prompt", "P"), "awq_4": ("AWQ", "fewshot", "d"),
        "gptq_4": ("GPTQ", "ink", "o"),
    },
    "two": {
        "nf2": ("NF2", "lora", "o"), "rtn_2": ("to the nearest", "muted", "s"), "hqq_2": ("HQQ", "prompt", "P"),
        "awq_2": ("AWQ", "fewshot", "d"), "gptq_2": ("GPTQ", "ink", "o"),
    },
}  # fmt: skip
RANGES = {"four": (4.08, 4.78), "two": (2.23, 2.68)}  # of bits, with room for the names
COLUMN = {"four": 0.72, "two": 0.71}


def draw_formats(axes: Axes, part: str, store: Store) -> Points:
    """The formats of one number of bits: a mark each, and a small one for each copy. Returns where they stand."""
    found, ends = bases.records(store), dict[str, tuple[float, float, str]]()
    for name, (label, tone, marker) in LOOKS[part].items():
        x, error = quantity(f"bases_gptq.{name}_bits", store).value, quantity(f"bases_gptq.{name}_output", store).value
        seeds = [100 * error for error in measured(found, f"{name}_output")]
        axes.plot([x] * len(seeds), seeds, "_", color=colour(tone), markersize=9, markeredgewidth=1.1, alpha=0.7)
        axes.plot(x, error, **mark(tone, marker))
        ends[label] = (x, error, tone)
    return ends


def output_error_by_bits(store: Store) -> Figure:
    """How far off are a layer's outputs, for the bits that are stored? Formats of four bits above, of two below."""
    figure, panels = mosaic([["four"], ["two"]], height=7.4, height_ratios=(2, 1))
    names = {part: draw_formats(axes, part, store) for part, axes in panels.items()}
    for part, axes in panels.items():
        axes.set_yscale("log")
        axes.set_xlim(*RANGES[part])
        decimals(axes.yaxis)
        axes.set_title(f"{part.capitalize()} bits a code", fontsize=SMALL)
    figure.supylabel("Squared error of outputs, % of the outputs", fontsize=SIZE)
    panels["two"].set_xlabel("Stored bits of a weight, scales and zero points included")
    four, two = (f"{{bases_gptq.gptq_{bits}_over_rtn;value;1}}" for bits in (4, 2))
    finding(figure, f"GPTQ's output error is {four} that of rounding at four bits, {two} at two", store)
    for part, axes in panels.items():
        label_points(axes, names[part], column=COLUMN[part])
    return figure
