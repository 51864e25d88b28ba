"""The Sphinx extension of the book: one module a concern, each with its own `setup`.

Imported in kernels too (for `display` and `tracing`), so Sphinx is only imported inside `setup`.
"""

from __future__ import annotations

from typing import Any

PARTS = (
    "theme", "mathematics", "numbers", "figure_numbers", "prefetch", "notebooks", "run_pages", "citation",
    "lecture", "search", "orientation", "pictures", "live", "byte_model", "lean", "freshness",
)  # fmt: skip


def setup(app: Any) -> dict[str, Any]:
    """Register every part of the extension."""
    import importlib

    from peftbook.core.quiet import filter_messages, gc_paused

    modules = (*(f"{__name__}.{part}" for part in PARTS), "peftbook.views.export.epub")
    filter_messages()
    with gc_paused():
        for module in modules:
            importlib.import_module(module).setup(app)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": False}
