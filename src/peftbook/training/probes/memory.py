"""What a training step holds in memory, byte by byte, and how long it takes over a 16-bit and a 4-bit base.

The models have random weights: memory and time depend on the shape alone.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from peftbook import specs
from peftbook.errors import InputError
from peftbook.studies.memory import Shape, base_bytes
from peftbook.training.execute import peak_memory
from peftbook.training.methods import apply_method, trainable_state
from peftbook.training.models import keep_linear4bit_layout
from peftbook.training.probes import Findings
from peftbook.training.probes.serving import chosen_dtype, positive

__all__ = ["peak", "step_time"]

BASES = ("bf16", "nf4", "nf4_double")
CONTENDERS = {"lora": "bf16", "qlora_single": "nf4", "qlora": "nf4_double"}
STD = 0.02
WARM_UP = Shape(layers=1, hidden=64, ffn=128, heads=4, kv_heads=2, vocab=128, tied=True)


@dataclass
class Subject:
    """A model with its method, ready for a training step."""

    model: Any
    optimizer: torch.optim.Optimizer

    @property
    def trained(self) -> list[Tensor]:
        """The trainable tensors."""
        return list(trainable_state(self.model).values())

    def loss(self, ids: Tensor) -> Tensor:
        """The loss of transformers' own forward pass: every position predicts the next. ids: (batch, tokens)."""
        return self.model(input_ids=ids, labels=ids, use_cache=False).loss

    def step(self, ids: Tensor) -> float:
        """Forward, backward and AdamW; returns the seconds."""
        began = time.perf_counter()
        self.loss(ids).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - began


def peak(probe: specs.Probe) -> Findings:
    """Bytes of a training step of one row, counted term by term, and the peaks of tensors and of the process.

    settings: layers, hidden, ffn, heads, kv_heads, vocab, tied (the shape); base (bf16, nf4, nf4_double: the decoder's
    linear layers; the rest is bf16); method (lora or lora_fa with rank and targets, or prompt with length); dtype (of
    the adapter); tokens; checkpointing; trials. A step of a tiny model comes first, so that libraries are loaded.

    weights, constants (of quantisation), adapter, gradients, moments: bytes of the tensors' storages.
    kept: storages that autograd holds between forward and backward, parameters and buffers left out.
    tensor_peak: state, and the most that torch's allocator handed out beyond it during a step.
    process_peak: largest resident memory of the process during `trials` steps, beyond that before the model was built;
    process_rest: the same between two steps. Where the system cannot reset its peak, building counts too
    (peak_was_reset is 0).
    """
    if probe.platform != "cpu":
        raise InputError(f"memory.peak measures a process's memory: use platform 'cpu', not {probe.platform!r}.")
    tokens, trials = positive(probe, "tokens", "trials")
    shape, base = shape_of(probe), chosen(probe, "base", BASES)
    check_fits(shape, base)
    subject = prepare(probe, WARM_UP, base)
    subject.step(random_ids(WARM_UP, tokens, probe.seed))
    del subject
    gc.collect()
    before = resident_bytes()
    subject = prepare(probe, shape, base)
    ids = random_ids(shape, tokens, probe.seed)
    counted = count_step(subject, ids)
    was_reset = reset_peak()
    seconds = [round(subject.step(ids), 4) for _ in range(trials)]
    process = peak_memory("cpu") - before
    rest = resident_bytes() - before
    state = sum(counted[f"{name}_bytes"] for name in ("weights", "constants", "adapter", "moments"))
    handed_out = allocated_peak(lambda: subject.step(ids))
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


def step_time(probe: specs.Probe) -> Findings:
    """Seconds of a training step of LoRA over a base in bf16, in NF4, and in NF4 with double quantisation.

    settings: the shape as in `peak`; rank, targets, dtype (of the adapter), tokens, trials. A trial runs every
    contender once, in an order drawn anew, so that a slow spell of the machine hits all; the first is not recorded.
    """
    tokens, trials = positive(probe, "tokens", "trials")
    shape = shape_of(probe)
    with_method = probe.model_copy(update={"settings": {**probe.settings, "method": "lora", "checkpointing": False}})
    subjects = {name: prepare(with_method, shape, base) for name, base in CONTENDERS.items()}
    ids = random_ids(shape, tokens, probe.seed)
    rng = np.random.default_rng(probe.seed)
    seconds: dict[str, list[float]] = {f"{name}_seconds": [] for name in CONTENDERS}
    for trial in range(trials + 1):
        for name in rng.permutation(list(CONTENDERS)).tolist():
            found = subjects[name].step(ids)
            if trial:
                seconds[f"{name}_seconds"].append(round(found, 5))
    medians = {name: median(values) for name, values in seconds.items()}
    return Findings(measurements={**medians, "threads": torch.get_num_threads()}, per_example=seconds)


def shape_of(probe: specs.Probe) -> Shape:
    """The shape in the settings. Raises InputError for sizes that make no Llama."""
    names = ("layers", "hidden", "ffn", "heads", "kv_heads", "vocab")
    shape = Shape(**dict(zip(names, positive(probe, *names), strict=True)), tied=bool(probe.whole("tied")))
    if shape.hidden % (2 * shape.heads) or shape.heads % shape.kv_heads:
        raise InputError(
            f"hidden = {shape.hidden}, heads = {shape.heads} and kv_heads = {shape.kv_heads} make no Llama: "
            "heads of even width must fill hidden, and kv_heads must divide heads."
        )
    return shape


def chosen(probe: specs.Probe, name: str, known: Iterable[str]) -> str:
    """A setting that is one of several words. Raises InputError for another one."""
    value = probe.word(name)
    if value not in known:
        raise InputError(f"The probe's {name} is {value!r}: choose one of {', '.join(known)}.")
    return value


def check_fits(shape: Shape, base: str) -> None:
    """Refuse a model whose weights alone do not fit: the system would end the process without a word."""
    needed = sum(base_bytes(shape, base))
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"The weights take {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: "
            "give a smaller shape or a 4-bit base."
        )


def prepare(probe: specs.Probe, shape: Shape, base: str) -> Subject:
    """A random model of this shape and base with the probe's method and its optimiser."""
    model = random_llama(shape, base, probe.seed)
    tuned = apply_method(model, method_of(probe), probe.seed)
    for value in trainable_state(tuned).values():
        value.data = value.data.to(chosen_dtype(probe))
    if probe.whole("checkpointing"):
        model.activation_checkpointing_enable()
    tuned.train()
    return Subject(tuned, torch.optim.AdamW(trainable_state(tuned).values(), lr=1e-4, fused=True))


def method_of(probe: specs.Probe) -> specs.Spec:
    """The method in the settings; a 4-bit base is made before it is applied."""
    name = chosen(probe, "method", ("lora", "lora_fa", "prompt"))
    if name == "prompt":
        return specs.PromptTuning(length=positive(probe, "length")[0], init="random")
    (rank,) = positive(probe, "rank")
    return specs.LoRA(rank=rank, alpha=2 * rank, targets=probe.words("targets"), freeze_a=name == "lora_fa")


def random_llama(shape: Shape, base: str, seed: int) -> Any:
    """A Llama in bfloat16 with random frozen weights, its decoder's linear layers stored as `base` says.

    Matrices of one shape have equal values, so that each shape is drawn and quantised once; no more than one matrix
    is ever there in 16 bits beside a 4-bit model.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        model: Any = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    torch.manual_seed(seed)
    if base != "bf16":
        quantise_linears(model.model, double=base == "nf4_double")
        model.is_loaded_in_4bit = True  # what peft looks for
    fill(model)
    model.tie_weights()
    keep_linear4bit_layout(model)
    return model


def quantise_linears(model: nn.Module, double: bool) -> None:
    """Put a random NF4 layer of bitsandbytes in the place of every linear layer."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    made: dict[torch.Size, Params4bit] = {}
    for name, part in list(model.named_modules()):
        if not isinstance(part, nn.Linear):
            continue
        size = part.weight.shape
        options: dict[str, Any] = {"compress_statistics": double, "quant_type": "nf4"}
        with torch.device("meta"):
            stored: Any = Linear4bit(
                part.in_features, part.out_features, bias=False, compute_dtype=torch.bfloat16, **options
            )
        if size not in made:
            values = torch.empty(size, dtype=torch.bfloat16).normal_(std=STD)
            made[size] = weight = Params4bit(values, requires_grad=False, **options).cpu()
        else:
            weight = copy.deepcopy(made[size])
        stored.weight, stored.quant_state = weight, weight.quant_state
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, stored)


def fill(model: nn.Module) -> None:
    """Give every parameter without storage a frozen one: matrices N(0, STD²), gains 1."""
    made: dict[torch.Size, Tensor] = {}
    tied = model.get_output_embeddings() if model.config.tie_word_embeddings else None
    for part in model.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            if part is tied or not value.is_meta:
                continue
            fresh = made[value.shape].clone() if value.shape in made else torch.ones(value.shape, dtype=value.dtype)
            if value.dim() > 1 and value.shape not in made:
                fresh.normal_(std=STD)
            made.setdefault(value.shape, fresh)
            setattr(part, name, nn.Parameter(fresh, requires_grad=False))


def random_ids(shape: Shape, tokens: int, seed: int) -> Tensor:
    """One row of random tokens, (1, tokens)."""
    return torch.randint(shape.vocab, (1, tokens), generator=torch.Generator().manual_seed(seed))


def storages(values: Iterable[Tensor]) -> dict[int, int]:
    """Address → bytes of the storages behind these tensors, each once."""
    return {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in values}


def storage_bytes(values: Iterable[Tensor]) -> int:
    """Bytes of the storages behind these tensors, each once."""
    return sum(storages(values).values())


def constants(model: nn.Module) -> list[Tensor]:
    """What 4-bit parameters need to be read: scales, their own scales and mean, and both code tables."""
    states = [state for value in model.parameters() if (state := getattr(value, "quant_state", None)) is not None]
    inner = [state.state2 for state in states if state.nested]
    found = [value for state in (*states, *inner) for value in (state.absmax, state.code, state.offset)]
    return [value for value in found if isinstance(value, Tensor)]


def count_step(subject: Subject, ids: Tensor) -> dict[str, int]:
    """Bytes of every term, counted in one training step."""
    model = subject.model
    fixed = storages([*model.parameters(), *model.buffers()])
    kept: dict[int, int] = {}

    def note(value: Tensor) -> Tensor:
        kept.update(storages([value]))
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        loss = subject.loss(ids)
    loss.backward()
    gradients = storage_bytes(value.grad for value in subject.trained if value.grad is not None)
    subject.optimizer.step()
    subject.optimizer.zero_grad(set_to_none=True)
    states = subject.optimizer.state.values()
    return {
        "weights_bytes": storage_bytes(value for value in model.parameters() if not value.requires_grad),
        "constants_bytes": storage_bytes(constants(model)),
        "adapter_bytes": storage_bytes(subject.trained),
        "gradients_bytes": gradients,
        "moments_bytes": storage_bytes(state[name] for state in states for name in ("exp_avg", "exp_avg_sq")),
        "kept_bytes": sum(size for address, size in kept.items() if address not in fixed),
    }


def allocated_peak(step: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator had handed out at once during a call, beyond those before it."""
    from torch.profiler import ProfilerActivity, profile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
            step()
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    notes = sorted((one for one in events if one.get("name") == "[memory]"), key=lambda one: one["ts"])
    totals = [one["args"]["Total Allocated"] for one in notes]
    return max(totals) - (totals[0] - notes[0]["args"]["Bytes"])


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    return psutil.Process().memory_info().rss


def reset_peak() -> bool:
    """Set the system's peak of this process's memory to its present value; whether that was possible (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False
