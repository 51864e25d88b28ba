"""How fast this machine is: seconds of matrix products, elementwise passes and the rest, measured in some seconds."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional

from peftbook.core.records import default_store, load_record
from peftbook.memory import DecoderShape, Setup
from peftbook.memory.time_model import Curve, ProductLaw, Rates, step_seconds
from peftbook.runtime.hardware import cores, is_idle, machine_name, waited
from peftbook.runtime.precision import fastest, machine_file, read_cache, write_cache
from peftbook.training.products import TORCH_DTYPES, half_products

VERSION = 3  # of what is measured: raised when it changes, so that no older file is read
DTYPES = ("fp32", "bf16")
MOST_SECONDS = 12.0  # of measurements whose sizes can be left out; the others take a few more
SHARES = {"products": 0.2, "batched": 0.1, "fused": 0.05, "curve": 0.03}  # of that, for each type of number
ONCE = 0.25  # a call of so many seconds is not repeated
LEAST_SECONDS, LEAST_REPEATS, REPEATS = 0.06, 3, 30  # a measurement takes so long, or so many repeats
# rows, inner, columns, smallest first: few and many tokens, narrow and wide matrices, an adapter's, a head's
PRODUCTS = (
    (1, 576, 1536), (512, 576, 16), (512, 16, 576), (16, 512, 576), (8, 1536, 576), (64, 576, 1536), (512, 576, 1536),
    (24, 576, 32_768), (576, 512, 1536), (256, 2048, 2048), (128, 576, 16_384),
)  # fmt: skip
BATCHED = ((72, 48, 64, 48), (72, 96, 64, 96), (36, 256, 64, 256), (36, 256, 256, 64))  # copies, rows, inner, columns
ELEMENTS = (256, 4096, 65_536, 524_288, 4_194_304, 16_777_216)
REFERENCE = "209078ccdf7a"  # the record whose rates stand in for those of a machine that cannot be measured
ROUGHLY, ROUGH, MOST_BESIDE = (512, 576, 1536), {"cpu": 1.5, "cuda": 3.0}, 4.0
TORCH = {name: TORCH_DTYPES[name] for name in DTYPES}
DRAWN = 65_536  # random numbers, which take longer to draw than what is timed
# Operands take turns and results stay for a while, as in training: no weight is still in a cache when it is used again.
IN_TURN, MOST_IN_TURN, CACHES = 4, 64, 64_000_000
TURNS_SECONDS = 0.25  # what they may take together
FUSED = ((1, 9, 64, 64), (4, 9, 256, 64))  # rows, heads, tokens, width of a head
MATRIX = (1536, 2048)
TINY = DecoderShape(layers=3, hidden=64, ffn=128, heads=4, kv_heads=2, vocab=128, tied=True)


def machine_rates(platform: str = "cpu") -> Rates:
    """The rates of this machine with the threads that this process has, measured at the first call and then kept.

    Those that were measured beside other work are kept until the machine is idle.
    """
    if (known := known_rates(platform)) is not None:
        return known
    path = rates_file(platform) if is_idle() else busy_rates_file(platform)
    rates = calibrate(platform)
    write_cache(path, rates.as_json())
    return rates


def known_rates(platform: str = "cpu") -> Rates | None:
    """The rates that were measured on this machine before, or None; those of a busy machine hold only while it is."""
    if (found := read_cache(rates_file(platform))) is not None:
        return Rates.from_json(found)
    found = read_cache(busy_rates_file(platform))
    return None if found is None or is_idle() else Rates.from_json(found)


def rough_rates(platform: str = "cpu") -> tuple[Rates, float]:
    """Rates of a machine that is too busy to be measured, and the factor by which times may be shorter or longer.

    Those of REFERENCE, scaled by a product in each type, which takes a tenth of a second; the factor is ROUGH for
    another machine than that, and grows with what else is computed here.
    """
    path = default_store().path(REFERENCE)
    assert path is not None
    reference = Rates.from_json(load_record(path).metrics_info["rates"])
    slower = {name: product_seconds(dtype, platform) / law_seconds(reference, name) for name, dtype in TORCH.items()}
    rates, narrow = reference.slowed(slower["fp32"]), slower["bf16"] / slower["fp32"]
    laws: dict[str, Any] = {
        name: {**getattr(rates, name), "bf16": getattr(rates, name)["bf16"].slowed(narrow)}
        for name in ("products", "batched")
    }
    others = min(psutil.getloadavg()[0] / cores(), MOST_BESIDE) if platform == "cpu" else 0.0
    beside = math.sqrt(1 + others)  # alone at one end of the range, with a fair share of the cores at the other
    return replace(rates, **laws).slowed(beside), ROUGH[platform] * beside


def law_seconds(rates: Rates, dtype: str) -> float:
    """What a product of the size ROUGHLY takes by these rates."""
    (m, k, n), law = ROUGHLY, rates.products[dtype]
    return 2 * m * k * n * law.each_flop + TORCH[dtype].itemsize * (m * k + k * n + m * n) * law.each_byte


def product_seconds(dtype: torch.dtype, platform: str) -> float:
    """The same on this machine if nothing else ran: on a CPU by the processor's time of one thread, shared by all."""
    device, threads, (m, k, n) = torch.device(platform), torch.get_num_threads(), ROUGHLY
    x, w = (torch.ones(*sides, dtype=dtype, device=device) for sides in ((m, k), (n, k)))
    if platform != "cpu":
        return seconds_of(lambda: layer(x, w), device)
    torch.set_num_threads(1)
    try:
        with half_products(platform):
            return fastest(lambda: layer(x, w)) / threads
    finally:
        torch.set_num_threads(threads)


def rates_file(platform: str) -> Path:
    """The file of this machine's rates with so many threads."""
    return machine_file("rates", machine_name(platform), str(torch.get_num_threads()), str(VERSION))


def busy_rates_file(platform: str) -> Path:
    """The file of rates that were measured beside other work, which made the machine look slower than it is."""
    return rates_file(platform).with_suffix(".busy.json")


def calibrate(platform: str = "cpu", seconds: float = MOST_SECONDS) -> Rates:
    """Measure the rates of this machine, products of bfloat16 as the loop computes them here, in twenty seconds.

    seconds: for the sizes that can be left out; on a slow machine the largest are, and what takes long is called once.
    """
    device = torch.device(platform)
    share = {name: part * seconds for name, part in SHARES.items()}
    with torch.random.fork_rng(devices=[]), half_products(platform):
        torch.manual_seed(0)
        rates = Rates(
            products={
                name: product_law(PRODUCTS, dtype, device, layer, share["products"]) for name, dtype in TORCH.items()
            },
            batched={
                name: product_law(BATCHED, dtype, device, torch.matmul, share["batched"])
                for name, dtype in TORCH.items()
            },
            fused={name: fused(dtype, device, share["fused"]) for name, dtype in TORCH.items()},
            plain={name: curve(lambda x: x * x, dtype, device, share["curve"]) for name, dtype in TORCH.items()},
            exponential={
                name: curve(lambda x: x.view(-1, 256).softmax(-1), dtype, device, share["curve"])
                for name, dtype in TORCH.items()
            },
            dequantised=dequantised(device),
            optimiser=optimiser(device),
            operation=0.0,
        )
        return replace(rates, operation=operation(rates, platform))


def layer(x: Tensor, w: Tensor) -> Tensor:
    """x Wᵀ as a linear layer computes it. x: (t, k), w: (n, k)."""
    return functional.linear(x, w)


def seconds_each(
    work: Callable[..., object], operands: Callable[[], Sequence[Tensor]], most: int, device: torch.device
) -> float:
    """Seconds of work with one set of operands after another, all results being kept until the last.

    operands: makes a set.  most: how many take turns, fewer where they would take longer than TURNS_SECONDS.
    """
    first = operands()
    alone = seconds_of(lambda: work(*first), device)
    turns = min(most, int(TURNS_SECONDS / alone))
    if turns < 2:
        return alone
    sets = [first, *(operands() for _ in range(turns - 1))]
    return seconds_of(lambda: [work(*tensors) for tensors in sets], device) / turns


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, the fastest of several after a first one: what else the machine does only adds.

    A first call that takes long is the only one.
    """
    first = seconds_once(work, device)
    if first > ONCE:
        return first
    seconds: list[float] = []
    while len(seconds) < LEAST_REPEATS or (sum(seconds) < LEAST_SECONDS and len(seconds) < REPEATS):
        seconds.append(seconds_once(work, device))
    return min(seconds)


def seconds_once(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call; what this thread waited for a core meanwhile is taken off, where the system tells."""
    synchronise(device)
    outer, before = time.perf_counter(), waited()
    began = time.perf_counter()
    work()
    synchronise(device)
    inner, delay = time.perf_counter() - began, waited() - before
    return time.perf_counter() - outer - delay if delay else inner


T = TypeVar("T")


def while_time_lasts(sizes: Sequence[T], amount: Callable[[T], float], seconds: float) -> Iterator[T]:
    """The sizes, smallest first, until the next one would take longer than what is left of so many seconds.

    amount: what the time of a size is proportional to at most. At least two sizes are measured.
    """
    began = last = time.monotonic()
    for at, size in enumerate(sizes):
        now = time.monotonic()
        if at > 1 and now - began + (now - last) * amount(size) / amount(sizes[at - 1]) > seconds:
            return
        last = now
        yield size


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def product_law(
    sizes: Sequence[tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device,
    multiply: Callable[[Tensor, Tensor], Tensor],
    seconds: float,
) -> ProductLaw:
    """Least squares of relative errors, with no negative coefficient, over products of several sizes.

    multiply: `layer`, or a product of batches.
    """
    rows = []
    for size in while_time_lasts(sizes, math.prod, seconds):
        *copies, m, k, n = size
        shapes = ((m, k), (n, k) if multiply is layer else (k, n))
        times, moved = math.prod(copies), dtype.itemsize * (m * k + k * n + m * n)
        turns = min(max(IN_TURN, CACHES // (dtype.itemsize * times * (m * k + k * n))), MOST_IN_TURN)

        def operands(copies=tuple(copies), shapes=shapes) -> list[Tensor]:
            return [torch.ones(*copies, *sides, dtype=dtype, device=device) for sides in shapes]

        elapsed = seconds_each(multiply, operands, turns, device)
        rows.append([2 * times * m * k * n / elapsed, times * moved / elapsed])
    scale = np.array(rows).max(axis=0)
    from scipy.optimize import nnls

    coefficients, _ = nnls(np.array(rows) / scale, np.ones(len(rows)))
    return ProductLaw(*(float(coefficient) for coefficient in coefficients / scale))


def fused(dtype: torch.dtype, device: torch.device, seconds: float) -> tuple[float, float]:
    """Seconds of a floating-point operation in fused causal attention, forward and backward, at the largest size.

    Operations are counted as if nothing were masked: two products forward, five backward.
    """
    costs = (0.0, 0.0)
    for b, a, t, d in while_time_lasts(FUSED, lambda shape: math.prod(shape) * shape[2], seconds):
        q, k, v = (torch.randn(b, a, t, d, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
        forward = functools.partial(functional.scaled_dot_product_attention, q, k, v, is_causal=True)
        result = forward()
        backward = functools.partial(
            torch.autograd.grad, result, (q, k, v), torch.randn_like(result), retain_graph=True
        )
        flops = 2 * b * a * t * t * d
        costs = seconds_of(forward, device) / (2 * flops), seconds_of(backward, device) / (5 * flops)
    return costs


def curve(work: Callable[[Tensor], object], dtype: torch.dtype, device: torch.device, seconds: float) -> Curve:
    """Seconds of an elementwise operation by number of elements."""
    elapsed = {}
    for count in while_time_lasts(ELEMENTS, float, seconds):
        operands = functools.partial(random_elements, count, dtype, device)
        elapsed[float(count)] = seconds_each(work, operands, IN_TURN, device)
    return Curve(tuple(elapsed), tuple(elapsed.values()))


def random_elements(count: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """So many random elements, again and again the same where there are many."""
    return [torch.randn(min(count, DRAWN), dtype=dtype, device=device).repeat(max(1, count // DRAWN))]


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
    from peftbook.training.random_model import random_ids, subject

    setup = Setup(dtype="fp32", adapter_dtype="fp32", batch=1, seq=16, rank=4, device=platform, attention="eager")
    tuned, ids = subject(TINY, setup, 0), random_ids(TINY, setup, 0)
    step = seconds_of(lambda: tuned.step(ids), torch.device(platform))
    counted = replace(rates, operation=1.0)
    calls = float(step_seconds(TINY, setup, counted)["calls"])
    others = sum(float(value) for name, value in step_seconds(TINY, setup, rates).items() if name != "calls")
    return max(0.0, step - others) / calls
