"""What a training step holds in memory, byte by byte, and how long it takes over a 16-bit and a 4-bit base.

The models have random weights: memory and time depend on the shape alone.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import re
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.memory import Configuration, DecoderShape
from peftbook.memory.walk import layer_names
from peftbook.runtime.hardware import peak_memory
from peftbook.training.probes import Findings, positive
from peftbook.training.random_model import Subject, model_and_ids, random_ids, subject

MOMENTS = ("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")  # torch's, then bitsandbytes'
WARM_UP = DecoderShape(layers=1, hidden=64, ffn=128, heads=4, kv_heads=2, vocab=128, tied=True)


def peak(probe: specs.Probe) -> Findings:
    """Bytes of a training step, counted term by term, and the peaks of tensors and of the process.

    settings: configuration (the text of a `Configuration`), trials. A step of a tiny model comes first, so that
    libraries are loaded.

    weights, constants (of quantisation), adapter, gradients, moments: bytes of the tensors' storages.
    kept: storages that autograd holds between forward and backward, parameters and buffers left out.
    tensor_peak: state, and the most that torch's allocator handed out beyond it during a step.
    process_peak: largest resident memory of the process during `trials` steps, beyond that before the model was built;
    process_rest: the same between two steps. Where the system cannot reset its peak, building counts too
    (peak_was_reset is 0).
    """
    if probe.platform != "cpu":
        raise InputError(f"memory.peak measures a process's memory: use platform 'cpu', not {probe.platform!r}.")
    (trials,) = positive(probe, "trials")
    configuration = Configuration.parse(probe.word("configuration"))
    first = subject(WARM_UP, replace(configuration.setup, seq=min(configuration.setup.seq, 128)), probe.seed)
    first.step(random_ids(WARM_UP, first.setup, probe.seed))
    del first
    gc.collect()
    before = resident_bytes()
    tuned, ids = model_and_ids(configuration, probe.seed)
    counted = count_step(tuned, ids)
    was_reset = reset_peak()
    seconds = [round(tuned.step(ids), 4) for _ in range(trials)]
    rest = resident_bytes() - before  # before the peak is read: reading takes memory itself
    process = peak_memory("cpu") - before
    state = sum(counted[f"{name}_bytes"] for name in ("weights", "constants", "adapter", "moments"))
    handed_out = allocated_peak(lambda: tuned.step(ids))
    return Findings(
        measurements={
            **counted,
            "tensor_peak_bytes": state + handed_out,
            "process_peak_bytes": process,
            "process_rest_bytes": rest,
            "process_before_bytes": before,
            "peak_was_reset": int(was_reset),
            "step_seconds": median(seconds),
            "threads": torch.get_num_threads(),
        },
        per_example={"step_seconds": seconds},
    )


def activations(probe: specs.Probe) -> Findings:
    """Bytes that autograd keeps between forward and backward, by module, for each of many configurations.

    settings: configurations (texts of `Configuration`s). per_example: module → bytes in each configuration; layers
    that are alike are counted together, under the name that they have on the byte model's tape.
    """
    sizes: dict[str, list[float]] = {}
    texts = probe.words("configurations")
    for index, text in enumerate(texts):
        configuration = Configuration.parse(text)
        tuned, ids = model_and_ids(configuration, probe.seed)
        for module, size in kept_by_module(tuned, ids, configuration.shape).items():
            sizes.setdefault(module, [0.0] * len(texts))[index] += size
    return Findings(measurements={"configurations": len(texts)}, per_example=sizes)


def step_peaks(probe: specs.Probe) -> Findings:
    """The most that torch's allocator hands out during a training step, in each of many configurations.

    settings: configurations (texts of `Configuration`s). per_example: peak_bytes, beyond weights and optimiser. A step
    comes first, so that the optimiser has its moments and kernels what they keep.
    """
    peaks = []
    for text in probe.words("configurations"):
        tuned, ids = model_and_ids(Configuration.parse(text), probe.seed)
        tuned.step(ids)
        peaks.append(float(allocated_peak(functools.partial(tuned.step, ids))))
    return Findings(measurements={"configurations": len(peaks)}, per_example={"peak_bytes": peaks})


def step_time(probe: specs.Probe) -> Findings:
    """Seconds of a training step of several contenders, all in one process.

    settings: contenders (names), configurations (a text for each), trials. A trial runs every contender once, in an
    order drawn anew, so that a slow spell of the machine hits all; the first is not recorded.
    """
    (trials,) = positive(probe, "trials")
    names = probe.words("contenders")
    texts = zip(names, probe.words("configurations"), strict=True)
    made = {name: model_and_ids(Configuration.parse(text), probe.seed) for name, text in texts}
    rng = np.random.default_rng(probe.seed)
    seconds: dict[str, list[float]] = {f"{name}_seconds": [] for name in names}
    for trial in range(trials + 1):
        for name in rng.permutation(names).tolist():
            tuned, ids = made[name]
            elapsed = tuned.step(ids)
            if trial:
                seconds[f"{name}_seconds"].append(round(elapsed, 5))
    medians = {name: median(values) for name, values in seconds.items()}
    return Findings(measurements={**medians, "threads": torch.get_num_threads()}, per_example=seconds)


def storages(values: Iterable[Tensor]) -> dict[int, int]:
    """Address → bytes of the storages behind these tensors, each once."""
    return {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values}


def storage_bytes(values: Iterable[Tensor]) -> int:
    """Bytes of the storages behind these tensors, each once."""
    return sum(storages(values).values())


def constants(model: nn.Module) -> list[Tensor]:
    """What quantised parameters need to be read: scales, and in 4 bits their own scales and mean, and code tables."""
    states = [state for value in model.parameters() if (state := getattr(value, "quant_state", None)) is not None]
    inner = [state.state2 for state in states if state.nested]
    tensors = [value for state in (*states, *inner) for value in (state.absmax, state.code, state.offset)]
    eight = [part.state.SCB for part in model.modules() if hasattr(getattr(part, "state", None), "SCB")]
    return [value for value in (*tensors, *eight) if isinstance(value, Tensor)]


def count_step(tuned: Subject, ids: Tensor) -> dict[str, int]:
    """Bytes of every term, counted in one training step."""
    model = tuned.model
    loss, kept = with_kept(tuned, ids, lambda: "")
    loss.backward()
    gradients = storage_bytes(value.grad for value in tuned.trained if value.grad is not None)
    tuned.optimizer.step()
    tuned.optimizer.zero_grad(set_to_none=True)
    states = tuned.optimizer.state.values()
    moments = [state[name] for state in states for name in MOMENTS if name in state]
    full = tuned.setup.method == "full"
    return {
        "weights_bytes": storage_bytes(value for value in model.parameters() if full or not value.requires_grad),
        "constants_bytes": storage_bytes(constants(model)),
        "adapter_bytes": 0 if full else storage_bytes(tuned.trained),
        "gradients_bytes": gradients,
        "moments_bytes": storage_bytes(moments),
        "kept_bytes": sum(size for _, size in kept),
    }


def with_kept(tuned: Subject, ids: Tensor, where: Callable[[], str]) -> tuple[Tensor, list[tuple[str, int]]]:
    """The loss, and (where it was kept first, bytes) of every storage that autograd keeps for backward.

    Parameters and buffers are left out, and what was kept for a graph that forward itself dropped. `where` is asked at
    each.
    """
    model = tuned.model
    values = [value.data for value in (*model.parameters(), *model.buffers())]  # a copy's address may come again
    fixed = storages(values)
    notes: list[tuple[str, weakref.ref[SavedTensor]]] = []

    def note(value: Tensor) -> SavedTensor:
        kept = SavedTensor(value)
        notes.append((where(), weakref.ref(kept)))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept.value):
        loss = tuned.loss(ids)
    sizes: dict[int, tuple[str, int]] = {}
    for module, reference in notes:
        if (kept := reference()) is not None:
            for address, size in storages([kept.value]).items():
                if address not in fixed:
                    sizes.setdefault(address, (module, size))
    return loss, list(sizes.values())


@dataclass
class SavedTensor:
    """A tensor in autograd's hands."""

    value: Tensor


def kept_by_module(tuned: Subject, ids: Tensor, shape: DecoderShape) -> dict[str, int]:
    """Module, under its name on the byte model's tape → bytes that autograd keeps of it."""
    inside: list[str] = [""]

    def enter(module: nn.Module, given: Any, name: str) -> None:
        inside.append(name)

    def leave(module: nn.Module, given: Any, result: Any) -> None:
        inside.pop()

    hooks = []
    for name, part in tuned.model.named_modules():
        hooks.append(part.register_forward_pre_hook(lambda module, given, name=name: enter(module, given, name)))
        hooks.append(part.register_forward_hook(leave))
    _, kept = with_kept(tuned, ids, lambda: inside[-1])
    for hook in hooks:
        hook.remove()
    sizes: dict[str, int] = {}
    for name, size in kept:
        module = name_on_tape(name, shape)
        sizes[module] = sizes.get(module, 0) + size
    return sizes


def name_on_tape(name: str, shape: DecoderShape) -> str:
    """A module's name on the byte model's tape, where one layer stands for all that are like it."""
    if match := re.search(r"layers\.(\d+)\.?(.*)$", name):
        return f"{layer_names(shape)[int(match[1])]}.{match[2]}".rstrip(".")
    name = name.replace("base_model.", "").removeprefix("model.").removeprefix("model.")
    return name if name not in ("", "model", "base_model") else "loss"


def allocated_peak(step: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator had handed out at once during a call, beyond those before it."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    return peak_of(trace)


def peak_of(trace: Any) -> int:
    """The most bytes that were handed out at once while torch's profiler watched, beyond those before it."""
    notes = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    notes.sort(key=lambda note: note.start_ns())
    return max(itertools.accumulate(note.nbytes() for note in notes))


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    return psutil.Process().memory_info().rss


def reset_peak() -> bool:
    """Set the system's peak of this process's memory to its present value; whether that was possible (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False
