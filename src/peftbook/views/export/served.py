"""A model behind a server with OpenAI's routes (vLLM, llama-server, …) held against the reference of `same`."""

from __future__ import annotations

import json
import math
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftbook.core.errors import InputError
from peftbook.training.products import TORCH_DTYPES
from peftbook.views.export.same import ANSWER, CHATS, Parting, Road, log_probabilities, rounded_otherwise

TOP = 5  # log-probabilities that servers give of a token, and some a few more
SECONDS = 120.0


@dataclass(frozen=True)
class Reply:
    """To one chat. ids: of its prompt, or how many there are.  steps: each token, and the likeliest there with their
    log-probabilities.
    """

    text: str
    ids: list[int] | int | None
    steps: list[tuple[str, dict[str, float]]]


def ask(url: str, body: Any = None) -> Any:
    """What a route answers. Raises InputError where nobody does, or the server refuses."""
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            return json.load(answer)
    except (OSError, ValueError) as error:
        raise InputError(f"The server at {url!r} gives no answer ({error}): check its address.") from None


def reply_to(root: str, model: str, chat: Sequence[dict[str, str]]) -> Reply:
    """A greedy answer; the prompt's ids from vLLM's /tokenize, elsewhere their count."""
    asked = {"model": model, "messages": chat, "max_tokens": ANSWER, "temperature": 0}
    got = ask(f"{root}/v1/chat/completions", asked | {"logprobs": True, "top_logprobs": TOP})
    choice = got["choices"][0]
    steps = [
        (one["token"], {top["token"]: top["logprob"] for top in reversed(one["top_logprobs"])})
        for one in (choice.get("logprobs") or {}).get("content") or ()
    ]
    try:
        ids = ask(f"{root}/tokenize", {"model": model, "messages": chat, "add_generation_prompt": True})["tokens"]
    except (InputError, KeyError, TypeError):
        ids = []
    return Reply(choice["message"]["content"] or "", ids or got.get("usage", {}).get("prompt_tokens"), steps)


def compare_served(first: Road, url: str, dtype: str = "bf16", own: Tensor | None = None) -> Parting:
    """Where a server parts from the reference, if anywhere. dtype: what it computes in."""
    root, _, name = url.rstrip("/").removesuffix("/v1").partition("#")
    root = root.rstrip("/").removesuffix("/v1")
    model = name or ask(f"{root}/v1/models")["data"][0]["id"]
    replies = [reply_to(root, model, chat) for chat in CHATS]
    own = log_probabilities(first.loaded.model, first.sequences) if own is None else own
    picks = picked(first, own, replies)
    nats, bound = half_square(own, picks), math.nan
    if picks:
        bound = max(half_square(one, picks, own) for one in rounded_otherwise(first, dtype, TORCH_DTYPES[dtype]))
    asked = [(prompt, reply.ids) for prompt, reply in zip(first.prompts, replies, strict=True)]
    odd = [
        ids for prompt, ids in asked if ids is not None and ids != (prompt if isinstance(ids, list) else len(prompt))
    ]
    if odd:
        return Parting("template", f"{len(odd)} of {len(CHATS)} chats become other token ids there", nats, bound)
    if picks and not nats <= bound:
        return Parting("logits", missing_adapter(first, picks, bound), nats, bound)
    if any(tops and tops.get(token, -math.inf) < max(tops.values()) for one in replies for token, tops in one.steps):
        return Parting(
            "answers", "sampling: it does not take the token that its own log-probabilities prefer", nats, bound
        )
    texts = [first.loaded.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True)
             for prompt, ids in zip(first.prompts, first.sequences, strict=True)]  # fmt: skip
    equal = sum(text.strip() == one.text.strip() for text, one in zip(texts, replies, strict=True))
    if not picks and equal < len(CHATS):
        return Parting("answers", f"{equal} of {len(CHATS)} texts equal, and it gives no log-probabilities to say why")
    seen = f"as near as {dtype} rounds" if picks else "it gives no log-probabilities"
    return Parting("", f"{equal} of {len(CHATS)} texts equal; {seen}", nats, bound)


def picked(first: Road, own: Tensor, replies: Sequence[Reply]) -> list[tuple[int, Tensor, Tensor]]:
    """Row of the reference's log-probabilities, token ids, and what the server gives for them, as long as the server's
    answer is the reference's.
    """
    picks, at = [], 0
    for prompt, sequence, reply in zip(first.prompts, first.sequences, replies, strict=True):
        for place, (token, tops) in enumerate(reply.steps[: len(sequence) - len(prompt)], start=len(prompt)):
            likely = own[at + place - 1].topk(2 * TOP).indices
            known = {spelling: one for one in likely.tolist() for spelling in spelled(first, one)}
            found = {known[text]: value for text, value in tops.items() if text in known}
            if found:
                picks.append((at + place - 1, torch.tensor([*found]), torch.tensor([*found.values()]).double()))
            if token not in spelled(first, sequence[place]):
                break
        at += len(sequence)
    return picks


def spelled(first: Road, token: int) -> set[str]:
    """How servers may write a token; nothing for a part of a letter, which several tokens are."""
    tokenizer = first.loaded.tokenizer
    plain = (tokenizer.convert_ids_to_tokens(token) or "").replace("\u0120", " ").replace("\u2581", " ")
    text = tokenizer.decode([token])
    return set() if "\ufffd" in text else {text, plain} - {""}


def half_square(values: Tensor, picks: Sequence[tuple[int, Tensor, Tensor]], own: Tensor | None = None) -> float:
    """½ Σ p (log p − log q)² over the tokens that the server gave, mean over positions: KL, to its second order.

    own: the reference; then `values` stands in the server's place.
    """
    total = 0.0
    for row, ids, given in picks:
        p, q = (values[row, ids], given) if own is None else (own[row, ids], values[row, ids])
        total += 0.5 * (p.exp() * (p - q).square()).sum().item()
    return total / len(picks) if picks else math.nan


def missing_adapter(first: Road, picks: Sequence[tuple[int, Tensor, Tensor]], bound: float) -> str:
    """Whether a server answers as the base does."""
    model = first.loaded.model
    if hasattr(model, "disable_adapter"):
        with model.disable_adapter():
            if half_square(log_probabilities(model, first.sequences), picks) <= bound:
                return "adapter missing: its log-probabilities are the base's"
    return "log-probabilities differ: other weights, or coarser ones"
