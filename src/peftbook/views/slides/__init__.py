"""The deck: `slides/outline.toml` says what each slide states and shows; this package builds the .pptx.

Charts are native and hold the records' numbers; drawings and equations are pictures, sharp on a 4K screen.
"""

from peftbook.views.placeholders import Sources, fill
from peftbook.views.slides.charts import CHARTS
from peftbook.views.slides.deck import SPOKEN, build
from peftbook.views.slides.handout import convert, find_office, handout
from peftbook.views.slides.measure import lines_needed, text_width
from peftbook.views.slides.outline import OUTLINE, read_outline
from peftbook.views.slides.template import ACCENT

__all__ = ["ACCENT", "CHARTS", "OUTLINE", "SPOKEN", "Sources", "build", "convert", "fill",
           "find_office", "handout", "lines_needed", "read_outline", "text_width"]  # fmt: skip
