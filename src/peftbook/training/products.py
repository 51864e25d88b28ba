"""Products of bfloat16 matrices on processors without instructions for them: as fast as float32, and the same numbers.

Factors in bfloat16 have eight significant bits, so that each of their products is exact in float32. Native instructions
sum these products in float32 and round the result once. So does this: both factors are widened, multiplied and summed
in float32, and the result is rounded. The two differ in the order of sums alone. float16 has eleven bits, and the same
holds.
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, get_kernel

from peftbook.runtime.precision import products_here

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
HALF = (torch.bfloat16, torch.float16)
ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


@dataclass
class Replacement:
    """The kernels that are in the place of torch's, if any, and how many contexts want them there."""

    library: Library | None = None
    users: int = 0


REPLACEMENT, LOCK = Replacement(), threading.Lock()


class Scratch(threading.local):
    """Float32 memory that the products of a thread take in turn: fresh pages would cost a quarter of the speed."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}

    def empty(self, name: str, *shape: int) -> Tensor:
        """A tensor of this shape whose memory the next one of this name will have."""
        size = math.prod(shape)
        if name not in self.kept or len(self.kept[name]) < size:
            self.kept.pop(name, None)
            with torch.inference_mode(False):
                self.kept[name] = torch.empty(size, dtype=torch.float32)
        return self.kept[name][:size].view(shape)

    def widened(self, name: str, value: Tensor) -> Tensor:
        """The value in float32, transposed in memory where it is."""
        if not value.is_contiguous() and value.mT.is_contiguous():
            return self.empty(name, *value.mT.shape).copy_(value.mT).mT
        return self.empty(name, *value.shape).copy_(value)


SCRATCH = Scratch()


def half_products(platform: str = "cpu") -> contextlib.AbstractContextManager[None]:
    """Within it products of half-width matrices run as fast as this machine can: natively, or widened to float32."""
    if platform != "cpu" or products_here().native:
        return contextlib.nullcontext()
    return widened_products()


@contextlib.contextmanager
def widened_products() -> Iterator[None]:
    """Within it, on a CPU, matrices in bfloat16 or float16 are multiplied in float32 and the result is rounded.

    mm, bmm, addmm and baddbmm, forward and backward, and the fused attention; all that else is computed, and all that
    is kept for the backward pass, stays as it is. The replacement is one of the whole process. May be nested.
    """
    with LOCK:
        REPLACEMENT.users += 1
        if REPLACEMENT.library is None:
            REPLACEMENT.library = replaced_kernels()
    try:
        yield
    finally:
        with LOCK:
            REPLACEMENT.users -= 1
            if not REPLACEMENT.users:
                REPLACEMENT.library._destroy()
                REPLACEMENT.library = None
                SCRATCH.kept.clear()


def replaced_kernels() -> Library:
    """Put the widened products in the place of torch's kernels, for tensors of half width; others go to torch's own."""
    library = Library("aten", "IMPL")
    makers: dict[str, Callable[[Any], Callable]] = {
        "mm": product(torch.mm),
        "bmm": product(torch.bmm),
        "addmm": sum_with_product(torch.mm),
        "baddbmm": sum_with_product(torch.bmm),
        ATTENTION: attention,
        f"{ATTENTION}_backward": attention,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is replaced is what is meant
        for name, make in makers.items():
            library.impl(name, make(get_kernel(f"aten::{name}", "CPU")), "CPU", with_keyset=True)
    return library


def product(multiply: Callable[..., Tensor]) -> Callable[[Any], Callable]:
    """A kernel for A B, of matrices or batches of them."""

    def make(own: Any) -> Callable:
        def kernel(keys, a: Tensor, b: Tensor) -> Tensor:
            if a.dtype not in HALF:
                return own.call_boxed(keys, a, b)
            return widened(multiply, a, b).to(a.dtype)

        return kernel

    return make


def sum_with_product(multiply: Callable[..., Tensor]) -> Callable[[Any], Callable]:
    """A kernel for beta C + alpha A B, rounded once."""

    def make(own: Any) -> Callable:
        def kernel(keys, c: Tensor, a: Tensor, b: Tensor, *, beta=1, alpha=1) -> Tensor:
            if a.dtype not in HALF:
                return own.call_boxed(keys, c, a, b, beta=beta, alpha=alpha)
            result = widened(multiply, a, b)
            if alpha != 1:
                result.mul_(alpha)
            if beta != 0:
                result.add_(c, alpha=beta)
            return result.to(a.dtype)

        return kernel

    return make


def widened(multiply: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    """A B in float32, in scratch memory: (m, k) and (k, n) to (m, n), or (c, m, k) and (c, k, n) to (c, m, n)."""
    result = SCRATCH.empty("result", *a.shape[:-1], b.shape[-1])
    return multiply(SCRATCH.widened("left", a), SCRATCH.widened("right", b), out=result)


def attention(own: Any) -> Callable:
    """A kernel for fused attention, or its backward pass: every tensor is widened, those that come back are rounded.

    The weights of attention stay in float32 before they meet the values, where the native kernel rounds them too.
    """

    def kernel(keys, first: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, ...]:
        results = own.call_boxed(keys, wide(first), *map(wide, rest), **{k: wide(v) for k, v in options.items()})
        if first.dtype not in HALF:
            return results
        if len(results) == 2:  # output and, in float32, the logarithm of the sums
            return results[0].to(first.dtype), results[1]
        return tuple(result.to(first.dtype) for result in results)

    return kernel


def wide(value: Any) -> Any:
    """A tensor of half width in float32; all else as it is."""
    return value.float() if isinstance(value, Tensor) and value.dtype in HALF else value
