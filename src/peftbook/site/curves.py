"""A loss curve as a small inline SVG in the text's own colour, so that it follows light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["curve_svg", "round_ticks"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 260, 56, 12, 14, 40


def round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers inside [low, high], in ascending order."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    magnitude = 10 ** math.floor(math.log10(raw))
    step = magnitude * min((m for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw), default=10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def curve_svg(steps: Sequence[float], losses: Sequence[float], title: str) -> str:
    """Training loss against step. Values that are not finite break the line.

    steps, losses: equally long, at least one finite pair, else the empty string.
    """
    points = [(x, y) for x, y in zip(steps, losses, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return ""
    (x_low, x_high), (y_low, y_high) = (_span([p[axis] for p in points]) for axis in (0, 1))

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(down, 1)

    parts = [f'<svg class="run-curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">']
    for tick in round_ticks(y_low, y_high):
        y = place(x_low, tick)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in round_ticks(x_low, x_high, 6):
        x = place(tick, y_low)[0]
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">optimiser step</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    line = " ".join("{},{}".format(*place(x, y)) for x, y in points)
    parts.append(f'<polyline class="loss" points="{line}"/></svg>')
    return "".join(parts)


def _span(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
