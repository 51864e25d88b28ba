"""Train a small Llama from scratch in float32 on the book's own texts: true full-precision weights to quantise.

The weights are shipped and pinned, because another processor's training gives other last bits:

    python tests/tools/small_llama_build.py --output FOLDER

trains them again, in about a quarter of an hour on one core; with `--width` the narrower ones, in minutes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from peftbook.core.folders import cache_folder
from peftbook.tasks import file_sha256, get_task, prose
from peftbook.training.loop import losses
from peftbook.training.small_llama import LENGTH, documents, encode_document, held_out

WIDTH = 256
VOCABULARY = 2048
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BATCH = 4
STEPS = 1400
PEAK_RATE = 2e-3
WARMUP = 0.05
LAST_RATE = 0.05  # of the peak, at the end of the cosine
NOTE = "about.json"


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level pairs, 2,048 of them, with ChatML's control tokens; the end of a turn is the end of a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=PAD, model_max_length=1_000_000
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def untrained(seed: int = 0, width: int = WIDTH) -> LlamaForCausalLM:
    """Random weights: 6 layers, 4 heads of which keys and values share 2, tied head; at width 256 4.95M in all."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4 * LENGTH,
        initializer_range=0.04,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to LAST_RATE of the peak."""
    warm = max(1, round(WARMUP * steps))
    if step < warm:
        return PEAK_RATE * (step + 1) / warm
    along = (step - warm) / max(1, steps - warm)
    return PEAK_RATE * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * along)) / 2)


def windows(encoded: Sequence[Sequence[int]], count: int, seed: int) -> torch.Tensor:
    """`count` windows of LENGTH + 1 ids, shuffled, from the documents in a fresh order each epoch, (count, LENGTH + 1).

    Without the second shuffle a long prose text would fill whole batches.
    """
    rng = np.random.default_rng(seed)
    stream: list[int] = []
    while len(stream) < count * LENGTH + 1:
        for index in rng.permutation(len(encoded)):
            stream += encoded[index]
    ids = torch.tensor(stream[: count * LENGTH + 1])
    return ids.unfold(0, LENGTH + 1, LENGTH)[rng.permutation(count)]


def train_model(
    encoded: Sequence[Sequence[int]], steps: int = STEPS, seed: int = 0, width: int = WIDTH
) -> tuple[LlamaForCausalLM, list[float]]:
    """Train in float32 with AdamW (β 0.9 and 0.95, decay 0.1 on matrices); returns the model and its loss by step."""
    model = untrained(seed, width).train()
    matrices = [value for value in model.parameters() if value.ndim == 2]
    gains = [value for value in model.parameters() if value.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}],
        lr=PEAK_RATE, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    data = windows(encoded, steps * BATCH, seed)
    curve = []
    for step in range(steps):
        batch = data[step * BATCH : (step + 1) * BATCH]  # (BATCH, LENGTH + 1)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append(loss.item())
        if step % 20 == 0:
            print(f"step {step} of {steps}: {curve[-1]:.3f} nats", flush=True)
    return model.eval(), curve


def build(output: Path | None = None, steps: int = STEPS, width: int = WIDTH) -> Path:
    """Train tokenizer and model on one thread, save them with a note of how, and return the folder.

    The same machine makes the same bits each time. The folder is `output`, or one in the cache named by the weights.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    texts = documents("train")
    tokenizer = train_tokenizer(texts)
    encoded = [encode_document(tokenizer, text) for text in texts]
    began = time.monotonic()
    model, curve = train_model(encoded, steps, width=width)
    seconds = time.monotonic() - began
    note: dict[str, Any] = {
        "texts": {"docstrings": get_task("docstrings").data_sha256, "prose": prose.DATA_SHA256},
        "train_tokens_distinct": sum(map(len, encoded)),
        "train_tokens_seen": steps * BATCH * LENGTH,
        "steps": steps, "batch": BATCH, "length": LENGTH, "peak_rate": PEAK_RATE, "dtype": "float32", "threads": 1,
        "seconds": round(seconds, 1), "torch": torch.__version__,
        "train_loss_nats": round(sum(curve[-20:]) / len(curve[-20:]), 4),
    }  # fmt: skip
    for split in ("validation", "test"):
        data, kinds = held_out(tokenizer, split)
        nats, counts = losses(model, data, pad_id=tokenizer.pad_token_id, dtype="fp32")
        for kind in ("", *dict.fromkeys(kinds)):
            rows = [row for row, name in enumerate(kinds) if kind in ("", name)]
            mean = math.fsum(nats[row] for row in rows) / sum(counts[row] for row in rows)
            note[f"{split}_{kind or 'all'}_loss_nats"] = round(mean, 4)
            note[f"{split}_{kind or 'all'}_perplexity"] = round(math.exp(mean), 2)
    work = output or cache_folder() / "small-llama-new"
    model.save_pretrained(work)
    tokenizer.save_pretrained(work)
    note["weights_sha256"] = file_sha256(work / "model.safetensors")
    (work / NOTE).write_text(json.dumps(note, indent=1) + "\n")
    return work if output else work.replace(cache_folder() / f"small-llama-{note['weights_sha256'][:12]}")


def main() -> None:
    """Train and say where the weights are and what they score."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="folder for the model; without it, one in the cache")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--width", type=int, default=WIDTH, help="hidden width, a multiple of 64")
    given = parser.parse_args()
    folder = build(given.output, given.steps, given.width)
    print(folder, (folder / NOTE).read_text(), sep="\n")


if __name__ == "__main__":
    main()
