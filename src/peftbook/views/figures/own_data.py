"""The figure of the chapter on the reader's own data: how early a sweep of learning rates knows its best one."""

from __future__ import annotations

from matplotlib.figure import Figure

from peftbook.core.records import Store
from peftbook.studies import racing
from peftbook.views.figures.parts import SMALL
from peftbook.views.figures.style import canvas, finding, name_rows, say, shade

LABELS = {"eighth": "⅛", "quarter": "¼", "half": "½", "three_quarters": "¾", "end": "the end"}


def early_rates(store: Store) -> Figure:
    """How early does a sweep know its best rate? Of all sweeps at hand, in how many the best rate leads at a cut, is in
    the half that would go on, or in the half that would be dropped.
    """
    found = racing.sweeps(store)
    figure, axes = canvas(height=3.6)
    looks = {
        "leads": (shade("lora", 0.9), "paper"),
        "is in the better half": (shade("lora", 0.35), "ink"),
        "would be dropped": (shade("prompt", 0.9), "paper"),
    }
    for row, share in enumerate(racing.CUTS.values()):
        first, half = racing.places(found, share)
        left = 0
        for (name, (tone, text)), count in zip(looks.items(), (first, half - first, len(found) - half), strict=True):
            axes.barh(row, count, 0.66, left=left, color=tone, label=name if row == 0 else None)
            if count > 2:
                say(axes, left + count / 2, row, str(count), text, fontsize=SMALL)
            left += count
    name_rows(axes, [LABELS[name] for name in racing.CUTS])
    axes.set(xlim=(0, len(found)), xlabel=f"Sweeps, of {len(found)}", ylabel="Share of the training")
    axes.legend(title="The best rate …", loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    many = "{racing.quarter_better_half;value}"
    text = f"After a quarter of the steps {many} of sweeps have their best rate in the better half"
    return finding(figure, text, store)
