"""Tiny models, tokenizers and texts that the tests of training share: random weights, milliseconds on one core."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import random_models
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from peftbook.core import specs
from peftbook.memory import Configuration
from peftbook.methods.full import Full
from peftbook.methods.lora import LoRA
from peftbook.methods.prompt import PromptTuning
from peftbook.runtime.precision import products_here
from peftbook.tasks import TaskData, TaskExample
from peftbook.training import random_model
from peftbook.training.encode import Encoded
from peftbook.training.forward import apply_method
from peftbook.training.models import prepare_embedded

VOCABULARY = 96
SEVEN = LoRA().targets


def tiny_llama(seed: int = 0, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    """Two Llama layers of width 64 (bitsandbytes' block), grouped-query attention, tied embedding."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def tokens(rows: int = 2, length: int = 9, seed: int = 1) -> torch.Tensor:
    """Random ids of the tiny Llama."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


class NumberTokenizer:
    """Token ids as decimal numbers: what a test says about texts, it says about ids."""

    chat_template = None
    all_special_ids = (0, 1, 2)

    def __init__(self, eos_token_id: int = 2, pad_token_id: int = 0):
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id

    def encode(self, text: str, **_) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **_) -> str:
        return " ".join(map(str, ids))


@functools.cache
def real_tokenizer():
    """The embedded model's tokenizer and chat template."""
    return AutoTokenizer.from_pretrained(prepare_embedded())


@contextmanager
def gguf_from_arrays() -> Iterator[None]:
    """Inside, gguf reads a file as a plain array over its map, in a third of the time: it slices a hundred thousand
    times, which `numpy.memmap` does in Python.
    """
    mapped = np.memmap
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "memmap", lambda *given, **named: mapped(*given, **named).view(np.ndarray))
        yield


def first_step(tuned, ids: torch.Tensor) -> None:
    """Makes the moments. A few tokens do, but where products need scratch memory, which stays for the next step."""
    tuned.step(ids[:, :16] if products_here().native else ids)


def save_tiny_folder(folder: Path, seed: int = 0) -> Path:
    """A tiny model with the embedded model's tokenizer, saved as a user's model folder would be."""
    tokenizer = real_tokenizer()
    tiny_llama(seed, vocabulary=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_examples(count: int, seed: int = 0, longest: int = 14, vocabulary: int = VOCABULARY) -> list[Encoded]:
    """Encoded pairs of random ids and lengths; the last label is the end-of-turn token 2."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        length = int(rng.integers(4, longest + 1))
        ids = [*rng.integers(3, vocabulary, length - 1).tolist(), 2]
        examples.append(Encoded(tuple(ids), int(rng.integers(1, length)), False))
    return examples


def randomize_adapters(model: torch.nn.Module, seed: int = 5, std: float = 0.1) -> None:
    """Give every LoRA B a value, as training would; with B = 0 half of the laws hold trivially."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.copy_(std * torch.randn(value.shape, generator=generator))


@torch.no_grad()
def scatter(model: torch.nn.Module, seed: int = 2, std: float = 0.3) -> None:
    """Move every trained parameter, as training would; where they start half of the laws hold trivially."""
    generator = torch.Generator().manual_seed(seed)
    for value in model.parameters():
        if value.requires_grad:
            value.add_(std * torch.randn(value.shape, generator=generator))


def of_peft(layer: torch.nn.Module, name: str) -> torch.nn.Parameter:
    """A parameter of the default adapter in one of peft's layers."""
    found = getattr(layer, name)["default"]
    return getattr(found, "weight", found)


def trained_numbers(model: torch.nn.Module) -> int:
    """How many numbers of a model are trained."""
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def tiny_task(metrics: tuple[str, ...] = ("rouge", "bertscore", "exact_match")) -> TaskData:
    """Twelve training pairs and six of each other split."""
    words = ["red", "green", "blue", "black", "white", "grey"]

    def pairs(split: str, count: int) -> tuple[TaskExample, ...]:
        chosen = [f"{words[i % 6]} {words[(i * i + len(split)) % 6]}" for i in range(count)]
        return tuple(TaskExample(f"{split}-{i}", text, f"Mix {text}.") for i, text in enumerate(chosen))

    return TaskData(
        name="colours",
        version=1,
        instruction="Mix these:\n{input}",
        splits={"train": pairs("train", 12), "validation": pairs("validation", 6), "test": pairs("test", 6)},
        metrics=metrics,
        data_sha256="a" * 64,
    )


# What the kill-and-resume test trains: method, dtype, micro-batch. Weight decay is on so that it is part of the state.
# Where the name ends in halved, the base is in bfloat16 and its layers are checkpointed.
INTERRUPTED = {
    "lora": (LoRA(rank=2), "bf16", None),
    "lora-fp16": (LoRA(rank=2), "fp16", None),
    "lora-dropout": (LoRA(rank=2, dropout=0.3), "fp32", 1),
    "lora-dropout-halved": (LoRA(rank=2, dropout=0.3), "bf16", 1),
    "full": (Full(), "fp32", None),
    "prompt": (PromptTuning(length=3), "fp32", None),
}
INTERRUPTED_BUDGET = specs.Budget(tokens=500, batch_size=4, learning_rate=1e-2, weight_decay=0.1)


def train_interrupted(name: str, **arguments):
    """Train one of INTERRUPTED from its start or from a checkpoint; returns the model and what training left."""
    from peftbook.training.loop import train

    method, dtype, micro_batch = INTERRUPTED[name]
    halved = name.endswith("halved")
    base = tiny_llama().bfloat16() if halved else tiny_llama()
    model = apply_method(base, method, seed=3, tokenizer=NumberTokenizer())
    trained = train(
        model,
        random_examples(20),
        INTERRUPTED_BUDGET,
        seed=3,
        pad_id=2,
        dtype=dtype,
        micro_batch=micro_batch,
        checkpointing=halved,
        **arguments,
    )
    return model, trained


def watched_steps():
    """A callback of transformers' trainers, and the list that it fills: a profiler's trace of memory for each step."""
    from torch.profiler import ProfilerActivity, profile
    from transformers import TrainerCallback

    traces = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **given):
            traces.append(profile(activities=[ProfilerActivity.CPU], profile_memory=True))
            traces[-1].start()

        def on_step_end(self, args, state, control, **given):
            traces[-1].stop()

    return Watch(), traces


Made = Callable[[str], tuple[Configuration, random_model.Subject, torch.Tensor]]


def made_once(configurations: Mapping[str, Configuration]) -> Made:
    """A configuration by its name, with a random model and ids for it, which are made when they are first asked for."""

    @functools.cache
    def of(name: str) -> tuple[Configuration, random_model.Subject, torch.Tensor]:
        one = configurations[name]
        return one, random_models.subject(one.shape, one.setup), random_model.random_ids(one.shape, one.setup, 0)

    return of
