"""The directive `{machines}`: what `peftbook doctor` found on machines of the book, and how to ask for the reader's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from peftbook.training.doctor import MACHINES, Examination, book_machines
from peftbook.views.html import grid

SHOWN = {"lora": "LoRA", "qlora": "QLoRA", "prompt": "prompt tuning", "full": "full"}
HEADS = ("Machine", "computes in", "GFLOP/s a thread, float32", "GFLOP/s a thread, bfloat16",
         *(f"tokens/s, {words}" for words in SHOWN.values()))  # fmt: skip


def machines_table() -> str:
    """One row a machine."""
    return str(grid(HEADS, map(cells, book_machines()), "machines"))


def cells(machine: Examination) -> Iterator[str]:
    """The cells of a machine's row; a method that it did not measure has a dash."""
    best, _, limits = machine.instructions.partition(", ")
    what = f"held to {best}" if limits else best
    yield f"{machine.processor}, {machine.cores} cores, {what}"
    yield machine.dtype
    for name in ("fp32", "bf16"):
        yield f"{machine.operations_per_second[name] / 1e9:,.0f}"
    for name in SHOWN:
        rate = machine.tokens_per_second.get(name)
        yield "–" if rate is None else f"{rate:,.0f}"


class Machines(SphinxDirective):
    """The directive."""

    def run(self) -> list[nodes.Node]:
        for path in sorted(MACHINES.glob("*.json")):
            self.env.note_dependency(str(path))
        return [nodes.raw("", machines_table(), format="html")]


def setup(app: Any) -> None:
    """Register the directive."""
    app.add_directive("machines", Machines)
