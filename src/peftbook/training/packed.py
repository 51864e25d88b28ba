"""Rows without padding: the tokens of a batch as one row, in which every example attends to itself and what it shares.

Right padding costs a product for every token that is none, and what the examples share at their start costs a pass of
its own, with small products. Here the linear layers see the shared tokens once and then the rest of every example, one
after the other; attention alone knows where each begins. The same sums are made, in another order.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from peftbook.training.encode import Encoded, shared_prefix
from peftbook.training.forward import FUSED_TOKENS, causal_model, prefix_cache, soft_prompt

NAME = "packed_rows"  # among transformers' kinds of attention
CLOSE = 1e-3  # how far packed states may be from plain ones, against the largest
AGREED: WeakSet[nn.Module] = WeakSet()  # models whose states were compared and are


@dataclass(frozen=True)
class Layout:
    """Where the rows lie: first what is `common` to all, then each of `rows`, all in tokens."""

    common: int
    rows: tuple[int, ...]

    @property
    def starts(self) -> list[int]:
        """Where each of the rows begins."""
        return [*itertools.accumulate(self.rows[:-1], initial=self.common)]

    @property
    def ends(self) -> list[int]:
        """Where each of the rows ends."""
        return [start + row for start, row in zip(self.starts, self.rows, strict=True)]


@contextlib.contextmanager
def packed_rows(model: nn.Module) -> Iterator[None]:
    """Within it the losses of this model are computed without padding, on a CPU and where attention is plainly causal.

    Dropout in attention, windows and caps keep rows padded.
    """
    base: Any = causal_model(model)
    kind = base.config._attn_implementation
    try:
        if can_pack(base) and (base in AGREED or agrees(base, kind)):
            AGREED.add(base)
            base.set_attn_implementation(NAME)
        yield
    finally:
        base.set_attn_implementation(kind)


def can_pack(base: Any) -> bool:
    """Whether every layer attends to all that stands before, by a kernel that can be chosen, on a CPU."""
    config = base.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    plain = kinds == {"full_attention"} and not any(
        getattr(config, name, None) for name in ("sliding_window", "attn_logit_softcapping", "attention_dropout")
    )
    chosen = getattr(base, "_supports_attention_backend", False) and hasattr(base.model, "rotary_emb")
    return plain and chosen and base.get_input_embeddings().weight.device.type == "cpu"


@torch.no_grad()
def agrees(base: Any, kind: str) -> bool:
    """Whether a few tokens leave the last layer as they do without packing, up to rounding.

    An architecture of its own may hand its attention other things than `attend` expects; it is then left as it is.
    """
    first, *rests = ([3, 5, 7], [4, 6], [8, 2, 9])
    positions = [*range(len(first)), *(len(first) + at for rest in rests for at in range(len(rest)))]
    embed, modes = base.get_input_embeddings(), {module: module.training for module in base.modules()}
    base.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            plain = [states(base, embed(torch.tensor([[*first, *rest]]))) for rest in rests]
            base.set_attn_implementation(NAME)
            row = embed(torch.tensor([[*first, *(token for rest in rests for token in rest)]]))
            layout = Layout(len(first), tuple(map(len, rests)))
            packed = states(base, row, position_ids=torch.tensor([positions]), layout=layout)
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError):
        return False
    finally:
        base.set_attn_implementation(kind)
        for module, training in modes.items():
            module.training = training
    wanted = torch.cat([plain[0][: len(first)], *(one[len(first) :] for one in plain)])
    return bool((packed - wanted).abs().max() <= CLOSE * wanted.abs().max())


def states(base: Any, embedded: Tensor, **options: Any) -> Tensor:
    """Last hidden states of one row, (tokens, d)."""
    return base.model(inputs_embeds=embedded, use_cache=False, **options).last_hidden_state[0]


def is_packed(model: nn.Module) -> bool:
    """Whether this model is within `packed_rows`."""
    return causal_model(model).config._attn_implementation == NAME


def label_states(model: nn.Module, examples: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
    """Last hidden states from which the label tokens are predicted, (labels, d), and those tokens, (labels,).

    The last token of an example predicts nothing and is left out.
    """
    shared = shared_prefix(examples)
    output, layout = packed_pass(model, [example.ids[:-1] for example in examples], shared)
    places = [
        first + at - 1 - shared
        for example, first in zip(examples, layout.starts, strict=True)
        for at in range(example.start, len(example.ids))
    ]
    labels = [token for example in examples for token in example.ids[example.start :]]
    return output.last_hidden_state[0, torch.tensor(places)], torch.tensor(labels)


def last_states(model: nn.Module, prompts: Sequence[Sequence[int]], shared: int) -> tuple[Tensor, Any]:
    """The last hidden state of every prompt, (rows, d), and a cache of keys and values in which each has a row of its
    own, padded on the left behind what is common to all.

    shared: leading ids that all have, fewer than the shortest.
    """
    output, layout = packed_pass(model, prompts, shared, keep=True)
    for layer in output.cache.layers:
        layer.keys, layer.values = (each_alone(packed, layout.rows) for packed in (layer.keys, layer.values))
    return output.last_hidden_state[0, torch.tensor(layout.ends) - 1], output.cache


def each_alone(packed: Tensor, rows: Sequence[int]) -> Tensor:
    """Keys or values of packed rows, (1, heads, common + sum of rows, d), as (rows, heads, common + longest, d)."""
    first, *parts = packed[0].split([packed.shape[2] - sum(rows), *rows], dim=1)
    alone = packed.new_zeros(len(rows), len(first), first.shape[1] + max(rows), first.shape[2])
    alone[:, :, : first.shape[1]] = first
    for row, part in zip(alone, parts, strict=True):
        row[:, row.shape[1] - part.shape[1] :] = part
    return alone


def packed_pass(
    model: nn.Module, rows: Sequence[Sequence[int]], shared: int, *, keep: bool = False
) -> tuple[Any, Layout]:
    """What the model makes of the first `shared` ids, which all rows have, and of the rest of each; and where they lie.

    A soft prompt stands before, as embeddings; a prefix in the cache. keep: with the keys and values of all tokens.
    """
    base, cache, soft = causal_model(model), prefix_cache(model), soft_prompt(model)
    learned = 0 if soft is None else len(soft)
    before = learned + (0 if cache is None else cache.get_seq_length())
    rests = [row[shared:] for row in rows]
    ids = [*rows[0][:shared], *(token for rest in rests for token in rest)]
    positions = [*range(before + shared), *(before + shared + at for rest in rests for at in range(len(rest)))]
    embedded = base.get_input_embeddings()(torch.tensor([ids]))
    if soft is not None:
        embedded = torch.cat([soft[None].to(embedded.dtype), embedded], dim=1)
    layout = Layout(learned + shared, tuple(map(len, rests)))
    output = base.model(
        inputs_embeds=embedded,
        position_ids=torch.tensor([positions[before - learned :]]),
        cache=cache,
        use_cache=keep or cache is not None,
        layout=layout,
    )
    return output, layout


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    *,
    scaling: float,
    layout: Layout,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention in every row, to what is common and to itself; as transformers asks for it.

    query (1, heads, tokens, d), key and value (1, groups, learned + tokens, d); the output is (1, tokens, heads, d).
    """
    learned = key.shape[2] - query.shape[2]
    queries = query[0].split([layout.common, *layout.rows], dim=1)
    keys = key[0].split([learned + layout.common, *layout.rows], dim=1)
    values = value[0].split([learned + layout.common, *layout.rows], dim=1)
    parts = [attend_row(queries[0], keys[0], values[0], scaling)] if layout.common else []
    for one, its_keys, its_values in zip(queries[1:], keys[1:], values[1:], strict=True):
        all_keys, all_values = torch.cat([keys[0], its_keys], dim=1), torch.cat([values[0], its_values], dim=1)
        parts.append(attend_row(one, all_keys, all_values, scaling))
    return torch.cat(parts, dim=1).transpose(0, 1)[None], None


def attend_row(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """softmax(scaling Q K^T + causal mask) V: (heads, n, d) and (groups, m, d) to (heads, n, d), n the last of m."""
    heads, n, d = query.shape
    groups, m, _ = key.shape
    if m > FUSED_TOKENS:
        mask = None if n == m else causal_mask.__wrapped__(n, m, 1)
        return functional.scaled_dot_product_attention(
            query[None], key[None], value[None], mask, is_causal=n == m, scale=scaling, enable_gqa=True
        )[0]
    each = heads // groups
    stacked = query.reshape(groups, each * n, d)
    scores = torch.baddbmm(causal_mask(n, m, each), stacked, key.mT, alpha=scaling)
    return torch.bmm(scores.softmax(-1), value).view(heads, n, d)


@functools.lru_cache(maxsize=64)
def causal_mask(n: int, m: int, copies: int) -> Tensor:
    """0 where one of the last n of m tokens may look and -inf where it may not, (copies n, m)."""
    with torch.inference_mode(False):
        return torch.full((n, m), -torch.inf).triu(m - n + 1).repeat(copies, 1)


AttentionInterface.register(NAME, attend)
