"""Figures of runs of others: what a public ranking can tell."""

from __future__ import annotations

from matplotlib.figure import Figure

from peftbook.studies.public_arms import MARGIN, Values, accuracies, difference, here
from peftbook.studies.public_runs import FULL, LORA
from peftbook.views.figures.parts import SMALL, draw_margin, paint
from peftbook.views.figures.style import canvas, colour, finding, name_rows, say

TONES = {"lora": "lora", "full-finetuning": "full", "prompt_tuning": "prompt"}  # of a method; the others are ink
INCHES = 0.185  # of a row


def compared(values: Values) -> list[str]:
    """Arms at present settings that ran with the same versions as LoRA, the best one first."""
    shared = [name for name, runs in values.items() if " before " not in name and runs.keys() & values[LORA].keys()]
    return sorted(shared, key=lambda name: -difference(values, name, LORA).mean)


def public_ranking() -> Figure:
    """What can a public ranking tell? Accuracy of every configuration minus that of LoRA, with both errors."""
    values = accuracies()
    names = compared(values)
    figure, axes = canvas(height=1.5 + INCHES * len(names))
    draw_margin(axes, -MARGIN, MARGIN, 0.0)
    for at, name in enumerate(names):
        tone = paint(TONES.get(name.partition("--")[0], "ink"))
        if name != LORA:
            for found, width in ((difference(values, name, LORA), 0.9), (here(values, name, LORA), 3.4)):
                axes.plot([found.low, found.high], [at, at], color=tone, linewidth=width, solid_capstyle="butt")
        axes.plot(
            difference(values, name, LORA).mean, at, "o", color=tone, markersize=5, markeredgecolor=colour("paper")
        )
    name_rows(axes, [name.replace("--", "  ") for name in names], 0.4, 0.6)
    axes.tick_params(axis="y", labelsize=SMALL)
    for name in (LORA, FULL):
        axes.get_yticklabels()[names.index(name)].set(color=colour(TONES[name.partition("--")[0]]), fontweight="bold")
    axes.set_xlabel("Points above LoRA")
    for row, words in enumerate(("thick: reruns alone", "thin: other questions too")):
        say(axes, -36, len(names) - 5 + 1.3 * row, words, "muted", ha="left", fontsize=SMALL)
    return finding(figure, "A public ranking settles its ends, not its middle")
