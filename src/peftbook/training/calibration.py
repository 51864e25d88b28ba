"""How fast this machine is: seconds of matrix products, elementwise passes and the rest, measured in some seconds."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.nn import functional

from peftbook.cost import Curve, ProductLaw, Rates, step_seconds
from peftbook.memory import Setup, Shape
from peftbook.records import write_atomically
from peftbook.training.hardware import machine_name
from peftbook.training.models import cache_folder
from peftbook.training.random_model import random_ids, subject

__all__ = ["calibrate", "known_rates", "machine_rates"]

VERSION = 2  # of what is measured: raised when it changes, so that no older file is read
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LEAST_SECONDS, LEAST_REPEATS, REPEATS = 0.06, 3, 30  # a measurement takes so long, or so many repeats
# rows, inner, columns: few and many tokens, narrow and wide matrices, an adapter's, a head's
PRODUCTS = (
    (1, 576, 1536), (8, 1536, 576), (64, 576, 1536), (512, 576, 1536), (512, 576, 16), (512, 16, 576), (16, 512, 576),
    (128, 576, 16_384), (24, 576, 32_768), (256, 2048, 2048), (576, 512, 1536),
)  # fmt: skip
BATCHED = ((72, 48, 64, 48), (72, 96, 64, 96), (36, 256, 64, 256), (36, 256, 256, 64))  # copies, rows, inner, columns
ELEMENTS = (256, 4096, 65_536, 524_288, 4_194_304, 16_777_216)
# Operands take turns and results stay for a while, as in training: no weight is still in a cache when it is used again.
IN_TURN, MOST_IN_TURN, CACHES = 4, 64, 64_000_000
FUSED = (4, 9, 256, 64)  # rows, heads, tokens, width of a head
MATRIX = (1536, 2048)
TINY = Shape(layers=3, hidden=64, ffn=128, heads=4, kv_heads=2, vocab=128, tied=True)


def machine_rates(platform: str = "cpu") -> Rates:
    """The rates of this machine with the threads that this process has, measured at the first call and then kept."""
    if (known := known_rates(platform)) is not None:
        return known
    rates = calibrate(platform)
    write_atomically(kept_at(platform), json.dumps(rates.as_json(), indent=1).encode())
    return rates


def known_rates(platform: str = "cpu") -> Rates | None:
    """The rates that were measured on this machine before, or None."""
    path = kept_at(platform)
    return Rates.from_json(json.loads(path.read_text())) if path.is_file() else None


def kept_at(platform: str) -> Path:
    """The file of this machine's rates with so many threads."""
    name = f"{machine_name(platform)} {torch.get_num_threads()} {torch.__version__} {VERSION}"
    return cache_folder() / "rates" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"


def calibrate(platform: str = "cpu") -> Rates:
    """Measure the rates of this machine, in less than twenty seconds."""
    device = torch.device(platform)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rates = Rates(
            products={name: product_law(PRODUCTS, dtype, device) for name, dtype in DTYPES.items()},
            batched={name: product_law(BATCHED, dtype, device) for name, dtype in DTYPES.items()},
            fused={name: fused(dtype, device) for name, dtype in DTYPES.items()},
            plain={name: curve(lambda x: x * x, dtype, device) for name, dtype in DTYPES.items()},
            exponential={
                name: curve(lambda x: x.view(-1, 256).softmax(-1), dtype, device) for name, dtype in DTYPES.items()
            },
            dequantised=dequantised(device),
            optimiser=optimiser(device),
            operation=0.0,
        )
        return replace(rates, operation=operation(rates, platform))


def seconds_each(work: Callable[..., object], operands: Sequence[Sequence[Tensor]], device: torch.device) -> float:
    """Seconds of work with one of the operands after another, all results being kept until the last."""
    return seconds_of(lambda: [work(*some) for some in operands], device) / len(operands)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, the fastest of several after a first one: what else the machine does only adds.

    What this thread waited for a core meanwhile is taken off, where the system tells.
    """
    work()
    found: list[float] = []
    while len(found) < LEAST_REPEATS or (sum(found) < LEAST_SECONDS and len(found) < REPEATS):
        synchronise(device)
        outer, before = time.perf_counter(), waited()
        began = time.perf_counter()
        work()
        synchronise(device)
        inner, delay = time.perf_counter() - began, waited() - before
        found.append(time.perf_counter() - outer - delay if delay else inner)
    return min(found)


def waited() -> float:
    """Seconds that this thread has waited for a core since it began (Linux; elsewhere 0)."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_law(sizes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> ProductLaw:
    """Least squares of relative errors, with no negative coefficient, over products of several sizes."""
    rows = []
    for size in sizes:
        *copies, m, k, n = size
        each = dtype.itemsize * int(np.prod(copies)) * (m * k + k * n)
        turns = min(max(IN_TURN, CACHES // each), MOST_IN_TURN)
        operands = [
            [torch.ones(*copies, *one, dtype=dtype, device=device) for one in ((m, k), (k, n))] for _ in range(turns)
        ]
        found = seconds_each(torch.matmul, operands, device)
        times, moved = int(np.prod(copies)), dtype.itemsize * (m * k + k * n + m * n)
        rows.append([2 * times * m * k * n / found, times * moved / found])
    scale = np.array(rows).max(axis=0)
    found, _ = nnls(np.array(rows) / scale, np.ones(len(rows)))
    return ProductLaw(*(float(one) for one in found / scale))


def fused(dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """Seconds of a floating-point operation in fused causal attention, forward and backward.

    Operations are counted as if nothing were masked: two products forward, five backward.
    """
    b, a, t, d = FUSED
    q, k, v = (torch.randn(b, a, t, d, dtype=dtype, device=device, requires_grad=True) for _ in range(3))

    def forward() -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    result = forward()
    gradient = torch.randn_like(result)
    ahead = seconds_of(forward, device)
    back = seconds_of(lambda: torch.autograd.grad(result, (q, k, v), gradient, retain_graph=True), device)
    flops = 2 * b * a * t * t * d
    return ahead / (2 * flops), back / (5 * flops)


def curve(work: Callable[[Tensor], object], dtype: torch.dtype, device: torch.device) -> Curve:
    """Seconds of an elementwise operation by number of elements."""
    seconds = []
    for count in ELEMENTS:
        operands = [[torch.randn(count, dtype=dtype, device=device)] for _ in range(IN_TURN)]
        seconds.append(seconds_each(work, operands, device))
    return Curve(tuple(map(float, ELEMENTS)), tuple(seconds))


def dequantised(device: torch.device) -> float:
    """Seconds of a weight that is turned from NF4 into bfloat16."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weights = torch.randn(*MATRIX, dtype=torch.bfloat16, device=device)
    codes, state = quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
    return seconds_of(lambda: dequantize_4bit(codes, state), device) / weights.numel()


def optimiser(device: torch.device) -> float:
    """Seconds of a value that fused AdamW moves."""
    value = torch.randn(ELEMENTS[-1], device=device, requires_grad=True)
    value.grad = torch.randn_like(value)
    return seconds_of(torch.optim.AdamW([value], fused=True).step, device) / value.numel()


def operation(rates: Rates, platform: str) -> float:
    """Seconds that starting an operation takes: a step of a tiny model, beyond what its operations take."""
    setup = Setup(dtype="fp32", adapter_dtype="fp32", batch=1, seq=16, rank=4, device=platform, attention="eager")
    tuned, ids = subject(TINY, setup, 0), random_ids(TINY, setup, 0)
    one = seconds_of(lambda: tuned.step(ids), torch.device(platform))
    counted = replace(rates, operation=1.0)
    calls = float(step_seconds(TINY, setup, counted)["calls"])
    others = sum(float(value) for name, value in step_seconds(TINY, setup, rates).items() if name != "calls")
    return max(0.0, one - others) / calls
