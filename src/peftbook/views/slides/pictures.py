"""Pictures: drawings of the book and typeset equations, sharp on a 4K screen."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, ImageChops

from peftbook.core.errors import InputError
from peftbook.views import figures
from peftbook.views.figures.style import PAPER, TONES, mode_context
from peftbook.views.placeholders import Sources
from peftbook.views.slides.template import BOTTOM, SMALL, TOP

SHARP = 288  # pixels an inch of slide: 3,840 over its width
PAD = 0.02  # inches of paper that are left around a picture


class Picture(NamedTuple):
    """A PNG with its size on the slide, in inches, and the smallest type in it, in points; 0 if it was not set here."""

    data: bytes
    width: float
    height: float
    smallest: float


def drawing(name: str, sources: Sources, width: float, height: float) -> Picture:
    """A figure of the book, as large as a box of this size allows, without its title: the slide states the answer.

    Type that would be smaller than the slides' smallest is enlarged.
    """
    with mode_context("light"):
        figure = figures.draw(name, sources.store)
        figure.suptitle("")
        rough = trimmed(raster(figure, 100))
        scale = min(width / (rough.width / 100), height / (rough.height / 100))
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        for text in texts:
            text.set_fontsize(max(float(text.get_fontsize()), SMALL / scale))
        image = trimmed(raster(figure, SHARP * scale + 1))
    smallest = min(float(text.get_fontsize()) for text in texts)
    shown = min(width, height * image.width / image.height)
    return Picture(as_png(image), shown, shown * image.height / image.width, smallest * scale)


def still(path: Path, width: float) -> Picture:
    """A screenshot, this wide; raises InputError if it cannot be read, is too high for a slide, or not sharp there."""
    try:
        with Image.open(path) as image:
            pixels, height = image.width, width * image.height / image.width
    except OSError as error:
        raise InputError(f"Still {path} cannot be read: {error}.") from None
    if height > BOTTOM - TOP or pixels < SHARP * width:
        said = f"{width:g} in wide, is {height:.2f} in high with {pixels} pixels a line"
        raise InputError(f"Still {path.name}, {said}: make it fit a slide, and sharp there.")
    return Picture(path.read_bytes(), width, height, 0.0)


def equation(tex: str, size: float, width: float) -> Picture:
    """A formula in matplotlib's TeX, in Computer Modern at this many points; raises InputError if it is too wide."""
    with mode_context("light"):
        import matplotlib

        matplotlib.rcParams["mathtext.fontset"] = "cm"
        figure = Figure(figsize=(14, 1.6))
        figure.text(0.01, 0.5, f"${tex}$", fontsize=size, color=TONES["light"]["ink"], va="center")
        try:
            image = trimmed(raster(figure, SHARP))
        except ValueError as error:
            raise InputError(f"Equation {tex!r} cannot be typeset: {str(error).splitlines()[-1]}") from None
    shown = image.width / SHARP
    if shown > width:
        raise InputError(f"Equation {tex!r} is {shown - width:.2f} in too wide at {size:g} pt: break it.")
    return Picture(as_png(image), shown, image.height / SHARP, size)


def raster(figure: Figure, dpi: float) -> Image.Image:
    """The figure at this many dots an inch, on its paper."""
    figure.dpi = dpi
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def trimmed(image: Image.Image) -> Image.Image:
    """The image without its border of paper."""
    box = ImageChops.difference(image, Image.new("RGB", image.size, PAPER["light"])).getbbox()
    return image.crop(box) if box else image


def as_png(image: Image.Image) -> bytes:
    """Few colours, so that a drawing stays small; the same image is the same bytes."""
    stream = io.BytesIO()
    flat: Any = image.quantize(255, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    flat.save(stream, format="png", optimize=False)
    return stream.getvalue()
