"""Measuring: one contestant trains in this process, and what it did and took."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.contestants import BATCH, LEARNING_RATE, MAX_LENGTH, SEED, WARMUP, Trace, Work, named
from bench.peers import train_peer, with_dtype
from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.methods import preset
from peftbook.runtime.processes import end_with_input, fast_exit
from peftbook.tasks import TaskData, get_task

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
PRECISION = {"bf16": "bfloat16 autocast over float32 weights", "fp32": "float32"}


def measure(job: dict) -> dict:
    """Train as one contestant and measure it: JSON-ready. Meant for a process of its own."""
    from peftbook.training.forward import apply_method
    from peftbook.training.loop import losses
    from peftbook.training.models import load_model

    contestant = named(job["contestant"])
    began = time.perf_counter()
    method = preset(job["method"]).method
    dtype = job.get("dtype", "")
    loaded = load_model(specs.Model(name=job["model"]), method)
    tokenizer = loaded.tokenizer
    model = apply_method(loaded.model, method, SEED, tokenizer)
    load_seconds = time.perf_counter() - began
    load_memory = peak_memory_mib()
    task = get_task(job["task"])
    chosen = choose(tokenizer, task, "train", job["steps"] * BATCH)
    dtypes = watch_dtype(model)
    if contestant.library == "ours":
        trace = train_ours(model, tokenizer, chosen, dtype or "bf16")
    else:
        trace = train_peer(with_dtype(contestant, dtype), model, tokenizer, task, chosen)
    peak = peak_memory_mib()
    trace.set_here["method"] = json.loads(method.model_dump_json())
    trace.left_alone["dtype of the weights"] = str(next(model.parameters()).dtype)
    trace.left_alone["dtype that linear layers return"] = ", ".join(sorted(dtypes))
    trace.left_alone["attention"] = loaded.model.config._attn_implementation
    held_out = [encoded for _, encoded in choose(tokenizer, task, "validation", job["validation"])]
    nats, counts = losses(model, held_out, pad_id=tokenizer.pad_token_id)
    return asdict(trace) | {
        "load_seconds": load_seconds,
        "load_memory_mib": load_memory,
        "peak_memory_mib": peak,
        "validation_loss_nats": sum(nats) / sum(counts),
        "machine": machine(),
    }


def choose(tokenizer, task: TaskData, split: str, count: int) -> list[tuple[Any, Any]]:
    """(example, its encoding), `count` of them in a seeded order; those that do not fit MAX_LENGTH are left out.

    No contestant truncates, so all see the same tokens.
    """
    import numpy as np

    from peftbook.training.encode import encode_example

    chosen: list[tuple[Any, Any]] = []
    for index in np.random.default_rng(SEED).permutation(len(task.splits[split])):
        example = task.splits[split][index]
        with contextlib.suppress(InputError):
            encoded = encode_example(tokenizer, task, example, MAX_LENGTH)
            if not encoded.truncated:
                chosen.append((example, encoded))
        if len(chosen) == count:
            return chosen
    raise InputError(
        f"Only {len(chosen)} {split} examples fit {MAX_LENGTH} tokens and {count} are needed: lower steps."
    )


def watch_dtype(model) -> set[str]:
    """A set that fills with the types that the first adapted linear layer returns (shows whether autocast is on)."""
    from peftbook.training.forward import causal_model

    seen: set[str] = set()
    layers = causal_model(model).model.layers
    linear = next(part for name, part in layers.named_modules() if name.endswith("q_proj"))
    linear.register_forward_hook(lambda module, inputs, output: seen.add(str(output.dtype)))
    return seen


def train_ours(model, tokenizer, chosen: list[tuple[Any, Any]], dtype: str) -> Trace:
    """The book's loop with the book's encoding."""
    from peftbook.training.encode import batch_plan
    from peftbook.training.loop import learning_rate, reordered, train

    data = [encoded for _, encoded in chosen]
    lengths = [len(encoded.ids) for encoded in data]
    budget = specs.Budget(
        tokens=sum(lengths), batch_size=BATCH, learning_rate=LEARNING_RATE, warmup=WARMUP, max_length=MAX_LENGTH
    )
    trace = Trace()
    began = time.perf_counter()
    with reordered(model, dtype):
        result = train(
            model, data, budget, seed=SEED, pad_id=tokenizer.pad_token_id, dtype=dtype,
            on_step=lambda progress: trace.ends.append(time.perf_counter() - began),
        )  # fmt: skip
    trace.train_seconds = time.perf_counter() - began
    trace.losses = result.losses
    trace.learning_rates = [learning_rate(budget, step, len(trace.losses)) for step in range(len(trace.losses))]
    for batch in batch_plan(lengths, BATCH, budget.tokens, SEED):
        sizes = [lengths[index] for index in batch]
        labels = sum(data[index].label_tokens for index in batch)
        trace.work.append(Work(len(batch), labels, sum(sizes), sum(sizes)))
    trace.set_here = json.loads(budget.model_dump_json())
    trace.left_alone = {
        "optimizer": "torch.optim.AdamW, fused, betas 0.9 and 0.999, eps 1e-08",
        "schedule": "linear warm-up, then constant",
        "precision": PRECISION[dtype],
        "gradient checkpointing": False,
        "batches": "random permutation, pools of 16 batches sorted by length, batches shuffled",
        "attention mask": "none (causal attention, no padding)",
        "logits": "at label positions only",
        "seed": SEED,
    }
    return trace


def peak_memory_mib() -> float:
    """Peak resident memory of this process's own program."""
    from peftbook.runtime.hardware import peak_memory

    return peak_memory("cpu") / 2**20


def machine() -> dict[str, Any]:
    """Where a measurement was made."""
    from importlib import metadata

    import torch

    from peftbook.runtime.hardware import machine_name
    from peftbook.runtime.precision import instruction_limits

    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "name": machine_name(),
        "instructions": ", ".join(filter(None, (torch.backends.cpu.get_cpu_capability(), instruction_limits()))),
        "threads": torch.get_num_threads(),
        "nice": os.nice(0),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def main() -> None:
    """Measure the job on standard input into the file that the first argument names; a refusal is said, status 2.

    The process ends with its standard input, so that none outlives the bench.
    """
    job = json.loads(sys.stdin.readline())
    end_with_input()
    try:
        result = measure(job)
    except InputError as error:
        print(error)
        raise SystemExit(2) from None
    Path(sys.argv[1]).write_text(json.dumps(result))


if __name__ == "__main__":
    with fast_exit():
        main()
