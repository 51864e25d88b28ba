"""The table of the directive `{machines}`: what `peftbook doctor` found on machines of the book."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from peftbook.runtime.doctor import Examination, book_machines
from peftbook.views.html import part

SHOWN = {"lora": "LoRA", "qlora": "QLoRA", "prompt": "prompt tuning", "full": "full"}
HEADS = ("Machine", "computes in", "GFLOP/s a thread, float32", "GFLOP/s a thread, bfloat16",
         *(f"tokens/s, {words}" for words in SHOWN.values()))  # fmt: skip


def machines_table() -> Markup:
    """One row a machine."""
    return part("grid", HEADS, [list(cells(machine)) for machine in book_machines()], "machines")


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
