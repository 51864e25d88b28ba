"""A tokenizer as the metadata of a GGUF file, from which llama.cpp splits texts into the same tokens.

Two kinds are known there: `gpt2`, byte-level BPE with its merges and a name for how a text is cut before them, and
`llama`, sentencepiece, which merges neighbours whose token has the highest score.
Source: llama.cpp, src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import gguf

from peftbook.core.errors import InputError

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPLITS = ("llama-bpe", "tekken")  # by a regular expression, whole tokens first
UNSCORED = -1e6  # a token that no merge makes
REFUSED = "llama.cpp's own convert_hf_to_gguf.py knows more tokenizers"


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, size: int) -> None:
    """Tokens, how texts become them, the special ones and the chat template; size: rows of the embedding.

    Raises InputError for a tokenizer whose merges or cuts llama.cpp has no name for. One difference is left to it: in
    sentencepiece it puts a space after every special token too, transformers' Metaspace before the first word alone.
    """
    layout = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe = layout["model"]
    if bpe["type"] != "BPE":
        raise InputError(f"A tokenizer of type {bpe['type']!r} cannot be written, only BPE: {REFUSED}.")
    tokens, types = tokens_of(tokenizer, layout["added_tokens"], size)
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in bpe["merges"]]
    if bpe["byte_fallback"]:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_add_space_prefix(is_space_put_first(layout))
        scores = scores_of(merges, bpe["vocab"])
        writer.add_token_scores([scores.get(token, UNSCORED) for token in tokens])
        types = [sentencepiece_type(token, kind, bpe["unk_token"]) for token, kind in zip(tokens, types, strict=True)]
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split_name(layout))
        writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    add_special(writer, tokenizer)


def tokens_of(tokenizer: Any, added: Sequence[Mapping], size: int) -> tuple[list[str], list[gguf.TokenType]]:
    """The text and the type of each row of the embedding; rows that are no token have a name that no text holds."""
    vocabulary = tokenizer.get_vocab()
    if (last := max(vocabulary.values())) >= size:
        raise InputError(f"The tokenizer has a token {last}, the embedding {size} rows: use the model's own tokenizer.")
    tokens = [f"[PAD{row}]" for row in range(size)]
    types = [gguf.TokenType.UNUSED] * size
    for token, row in vocabulary.items():
        tokens[row], types[row] = token, gguf.TokenType.NORMAL
    for token in added:
        types[token["id"]] = gguf.TokenType.CONTROL if token["special"] else gguf.TokenType.USER_DEFINED
    return tokens, types


def sentencepiece_type(token: str, kind: gguf.TokenType, unknown: str | None) -> gguf.TokenType:
    """The type with those that sentencepiece alone knows: bytes, and the token for what is unknown."""
    if token == unknown:
        return gguf.TokenType.UNKNOWN
    return gguf.TokenType.BYTE if BYTE.fullmatch(token) else kind


def scores_of(merges: Sequence[Sequence[str]], vocabulary: Mapping[str, int]) -> dict[str, float]:
    """Token → minus the place of the first merge that makes it, so that the highest score is the first merge.

    Scores know nothing but tokens. Raises InputError where merges say more: those that make one token do not stand
    together, or a token is not made of every two tokens that it is made of.
    """
    places: dict[str, list[int]] = {}
    for place, pair in enumerate(merges):
        places.setdefault("".join(pair), []).append(place)
    for token, made in places.items():
        cuts = sum(token[:cut] in vocabulary and token[cut:] in vocabulary for cut in range(1, len(token)))
        if made[-1] - made[0] + 1 != len(made) or len(made) != cuts:
            raise InputError(f"No score says in what order the tokenizer merges to {token!r}: {REFUSED}.")
    return {token: float(-made[0]) for token, made in places.items()}


def is_space_put_first(layout: Mapping) -> bool:
    """Whether a space is put before a text, as sentencepiece does. Raises InputError for other things done to it."""
    normalizers, splitters = parts(layout["normalizer"], "normalizers"), parts(layout["pre_tokenizer"], "pretokenizers")
    kinds = {part["type"] for part in normalizers} | {part["type"] for part in splitters}
    if not kinds or kinds - {"Prepend", "Replace", "Metaspace"}:
        raise InputError(f"A tokenizer with byte fallback and {', '.join(kinds) or 'nothing'} before it: {REFUSED}.")
    return "Prepend" in kinds or any(part.get("prepend_scheme", "never") != "never" for part in splitters)


def split_name(layout: Mapping) -> str:
    """llama.cpp's name for how a text is cut before the merges. Raises InputError for a way that has none."""
    if layout["normalizer"] is not None:
        raise InputError(f"A byte-level tokenizer that normalises by {layout['normalizer']['type']!r}: {REFUSED}.")
    first, *rest = parts(layout["pre_tokenizer"], "pretokenizers") or [{"type": "nothing"}]
    last = rest[0] if len(rest) == 1 else first
    whole_first = layout["model"].get("ignore_merges", False)
    if last["type"] == "ByteLevel" and not last["add_prefix_space"] and len(rest) < 2:
        if not rest and last["use_regex"] and not whole_first:
            return "gpt-2"
        if rest and first["type"] == "Digits" and first["individual_digits"] and last["use_regex"] and not whole_first:
            return "smollm"
        if rest and first["type"] == "Split" and not last["use_regex"] and whole_first:
            return regex_name(first)
    kinds = ", ".join(part["type"] for part in (first, *rest))
    raise InputError(f"A byte-level tokenizer that cuts texts by {kinds} in a way unknown here: {REFUSED}.")


def regex_name(splitter: Mapping) -> str:
    """llama.cpp's name for a regular expression. Raises InputError for another one."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    regex = splitter["pattern"].get("Regex")
    for name in SPLITS:
        if GGUF_PRE_TOKENIZER_SPLITS[name] == regex and splitter["behavior"] == "Isolated" and not splitter["invert"]:
            return name
    raise InputError(f"A byte-level tokenizer that cuts texts by {regex!r}, unknown here: {REFUSED}.")


def parts(layout: Mapping | None, name: str) -> list[Mapping]:
    """The members of a sequence, or what stands alone, or nothing."""
    return [] if layout is None else list(layout[name]) if layout["type"] == "Sequence" else [layout]


def add_special(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    """Which tokens begin, end and fill, which of them are added to a text, and how a conversation is written."""
    for name in ("bos", "eos", "unk", "pad"):
        if (row := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(row)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    template = tokenizer.chat_template
    if template := template.get("default") if isinstance(template, dict) else template:
        writer.add_chat_template(template)
