"""Generation in batches, greedy unless told how to draw."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import DynamicLayer

from peftbook.training.distributed import gathered
from peftbook.training.encode import common_start, sorted_batches
from peftbook.training.forward import causal_model, start_cache
from peftbook.training.loop import arithmetic
from peftbook.training.packed import is_packed, last_states
from peftbook.training.products import half_products

PADDED = 0  # an id that nothing looks at


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer with room for those to come, each (rows, heads, tokens, d).

    What comes is written behind what is there, where torch.cat would copy all of it. Both are held in the type that
    attention computes in, as autocast would cast all of them again for every token; no value differs.
    """

    def __init__(self, layer: DynamicLayer, room: int):
        super().__init__()
        self.room, self.device, self.is_initialized = room, layer.device, True
        self.keys, self.values = layer.keys, layer.values
        self.buffers: dict[str, Tensor] = {}

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple:
        """The keys and values with some more behind them."""
        self.keys = self.appended("keys", self.keys, key_states)
        self.values = self.appended("values", self.values, value_states)
        return self.keys, self.values

    def appended(self, name: str, held: Tensor, more: Tensor) -> Tensor:
        """A view of the buffer of this name; rows that have left, or too little room, make another buffer."""
        count = held.shape[-2]
        end, buffer = count + more.shape[-2], self.buffers.get(name)
        if buffer is None or held.data_ptr() != buffer.data_ptr() or end > buffer.shape[-2]:
            buffer = held.new_empty(*held.shape[:-2], end + self.room, held.shape[-1], dtype=attended(held))
            buffer[..., :count, :] = held
            self.buffers[name] = buffer
        buffer[..., count:end, :] = more
        return buffer[..., :end, :]


def attended(held: Tensor) -> torch.dtype:
    """The type in which attention computes with keys or values."""
    device = held.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else held.dtype


def with_room(cache: Any, room: int) -> None:
    """Give the layers of a cache room for so many tokens; those of another kind, as of a sliding window, stay."""
    cache.layers = [RoomyLayer(one, room) if type(one) is DynamicLayer else one for one in cache.layers]


def greedy(logits: Tensor) -> Tensor:
    """The most probable token of each row. logits: (rows, V).   Returns (rows,)."""
    return logits.argmax(dim=-1)


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """The greedy continuation of every prompt, up to the end-of-turn token, in the order given.

    Prompts run in batches of similar length. What all prompts of a batch share at their start, and a soft prompt or
    prefix, runs once; the rest is left-padded with a mask, within `packed_rows` only after it was read. The compute
    type is that of the weights, or of the autocast around the call.
    """
    model.eval()
    texts = [""] * len(prompts)
    platform = causal_model(model).get_input_embeddings().weight.device.type
    for batch in sorted_batches([len(prompt) for prompt in prompts], batch_size):
        asked = [list(prompts[index]) for index in batch]
        with half_products(platform):
            answers = gathered(model, decode_batch, tokenizer, asked, max_new_tokens)
        for index, ids in zip(batch, answers, strict=True):
            texts[index] = tokenizer.decode(ids, skip_special_tokens=True).strip()
        if on_batch:
            on_batch(len(batch))
    return texts


def continuation(
    model: Any, prompt: list[int], pick: Callable[[Tensor], int], *, dtype: str = "fp32", platform: str = "cpu"
) -> Iterator[int]:
    """Yield the ids that follow a prompt, one at a time and without end: `generate` for a single row.

    pick: from the next token's logits, (V,), to its id.
    """
    base: Any = causal_model(model)
    if base.config._attn_implementation != "sdpa":
        base.set_attn_implementation("sdpa")
    chosen, mask = -1, None
    while True:
        with torch.no_grad(), half_products(platform), arithmetic(model, dtype, platform):
            if mask is None:
                states, cache = padded_states(model, [prompt], 0)
                mask = mask_behind(cache.get_seq_length(), [len(prompt)], states.device)
            else:
                mask = functional.pad(mask, (0, 1), value=1)
                positions = mask.sum(dim=1, keepdim=True) - 1
                states, cache = last_of(base, mask.new_tensor([[chosen]]), mask, positions, cache)
            chosen = pick(base.lm_head(states)[0])
        yield chosen


def sampler(temperature: float, top_p: float, seed: int) -> Callable[[Tensor], int]:
    """Greedy at temperature 0; else a draw from softmax(logits / temperature), of the most probable tokens that
    together have probability top_p.

    Source of the cut: Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
    """
    if temperature == 0:
        return lambda logits: int(logits.argmax())
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: Tensor) -> int:
        p, order = torch.softmax(logits.float().cpu() / temperature, dim=-1).sort(descending=True)
        p[p.cumsum(dim=-1) - p >= top_p] = 0.0
        return int(order[torch.multinomial(p, 1, generator=generator)])

    return draw


def decode_batch(
    model: nn.Module,
    tokenizer,
    prompts: list[list[int]],
    max_new_tokens: int,
    pick: Callable[[Tensor], Tensor] = greedy,
) -> list[list[int]]:
    """The new ids of each prompt, without the end-of-turn token; a row that has ended leaves the batch.

    pick: logits of the next token, (rows, V), to the ids that are taken, (rows,).
    """
    base, rests = causal_model(model), [*map(len, prompts)]
    shared = common_start(prompts, min(rests) - 1)
    read = last_states if is_packed(model) else padded_states
    states, cache = read(model, prompts, shared)
    with_room(cache, max_new_tokens)
    mask = mask_behind(cache.get_seq_length(), [rest - shared for rest in rests], states.device)
    positions = mask.sum(dim=1, keepdim=True) - 1
    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    with fused_attention(base):
        for left in reversed(range(max_new_tokens)):
            chosen = pick(base.lm_head(states))
            keep = [at for at, token in enumerate(chosen.tolist()) if token != tokenizer.eos_token_id]
            for at in keep:
                answers[rows[at]].append(int(chosen[at]))
            if not keep:
                break
            if len(keep) < len(rows):
                kept = torch.tensor(keep, device=states.device)
                rows = [rows[at] for at in keep]
                cache.batch_select_indices(kept)
                chosen, mask, positions = chosen[kept], mask[kept], positions[kept]
            if left:
                mask, positions = functional.pad(mask, (0, 1), value=1), positions + 1
                states, cache = last_of(base, chosen[:, None], mask, positions, cache)
    return answers


def padded_states(model: nn.Module, prompts: Sequence[Sequence[int]], shared: int) -> tuple[Tensor, Any]:
    """The last hidden state of every prompt, (rows, d), and a cache of their keys and values, padded on the left.

    shared: leading ids that all have, fewer than the shortest, which run once.
    """
    base: Any = causal_model(model)
    device = base.get_input_embeddings().weight.device
    with fused_attention(base):
        cache = start_cache(model, torch.tensor([prompts[0][:shared]], dtype=torch.long, device=device), len(prompts))
        before = cache.get_seq_length() if cache is not None else 0
        rests = [prompt[shared:] for prompt in prompts]
        width = max(map(len, rests))
        ids = torch.tensor([[PADDED] * (width - len(rest)) + [*rest] for rest in rests], device=device)
        mask = mask_behind(before + width, [*map(len, rests)], device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, before:]
        return last_of(base, ids, mask, positions, cache)


def mask_behind(total: int, rests: Sequence[int], device: torch.device) -> Tensor:
    """1 where a row has a token and 0 where it is padded, behind what is common to all: (rows, total)."""
    longest = max(rests)
    rows = [[1] * (total - longest) + [0] * (longest - rest) + [1] * rest for rest in rests]
    return torch.tensor(rows, device=device)


def last_of(base: Any, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> tuple[Tensor, Any]:
    """The last hidden state of each row, (rows, d), and the cache with these tokens in it."""
    output = base.model(input_ids=ids, attention_mask=mask, position_ids=positions, cache=cache, use_cache=True)
    return output.last_hidden_state[:, -1], output.cache


@contextlib.contextmanager
def fused_attention(base: Any) -> Iterator[None]:
    """Within it attention is torch's own, which takes a mask and keeps no scores."""
    kind = base.config._attn_implementation
    if kind == "sdpa":
        yield
        return
    base.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        base.set_attn_implementation(kind)
