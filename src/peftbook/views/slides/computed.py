"""Arithmetic of the deck: what `{computed:NAME}` prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from peftbook.memory import SHAPES, training_step
from peftbook.views.figures import costs, fit, lora, machines, quantisation


def gigabytes(method: str) -> str:
    return f"{sum(costs.state_bytes(method).values()) / 1e9:.1f} GB"


def nf4_share(pick: Callable[[Any], float]) -> str:
    return f"{100 * float(pick(quantisation.bin_shares(quantisation.codebooks()['NF4'], 64))):.1f} %"


def squared_error(book: str) -> str:
    return f"{quantisation.mean_squared_error(quantisation.codebooks()[book], 64):.4f}"


def stored_bits(double: bool) -> float:
    from peftbook.scratch.double_quant import bits_per_parameter

    return bits_per_parameter(64, double)


def per_rank(targets: str) -> int:
    return lora.parameters_per_rank(lora.TARGETS[targets])


def stack_peak(stack: str, name: str) -> str:
    """Peak of a step in a stack of `figures.fit`."""
    return f"{fit.stack_peaks(stack)[name] / 1e9:.0f} GB"


def device_peak(method: str, devices: int) -> str:
    """Peak of a step of Llama-2-70B on each of so many devices, a row of 2,048 tokens on each."""
    setup = replace(machines.BY_DEVICES[method][0], devices=devices)
    return f"{training_step(SHAPES['llama-2-70b'], setup).peak().total / 1e9:,.0f} GB"


COMPUTED: dict[str, Callable[[], str]] = {
    **{f"state_{method}_7b": partial(gigabytes, method) for method in ("full", "lora", "qlora")},
    "lora_r16_parameters": lambda: f"{16 * per_rank('all linear'):,}",
    "lora_r16_percent": lambda: f"{1600 * per_rank('all linear') / lora.SMOLLM2.parameters:.1f} %",
    "all_over_qv": lambda: f"{per_rank('all linear') / per_rank('q and v'):.1f}",
    "matrix_percent": lambda: f"{100 * 16 * 2 / 576:.1f} %",
    "nf4_share_least": lambda: nf4_share(lambda shares: shares.min()),
    "nf4_share_most": lambda: nf4_share(lambda shares: shares.max()),
    "equal_share": lambda: f"{100 / 16:.2f} %",
    "bits_single": lambda: f"{stored_bits(False):.3g}",
    "bits_double": lambda: f"{stored_bits(True):.3f}",
    "nf4_error": lambda: squared_error("NF4"),
    "int4_error": lambda: squared_error("INT4"),
}
COMPUTED |= {
    f"shard_{method.lower()}_{count}": partial(device_peak, method, count)
    for method in machines.BY_DEVICES
    for count in (1, 16)
}
COMPUTED |= {f"stack {stack} {name}": partial(stack_peak, stack, name) for stack in fit.STACKED for name in fit.BASES}
